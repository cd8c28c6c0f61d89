"""What happened in a folder of runs: one row a run, then the same in words."""

import math
from collections.abc import Sequence

import pandas as pd

from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.events import collapses, dips, onsets
from stabkit.detect.dips import SHORTEST
from stabkit.store.reader import Run, Runs

FOOTNOTE = (
    "A dip is a fall of held-out kNN accuracy below its own running level that lasts, exceeds the\n"
    "run's noise and is significant (McNemar, p <= 0.01 after correction for every evaluation);\n"
    "`in dips` counts steps. Collapsed is a run whose features or embeddings spread at most a\n"
    "quarter of what they did untrained, or whose loss stayed at chance for its second half,\n"
    "while kNN ends no better than untrained; or whose loss stayed at nothing. A gradient burst\n"
    "begins where a layer's gradient norm leaves its own recent range (robust z of 6 in log space)."
)


def run_table(runs: Runs) -> pd.DataFrame:
    """One row a run: cell, seed, state, verdict, last and best kNN, its dips and gradient bursts.

    Verdicts: `diverged` (non-finite values), `collapsed` (`collapse` names the signals), `unstable`
    (at least one dip), `bursts` (gradients only), `stable`, or `unknown` (too few evaluations to
    find a dip). `lost_steps` is the time
    spent in dips, `deepest` a fraction, `patch_first` the bursts that the patch projection began.
    """
    rows = [_row(run, cell_label(cell)) for cell in group_cells(runs) for run in cell.runs]
    return pd.DataFrame(rows)


def _row(run: Run, cell: str) -> dict[str, object]:
    evals, found, joined = run.evals("knn_heldout"), dips(run), onsets([run])
    first, spiked = joined[joined["lag"] == 0], joined["burst"].nunique()
    events = run.dir.read_events()
    collapsed = collapses(run)["signal"].unique()
    nonfinite = sum(event.get("kind") == "nonfinite" for event in events)
    return {
        "cell": cell,
        "seed": run.settings.get("seed"),
        "state": run.dir.standing() if run.dir.read_status() else "recorded",
        "verdict": verdict(nonfinite, len(collapsed), len(evals), len(found), spiked),
        "collapse": ", ".join(collapsed),
        "knn_last": evals["value"].iloc[-1] if len(evals) else math.nan,
        "knn_best": evals["value"].max() if len(evals) else math.nan,
        "dips": len(found),
        "deepest": found["depth"].max() if len(found) else 0.0,
        "lost_steps": int((found["end"] - found["onset"]).sum()),
        "bursts": spiked,
        "patch_first": int((first["layer"] == "patch_embed").sum()),
        "run": run.name,
    }


def verdict(
    nonfinite: int, num_collapses: int, num_evals: int, num_dips: int, num_bursts: int
) -> str:
    if nonfinite:
        return "diverged"
    if num_collapses:
        return "collapsed"
    if num_dips:
        return "unstable"
    if num_evals < SHORTEST:
        return "unknown"
    return "bursts" if num_bursts else "stable"


def summary(runs: Runs) -> str:
    """The table of `run_table` and what it means, as text."""
    table = run_table(runs)
    parts = [_headline(runs, table), _text_table(table), *_findings(runs, table), FOOTNOTE]
    return "\n\n".join(part for part in parts if part)


def _headline(runs: Runs, table: pd.DataFrame) -> str:
    states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    line = f"{runs.path}: {counted(len(table), 'run')} ({states})"
    evals = next((e for run in runs if len(e := run.evals("knn_heldout"))), None)
    if evals is None:
        return f"{line}; none has held-out kNN evaluations, so dips cannot be found"
    first = evals.iloc[0]
    every = int(evals["step"].diff().median()) if len(evals) > 1 else 0
    return (
        f"{line}\nHeld-out kNN every {every} steps on {int(first['n']):,} images, "
        f"chance {first['chance']:.2f}."
    )


def _text_table(table: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "cell": table["cell"],
            "seed": table["seed"].map(lambda s: "-" if pd.isna(s) else f"{s:.0f}"),
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


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of cells as columns of text; all flush right but those named in `left`."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(row.rstrip() for row in rows)


def _findings(runs: Runs, table: pd.DataFrame) -> list[str]:
    unstable = table[table["verdict"].isin(["unstable", "collapsed", "diverged"])]
    unknown = int((table["verdict"] == "unknown").sum())
    if unknown == len(table):
        return [
            f"Nothing can be said: a verdict needs {SHORTEST} held-out kNN evaluations of a run."
        ]
    if unstable.empty:
        known = counted(len(table) - unknown, "run")
        return [
            f"No dip, no collapse and no non-finite value in {known}: no sign of instability was "
            "found."
        ]
    finished = int((unstable["state"] == "done").sum())
    lines = [f"{len(unstable)} of {counted(len(table), 'run')} trained unstably."]
    if finished:
        lines[0] += f" {finished} of them finished without any error, as if nothing had happened."
    lines += _collapsed(table)
    if table["dips"].any():
        lines.append(_deepest(runs, table))
    return [*lines, _first_layers(table)]


def _collapsed(table: pd.DataFrame) -> list[str]:
    signs = table["collapse"][table["collapse"] != ""].str.split(", ").explode().value_counts()
    if signs.empty:
        return []
    runs = counted((table["collapse"] != "").sum(), "run")
    return [f"{runs} collapsed: {', '.join(f'{s} in {n}' for s, n in signs.items())}."]


def _deepest(runs: Runs, table: pd.DataFrame) -> str:
    worst = table.loc[table["deepest"].idxmax()]
    run = next(run for run in runs if run.name == worst["run"])
    found = dips(run)
    dip = found.loc[found["depth"].idxmax()]
    end = "not recovered when the run ended"
    if not pd.isna(dip["recovery"]):
        end = f"recovered by step {int(dip['recovery'])}"
    return (
        f"The deepest dip ({worst['cell']}, seed {worst['seed']}): {100 * dip['depth']:.1f} points "
        f"below its level\nat step {int(dip['trough'])}; begun at step {int(dip['onset'])}, {end} "
        f"(p = {dip['p_value']:.1g})."
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


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
