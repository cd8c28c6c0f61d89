"""Draw into an axis of steps what they mean for the run: epochs, and the end of the warm-up."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.learning_rate import learning_rate, warmup_of

CLOCK = ["warmup", "per_epoch"]
WARMUP: dict[str, Any] = {"color": "0.6", "linewidth": 0.7, "linestyle": ":"}
BELOW = 30  # points between the axis of steps and that of epochs


def warmup_and_epoch(run: Diagnosis) -> dict[str, float]:
    """Return the step at which the warm-up ends, and the steps of an epoch; NaN if not known."""
    ended = warmup_end(run)
    images, batch = (run.settings.get(key) for key in ("data.num_train", "train.batch"))
    per_epoch = math.nan
    if isinstance(images, int) and isinstance(batch, int) and 0 < batch <= images:
        per_epoch = float(images // batch)
    return {"warmup": math.nan if ended is None else ended, "per_epoch": per_epoch}


def warmup_end(run: Diagnosis) -> float | None:
    """Return the step at which the learning rate is first at its largest; None if not known.

    It is 0 without a warm-up, also where the first rate is recorded later.
    """
    steps = run.settings.get("optim.warmup_steps")
    if isinstance(steps, (int, float)):
        return float(steps)
    rates = learning_rate(run.tables.scalars())
    rise = warmup_of(rates)
    return None if rise is None else float(rates.index[0] + rise) if rise else 0.0


def mark_clock(ax: Axes, frame: pd.DataFrame, *, named: bool = True) -> None:
    """Mark the end of the warm-up, and add an axis of epochs below that of the steps.

    `frame` has the columns `CLOCK` and `step`. What its runs do not agree on is not drawn. `named`:
    whether the mark of the warm-up says what it is.
    """
    warmup, per_epoch = warmup_in(frame), epoch_in(frame)
    if warmup is not None:
        ax.axvline(warmup, zorder=0, **WARMUP)
        ax.annotate(
            "warm-up ends" if named else "", (warmup, 0), xycoords=ax.get_xaxis_transform(),
            xytext=(2, 2), textcoords="offset points", rotation=90, fontsize=6, color="0.4",
            va="bottom",
        )  # fmt: skip
    if per_epoch is not None:
        epochs = ax.secondary_xaxis(
            "bottom",
            functions=(
                lambda steps: np.asarray(steps) / per_epoch,
                lambda epochs: np.asarray(epochs) * per_epoch,
            ),
        )
        epochs.spines["bottom"].set_position(("outward", BELOW))
        epochs.tick_params(labelsize=7, colors="0.4", length=2, pad=1)
        epochs.spines["bottom"].set_color("0.7")
        epochs.set_xlabel("epoch", fontsize=7, color="0.4", labelpad=1)


def warmup_in(frame: pd.DataFrame) -> float | None:
    """Return the step at which the warm-up of all runs of a table ends, if it is one of its steps.

    `frame` has the columns `warmup` and `step`.
    """
    warmup = _only(frame["warmup"])
    return warmup if warmup is not None and 0 < warmup < frame["step"].max() else None


def epoch_in(frame: pd.DataFrame) -> float | None:
    """Return the steps of an epoch of all runs of a table; None if they differ or one is unknown.

    `frame` has the column `per_epoch`.
    """
    return _only(frame["per_epoch"])


def warmup_handles(table: pd.DataFrame, look: dict[str, Any] = WARMUP) -> list[Line2D]:
    """Return the legend of the mark of the warm-up; none if it is in no run of a table."""
    if all(warmup_in(rows) is None for _, rows in table.groupby("run")):
        return []
    return [Line2D([], [], label="warm-up ends", **look)]


def _only(values: "pd.Series[Any]") -> float | None:
    """Return the one value of a column; None if there are several, or none is known."""
    known = values.dropna().unique()
    return float(known[0]) if len(known) == 1 and values.notna().all() else None
