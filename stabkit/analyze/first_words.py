"""Say first how runs trained: what made a verdict, or what was sought and not found."""

from collections.abc import Sequence

import pandas as pd

from stabkit.analyze.blank_series import BLANK
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.sentence_parts import RunOfRow, run_of_row
from stabkit.analyze.shared_falls import SharedFall
from stabkit.analyze.text import listed, times
from stabkit.analyze.verdict import DOUBTFUL
from stabkit.detect.dips import SHORTEST
from stabkit.detect.spikes import MIN_HISTORY
from stabkit.printing import counted


def nothing_found(runs: Diagnoses, table: pd.DataFrame, shared: Sequence[SharedFall]) -> str:
    """Say what was looked for and not found in runs of which none trained unstably.

    What made a verdict that is not `stable` comes first. `shared`: the falls that show only in the
    mean of several runs.
    """
    known = table[table["verdict"] != "unknown"]
    sought = []
    if (known["metric"] != "").any():
        sought += ["no dip", "no drift"]
    if known["judged_on"].str.partition(";")[0].str.contains("loss", case=False).any():
        sought.append("no loss spike")
    sought += ["no collapse", "no non-finite value"]
    text = f"{listed(sought)} in {counted(len(known), 'run')}"
    clean = known["verdict"].eq("stable").all()
    sign = sign_sought(known)
    ending = f": no {sign} of instability was found." if clean else "."
    if shared:
        ending = " by itself, but in the mean of several."
    return _doubtful(table, run_of_row(runs)) + text[0].upper() + text[1:] + ending


def _doubtful(table: pd.DataFrame, of: RunOfRow) -> str:
    """Say what made the verdicts `bursts`, `outlier` and `stuck`; empty if no run has one."""
    if not table["verdict"].isin(DOUBTFUL).any():
        return ""
    if len(table) == 1:
        (run,) = of.values()
        return f"Not unstable, but {_doubt(run)}.\n"
    words = {
        "bursts": "with gradient bursts, swells or growth",
        "outlier": "with a single low evaluation",
        "stuck": "whose loss never fell",
    }
    kinds = table["verdict"].value_counts()
    parts = [f"{counted(kinds[k], 'run')} {words[k]}" for k in DOUBTFUL if k in kinds]
    return f"None unstable, but {listed(parts)}.\n"


def _doubt(run: Diagnosis) -> str:
    """Say what made the verdict of a run that is neither unstable nor stable."""
    if run.verdict == "stuck":
        return "the loss never fell"
    if run.verdict == "outlier":
        outliers = run.accuracy.outliers
        fall = outliers.loc[outliers["depth"].idxmax()]
        depth = f"{100 * fall['depth']:.1f} points"
        return f"a single evaluation was {depth} low at step {fall['onset']:,}"
    for kind, rows, than in (
        ("burst", run.gradients.bursts_that_count, "what was expected"),
        ("swell", run.gradients.swells, "the level before"),
    ):
        if len(rows):
            most = rows.loc[rows["ratio"].idxmax()]
            which = f"{counted(len(rows), f'gradient {kind}')}, the largest of"
            which = f"a gradient {kind} of" if len(rows) == 1 else which
            return f"with {which} {times(most['ratio'])} {than}, at step {most['onset']:,}"
    if len(grown := run.gradients.growths):
        most = grown.loc[grown["ratio"].idxmax()]
        level = f"{times(most['ratio'])} their lowest level"
        return f"gradient norms grew to {level}, from step {most['onset']:,}"
    raise ValueError(f"{run.path}: the verdict {run.verdict!r} has no event")


def nothing_said(table: pd.DataFrame) -> str:
    """Say why no run has a verdict: all lack values, are left out, or recorded too little."""
    if (table["gaps"] != "").all():
        missing = "values of steps that were trained are missing"
        return f"Nothing can be said: {missing}.\n{first_gap(table)}"
    if (table["left_out"] != "").all():
        first = table.iloc[0]
        return f"Nothing can be said.\n{first['run']}: {first['left_out']}."
    return (
        f"Nothing can be said: a verdict needs {SHORTEST} evaluations of an accuracy, or more than "
        f"{MIN_HISTORY} values of a\nloss or of a gradient norm, and all rows of the steps trained."
    )


def first_gap(table: pd.DataFrame) -> str:
    """Say what the first run that lacks rows or values lacks."""
    first = table[table["gaps"] != ""].iloc[0]
    blank = " Some programs write NaN as a blank." if BLANK in str(first["gaps"]) else ""
    return f"{first['run']}: {first['gaps']}.{blank}"


def sign_sought(table: pd.DataFrame) -> str:
    """Return `sign`, or `clear sign` if dips or bursts are there that are not clear enough."""
    unclear = ["possible_dips", "confirmed_then", "above_best", "bursts"]
    return "clear sign" if table[unclear].any(axis=None) else "sign"
