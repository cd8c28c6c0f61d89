"""Score runs for figures that need a setting to vary, and say so if it does not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.scores import run_scores
from stabkit.printing import counted


def scored(runs: Diagnoses) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of `run_scores` that have a level, and the settings that tell cells apart.

    They are those of `Diagnoses.that_finished`; the column `unfinished` counts the others.
    """
    ended, others = runs.that_finished()
    factors = [key for cell in group_cells(ended)[:1] for key in cell.settings]
    frame = run_scores(ended)
    return (frame.dropna(subset=["level"]) if len(frame) else frame).assign(
        unfinished=others
    ), factors


def refuse_constant(runs: Diagnoses, key: str, factors: Sequence[str], what: str) -> None:
    """Raise ValueError if `key` is not among `factors`, and say what the runs do vary."""
    if key in factors:
        return
    ended, others = runs.that_finished()
    these = f"{runs.path}: these runs"
    if others:
        these += f" (without {counted(others, 'unfinished run')})"
    if key in ended.factors():
        raise ValueError(f"{these} vary {key} only along with {', '.join(factors)}, so {what}")
    told = f"they vary {', '.join(factors)}" if factors else "no setting but the seed varies"
    raise ValueError(f"{these} do not vary {key}, so {what}; {told}")


def words(settings: Mapping[str, Any], keys: Sequence[str], none: str = "all runs") -> str:
    """Return settings in words."""
    return ", ".join(label(key, settings[key]) for key in keys) or none
