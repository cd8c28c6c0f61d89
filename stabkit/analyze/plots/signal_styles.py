"""Say how each signal is drawn: on which axis, and with which line to compare with."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.learning_rate import learning_rate
from stabkit.store.schema import METRIC

MOST = 6  # losses or norms of a run that are drawn; more would hide the rest
STRETCHED = 10.0  # ratio of largest to smallest value above which a logarithmic axis shows more


class SignalStyle(NamedTuple):
    """How a signal is drawn. `edge`: linear up to 1 and logarithmic above, of either sign."""

    scale: Literal["linear", "log", "edge"]
    guide: float | None = None
    low: bool = False  # a small value is what alarms, so the smallest of a stretch is shown


LAYERS = {
    "grad_norm": SignalStyle("log"),
    "grad_max": SignalStyle("log"),
    "nonfinite_count": SignalStyle("edge"),
    "zero_count": SignalStyle("edge"),
    "param_norm": SignalStyle("log"),
    "update_norm": SignalStyle("log"),
    # "somewhere around 1e-3" for SGD: cs231n.github.io/neural-networks-3, ratio of weights:updates
    "update_ratio": SignalStyle("log", guide=1e-3),
    "adam_rms": SignalStyle("log", guide=1.0),
    "attention_logit": SignalStyle("linear"),
    "attention_entropy": SignalStyle("linear", low=True),
    "attention_entropy_mean": SignalStyle("linear", low=True),
    "output_rms": SignalStyle("log"),
    "output_kurtosis": SignalStyle("edge"),
    "target_distance": SignalStyle("linear"),
    "output_grad_norm": SignalStyle("log"),
}
RUN = {
    METRIC: SignalStyle("linear", low=True),
    "loss": SignalStyle("linear"),
    "lr": SignalStyle("linear"),
    "probe_rank": SignalStyle("linear", low=True),
    "probe_feature_std": SignalStyle("linear", low=True),
    "teacher_distance": SignalStyle("linear"),
    "teacher_rank": SignalStyle("linear", low=True),
    "teacher_feature_std": SignalStyle("linear", low=True),
    "alignment": SignalStyle("linear"),
    "uniformity": SignalStyle("linear"),
    "target_cosine": SignalStyle("linear", low=True),
    "gradient_sharpness": SignalStyle("edge", guide=1.0),
    "step_sharpness": SignalStyle("edge", guide=1.0),
    "preconditioned_sharpness": SignalStyle("edge", guide=1.0),
    "noise_scale": SignalStyle("log"),
}


def run_styles(run: Diagnosis) -> Mapping[str, SignalStyle]:
    """Return the series of a run that are drawn, by their names, and how.

    They are the accuracy that is judged, losses, gradient norms and learning rates by any name, and
    our own signals of the run.
    """
    own = {name: style for name, style in RUN.items() if name not in (METRIC, "loss", "lr")}
    rate = learning_rate(run.tables.scalars())
    return {
        run.accuracy.metric: RUN[METRIC],
        **{name: RUN.get(name, SignalStyle("linear")) for name in run.loss.names[:MOST]},
        **{name: SignalStyle("log") for name in run.gradients.norms[:MOST]},
        **({str(rate.name): RUN["lr"]} if len(rate) else {}),
        **own,
    }


def signal_scale(rows: pd.DataFrame) -> str:
    """Return `linear`, `log` or `symlog` for the values of one signal, in any number of runs."""
    values = rows[["median", "extreme"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    style = style_of(rows)
    if style.scale == "edge":
        return "symlog" if np.abs(values).max(initial=0) > STRETCHED else "linear"
    return "log" if style.scale == "log" and (values > 0).any() else "linear"


def style_of(rows: pd.DataFrame) -> SignalStyle:
    """Return how a signal is drawn. A user's own signal is logarithmic if that shows more."""
    name = str(rows["signal"].iloc[0])
    if (known := (LAYERS | RUN).get(name)) is not None:
        return known
    values = rows["median"][np.isfinite(rows["median"])]
    wide = len(values) and values.min() > 0 and values.max() > STRETCHED * values.min()
    return SignalStyle("log" if wide else "linear")


def plain_ticks(ax: Axes, percent: bool = False) -> None:
    """Set a few ticks with plain numbers, for small panels side by side; shares in percent."""
    (low, high), scale = ax.get_ylim(), ax.get_yscale()
    if scale == "linear" or (scale == "log" and high < 5 * low):
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    elif scale == "log":
        ax.yaxis.set_major_locator(
            LogLocator(numticks=4, subs=(1, 3) if high < 100 * low else (1,))
        )
    else:
        ax.yaxis.set_major_locator(FixedLocator(_powers(low, high)))
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:g} %" if percent else f"{value:g}")
    )
    if scale != "linear":
        ax.yaxis.set_minor_locator(NullLocator())


def _powers(low: float, high: float) -> list[float]:
    """Return 0 and at most three powers of ten on each side of it, the largest included."""
    top = int(math.log10(max(high, -low, 1.0)))
    powers = [10.0**power for power in range(top, -1, -max(1, -(-top // 3)))][:3]
    return [*(-power for power in powers), 0.0, *powers]
