"""Score runs for figures that need a setting to vary, and say so if it does not."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stabkit.analyze.cells import group_cells, label
from stabkit.analyze.diagnoses import Diagnoses
from stabkit.analyze.does_not_apply import DoesNotApplyError
from stabkit.analyze.learning_rate import LR, rate_setting
from stabkit.analyze.scores import run_scores
from stabkit.printing import counted, first_of
from stabkit.rundir import LeftOutWarning

NAMED = 6  # runs; more are counted


def scored(runs: Diagnoses) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of `run_scores` that have a level, and the settings that tell cells apart.

    They are those of `Diagnoses.that_finished`; the column `unfinished` counts the others. The
    learning rate is called `optim.lr`, whatever the runs call it (`rate_setting`).
    """
    ended, others = runs.that_finished()
    factors = [key for cell in group_cells(ended)[:1] for key in cell.settings]
    rate = rate_setting(factors)
    frame = run_scores(ended).rename(columns={rate: LR})
    frame = frame.dropna(subset=["level"]) if len(frame) else frame
    return frame.assign(unfinished=others), [LR if key == rate else key for key in factors]


def that_have(runs: Diagnoses, frame: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return the rows of `scored` whose runs have all these settings.

    A LeftOutWarning names the other runs. Raises DoesNotApplyError if no run has them all.
    """
    lacks = {run.name: _lacking(run.settings, keys) for run in runs}
    others = [name for name in frame["run"] if lacks[name]]
    if len(others) == len(frame):
        raise DoesNotApplyError(f"{runs.path}: no run has {' and '.join(map(_said, keys))}")
    for key in keys:
        if names := [name for name in others if key in lacks[name]]:
            text = f"{runs.path}: left out of the figure, without {_said(key)}: "
            warnings.warn(text + first_of(names, NAMED), LeftOutWarning, stacklevel=2)
    return frame[~frame["run"].isin(others)]


def _said(key: str) -> str:
    return "a learning rate" if key == LR else f"a setting {key}"


def _lacking(settings: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [key for key in keys if (rate_setting(settings) if key == LR else key) not in settings]


def refuse_constant(runs: Diagnoses, key: str, factors: Sequence[str], what: str) -> None:
    """Raise DoesNotApplyError if `key` is not among `factors`, and say what the runs do vary."""
    if key in factors:
        return
    ended, others = runs.that_finished()
    these = f"{runs.path}: these runs"
    if others:
        these += f" (without {counted(others, 'unfinished run')})"
    if key in ended.factors():
        raise DoesNotApplyError(
            f"{these} vary {key} only along with {', '.join(factors)}, so {what}"
        )
    told = f"they vary {', '.join(factors)}" if factors else "no setting but the seed varies"
    called = " (a setting of another loop: lr or learning_rate)" if key == LR else ""
    raise DoesNotApplyError(f"{these} do not vary {key}{called}, so {what}; {told}")


def words(settings: Mapping[str, Any], keys: Sequence[str], none: str = "all runs") -> str:
    """Return settings in words. A run that lacks one has NaN in a column of numbers."""
    values = {key: None if settings[key] != settings[key] else settings[key] for key in keys}
    return ", ".join(label(key, value) for key, value in values.items()) or none
