"""Say which runs did not come to their end, lack what was not recorded, or hold equal values."""

import pandas as pd

from stabkit.analyze.cells import group_cells, run_label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.diagnosis import BROKE_OFF
from stabkit.analyze.text import shortened
from stabkit.printing import counted, first_of

NAMED = 3  # runs; more are counted
LONGEST = 160  # characters of a reason
ENOUGH = 8  # different evaluations, from which on two runs are not equal by chance
MOST_EQUAL = 5  # names in a sentence


def broken_off(runs: Diagnoses, table: pd.DataFrame) -> list[str]:
    """Return a sentence for each run that failed or was lost: `a failed at step 41: OSError: …`.

    Its series end before what ended it, so they need not show a sign of it.
    """
    if not table["state"].isin(BROKE_OFF).any():
        return []
    named = [(run_label(cell, run), run) for cell in group_cells(runs) for run in cell.runs]
    found = []
    for label, run in named:
        state = str(table.loc[str(run.path), "state"])
        if state in BROKE_OFF:
            status = run.stored.status()
            step = f" at step {status.step:,}" if status and status.step else ""
            reason = f": {shortened(status.reason, LONGEST)}" if status and status.reason else ""
            did = "failed" if state == "failed" else "was lost"
            found.append(f"{label} {did}{step}{reason}.")
    return _few(found, "more failed or lost run")


def not_recorded(runs: Diagnoses) -> list[str]:
    """Return a sentence for what a Monitor failed to record: `a: no step was seen`."""
    found = []
    for cell in group_cells(runs):
        for run in cell.runs:
            failed = [
                entry for entry in run.stored.log_entries() if entry.get("kind") == "monitor_failed"
            ]
            label = run_label(cell, run)
            found += [f"{label}: {shortened(str(e.get('reason')), LONGEST)}." for e in failed]
    return _few(found, "more Monitor failure")


def equal_runs(runs: Diagnoses) -> list[str]:
    """Return a sentence for runs with the same evaluations: `a, b hold the same evaluations: …`.

    The log of one run that was converted twice would count as two seeds. A few evaluations may be
    equal by chance.
    """
    alike: dict[bytes, list[str]] = {}
    for cell in group_cells(runs):
        for run in cell.runs:
            evals = run.accuracy.evals
            if len(evals) >= ENOUGH and evals["value"].nunique() >= ENOUGH:
                values = evals[["step", "value"]].to_numpy().tobytes()
                alike.setdefault(values, []).append(run_label(cell, run))
    found = [
        f"{first_of(labels, MOST_EQUAL)} hold the same evaluations: each counts as a run of its "
        "own."
        for labels in alike.values()
        if len(labels) > 1
    ]
    return _few(found, "more group of equal runs")


def _few(found: list[str], others: str) -> list[str]:
    """Return the first sentences, and the number of the others in one more."""
    rest = len(found) - NAMED
    return found if rest <= 0 else [*found[:NAMED], f"{counted(rest, others)}."]
