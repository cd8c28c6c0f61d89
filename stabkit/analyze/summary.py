"""Summarize a folder of runs: one row a run, then what the rows mean in words."""

import math
from numbers import Real

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnosis import Diagnoses, Diagnosis
from stabkit.analyze.events import counts_known
from stabkit.analyze.findings import findings
from stabkit.analyze.text import aligned, counted
from stabkit.analyze.verdict import UNSTABLE, VERDICTS
from stabkit.detect.dips import SHORTEST
from stabkit.printing import one_line

LISTED = 40  # runs; a longer table would not be read

FOOTNOTE = (
    "A dip is a fall of held-out kNN accuracy below the level and trend around it that exceeds\n"
    "the run's noise and, if the samples are known, is significant over them (p <= 0.01\n"
    "corrected for every window; rates of false alarms: docs/detectors.md). `in dips` counts\n"
    "steps. A run has collapsed if its features or embeddings spread at most a quarter as far\n"
    "as untrained, or if its loss stayed at chance for its second half, and kNN ends no better\n"
    "than untrained; or if its loss stayed at zero. A gradient burst begins when the gradient\n"
    "norm of a layer leaves its own recent range (robust z of 6 or more in log space)."
)


def run_table(runs: Diagnoses) -> pd.DataFrame:
    """Return one row a run: cell, seed, state, verdict, last and best kNN, dips, gradient bursts.

    Verdicts: `diverged` (non-finite values), `collapsed` (`collapse` names the signals), `unstable`
    (at least one dip or drift), `bursts` (only gradients burst), `stable`, or `unknown`. A run is
    unknown if it has too few evaluations to find a dip, values that a detector refuses, or missing
    rows of steps that it trained; `gaps` says which. `lost_steps` are the steps spent in dips.
    `deepest` and `sag` (of the drifts) are fractions. `patch_first` counts the bursts that began in
    the patch projection.
    """
    cells = group_cells(runs)
    return pd.DataFrame([_row(run, cell_label(cell)) for cell in cells for run in cell.runs])


def _row(run: Diagnosis, cell: str) -> dict[str, object]:
    run.examine()
    evals, found, sags = run.evals("knn_heldout"), run.dips, run.drifts
    first = run.onsets[run.onsets["lag"] == 0]
    return {
        "cell": cell,
        "seed": run.settings.get("seed"),
        "state": run.run.dir.standing() if run.run.status() else "recorded",
        "verdict": run.verdict,
        "collapse": ", ".join(run.collapses["signal"].unique()),
        "knn_last": evals["value"].iloc[-1] if len(evals) else math.nan,
        "knn_best": evals["value"].max() if len(evals) else math.nan,
        "dips": len(found),
        "deepest": found["depth"].max() if len(found) else 0.0,
        "drifts": len(sags),
        "sag": sags["depth"].max() if len(sags) else 0.0,
        "lost_steps": int((found["end"] - found["onset"]).sum()),
        "bursts": len(run.bursts),
        "patch_first": int((first["layer"] == "patch_embed").sum()),
        "gaps": "; ".join(run.gaps()),
        "run": run.name,
    }


def summary(runs: Diagnoses) -> str:
    """Return the table of `run_table` and what it means, as text."""
    return describe(runs, run_table(runs))


def describe(runs: Diagnoses, table: pd.DataFrame) -> str:
    """Say what the table of `run_table` means; of many runs, list those that fared worst."""
    parts = [
        _headline(runs, table),
        _text_table(table),
        *lacking_rows(table),
        *_findings(runs, table),
        FOOTNOTE,
    ]
    return "\n\n".join(part for part in parts if part)


def _headline(runs: Diagnoses, table: pd.DataFrame) -> str:
    states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    line = f"{one_line(runs.path)}: {counted(len(table), 'run')} ({states})"
    measured = table.index[table["knn_last"].notna()]
    evals = _ordered(runs)[measured[0]].evals("knn_heldout") if len(measured) else None
    if evals is None or evals.empty:
        return f"{line}; none has held-out kNN evaluations, so dips cannot be found"
    first = evals.iloc[0]
    every = int(evals["step"].diff().median()) if len(evals) > 1 else 0
    size = f"{int(first['n']):,}" if counts_known(evals) else "an unknown number of"
    chance = "unknown" if math.isnan(first["chance"]) else f"{first['chance']:.2f}"
    line += f"\nHeld-out kNN every {every} steps on {size} images, chance {chance}."
    without = sum(not counts_known(run.evals("knn_heldout")) for run in runs)
    if without:
        line += (
            f"\n{counted(without, 'run')} without sample counts: dips there are not tested, the "
            "noise rule alone finds\nthem, which mistakes slow noise for dips more often."
        )
    return line


def lacking_rows(table: pd.DataFrame) -> list[str]:
    """Return a sentence on the runs that lack rows; nothing if there are no such runs."""
    some = table[table["gaps"] != ""]
    if some.empty:
        return []
    first = some.iloc[0]
    return [
        f"{counted(len(some), 'run')} without all rows of the steps trained ({first['run']}: "
        f"{first['gaps']}):\nthey may be unstable without showing a sign of it."
    ]


def _ordered(runs: Diagnoses) -> list[Diagnosis]:
    """Return the runs in the order of their table's rows. Names may not tell them apart."""
    return [run for cell in group_cells(runs) for run in cell.runs]


def _text_table(table: pd.DataFrame) -> str:
    if len(table) > LISTED:
        counts = table["verdict"].value_counts()
        found = ", ".join(f"{counts[v]:,} {v}" for v in VERDICTS if v in counts)
        worst = (
            table.assign(rank=table["verdict"].map(VERDICTS.index))
            .sort_values(["rank", "deepest", "lost_steps"], ascending=[True, False, False])
            .head(LISTED)
        )
        rest = len(table) - LISTED
        return (
            f"{found}. The {LISTED} that fared worst:\n\n{_text_table(worst)}\n\n"
            f"... and {counted(rest, 'run')} more: `stabkit analyze RUNS --csv FILE` writes all."
        )
    shown = pd.DataFrame(
        {
            "cell": table["cell"],
            "seed": table["seed"].map(_seed_text),
            "verdict": table["verdict"],
            "last kNN": table["knn_last"].map("{:.3f}".format),
            "best": table["knn_best"].map("{:.3f}".format),
            "dips": table["dips"].astype(str),
            "deepest": table["deepest"].map(lambda d: f"{100 * d:.1f} pt" if d else "-"),
            "in dips": table["lost_steps"].astype(str),
            "bursts": table["bursts"].astype(str),
        }
    )
    lines = [list(shown), *shown.itertuples(index=False)]
    return aligned(lines, left=(0, 2))


def _seed_text(seed: object) -> str:
    if isinstance(seed, Real):
        return f"{seed:.0f}" if math.isfinite(seed) else "-"
    return "-" if seed is None else str(seed)


def _findings(runs: Diagnoses, table: pd.DataFrame) -> list[str]:
    unstable = table[table["verdict"].isin(UNSTABLE)]
    unknown = int((table["verdict"] == "unknown").sum())
    if unknown == len(table):
        return [
            f"Nothing can be said: a verdict needs {SHORTEST} held-out kNN evaluations of a run, "
            "and all its rows."
        ]
    if unstable.empty:
        known = counted(len(table) - unknown, "run")
        return [
            f"No dip, no drift, no collapse and no non-finite value in {known}: no sign of "
            "instability was found."
        ]
    finished = int((unstable["state"] == "done").sum())
    lines = [f"{len(unstable)} of {counted(len(table), 'run')} trained unstably."]
    if finished:
        lines[0] += f" {finished} of them finished without any error, as if nothing had happened."
    lines += _collapsed(table)
    if table["drifts"].any():
        lines.append(_drifted(table))
    if table["dips"].any():
        lines.append(_deepest(runs, table))
    return [*lines, _first_layers(table), *(findings(runs) if len(table) <= LISTED else [])]


def _drifted(table: pd.DataFrame) -> str:
    runs = counted(int((table["drifts"] > 0).sum()), "run")
    return f"{runs} sagged slowly without a dip, by up to {100 * table['sag'].max():.1f} points."


def _collapsed(table: pd.DataFrame) -> list[str]:
    signs = table["collapse"][table["collapse"] != ""].str.split(", ").explode().value_counts()
    if signs.empty:
        return []
    runs = counted((table["collapse"] != "").sum(), "run")
    return [f"{runs} collapsed: {', '.join(f'{s} in {n}' for s, n in signs.items())}."]


def _deepest(runs: Diagnoses, table: pd.DataFrame) -> str:
    worst = table.loc[table["deepest"].idxmax()]
    found = _ordered(runs)[worst.name].dips
    dip = found.loc[found["depth"].idxmax()]
    end = "not recovered when the run ended"
    if not pd.isna(dip["recovery"]):
        end = f"recovered by step {int(dip['recovery'])}"
    seed = "" if pd.isna(worst["seed"]) else f", seed {_seed_text(worst['seed'])}"
    p_value = "no p-value: sample counts unknown"
    if not math.isnan(dip["p_value"]):
        p_value = f"p = {dip['p_value']:.1g}"
    return (
        f"The deepest dip ({worst['cell']}{seed}): {100 * dip['depth']:.1f} points "
        f"below its level\nat step {int(dip['trough'])}; begun at step {int(dip['onset'])}, {end} "
        f"({p_value})."
    )


def _first_layers(table: pd.DataFrame) -> str:
    if not table["bursts"].any():
        return "No layer's gradient norm spiked."
    bursts_found = counted(table["bursts"].sum(), "gradient burst")
    bursting = counted((table["bursts"] > 0).sum(), "run")
    return (
        f"{bursts_found} in {bursting}; the patch projection was among the first to spike in "
        f"{table['patch_first'].sum()}."
    )
