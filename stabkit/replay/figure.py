"""Draw a replay: accuracy, every tensor's gradient, the samples' losses, the second moment."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabkit.analyze.plots.style import RC, as_written, new_figure, ramp
from stabkit.replay.answer import Found
from stabkit.replay.plan import ReplayPlan
from stabkit.rundir import whole

MOST_NAMED = 12  # tensors beside the map; more would hide each other


def draw_replay(found: Found, plan: ReplayPlan, file: Path) -> None:
    """Write the picture of a replay."""
    with mpl.rc_context(RC):
        figure = as_written(figure_of(found, plan))
        with whole(file, durable=False) as out:
            figure.savefig(out, format="png")


def figure_of(found: Found, plan: ReplayPlan) -> Figure:
    """Return four panels with one axis of steps; a line marks the onset."""
    figure = new_figure(7, 8)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=[1, 2.5, 1, 1])
    _accuracy(axes[0], found)
    _tensors(axes[1], found)
    _samples(axes[2], found)
    _second_moment(axes[3], found)
    for ax in axes:
        ax.axvline(plan.onset, color="0.4", linewidth=0.8, linestyle=":")
    axes[0].set_title(f"replay of {plan.words}")
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(plan.start, plan.end)
    return figure


def _accuracy(ax: Axes, found: Found) -> None:
    evals = found.run.evals()
    metrics = evals["metric"].unique() if len(evals) else []
    for color, metric in zip(ramp(len(metrics)), metrics, strict=False):
        part = evals[evals["metric"] == metric]
        ax.plot(part["step"], 100 * part["value"], marker=".", color=color, label=str(metric))
    ax.set_ylabel("accuracy (%)")
    if len(metrics):
        ax.legend()


def _tensors(ax: Axes, found: Found) -> None:
    """Draw the gradient norm of each tensor over its own median, on a scale of twofold steps."""
    table = found.tensors.pivot(index="tensor", columns="step", values="grad_norm")
    table = table.reindex(found.tensors["tensor"].drop_duplicates())
    values = table.to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = np.nanmedian(np.where(values > 0, values, np.nan), axis=1, keepdims=True)
        shown = np.log2(values / usual)
    steps = table.columns.to_numpy()
    shown = np.ma.masked_invalid(shown)
    mesh = ax.pcolormesh(
        np.append(steps, steps[-1] + 1), np.arange(len(table) + 1), shown,
        cmap="RdBu_r", vmin=-3, vmax=3, rasterized=True,
    )  # fmt: skip
    ax.invert_yaxis()
    names = list(table.index)
    named: list[int] = []  # the first to stand out, as far apart as their names are high
    for row in (names.index(name) for name in found.first["tensor"] if name in names):
        if len(named) < MOST_NAMED and all(abs(row - other) * 25 >= len(names) for other in named):
            named.append(row)
    ax.set_yticks([row + 0.5 for row in named], labels=[names[row] for row in named])
    ax.tick_params(axis="y", labelsize=6)
    ax.set_ylabel("tensors, first layer on top")
    bar = ax.figure.colorbar(mesh, ax=ax, ticks=[-3, 0, 3])
    bar.ax.set_yticklabels(["1/8", "1", "8"])
    bar.set_label("gradient norm over its median")


def _samples(ax: Axes, found: Found) -> None:
    ax.set_ylabel("loss of a sample")
    if not len(found.samples):
        ax.text(0.5, 0.5, "this method gives none", ha="center", transform=ax.transAxes)
        return
    by_step = found.samples.groupby("step")["loss"]
    median, high, top = by_step.median(), by_step.quantile(0.9), by_step.max()
    ax.fill_between(median.index, median, high, color="0.85", label="median to 9 of 10")
    ax.plot(top.index, top, ".", color=ramp(1)[0], markersize=3, label="largest")
    ax.legend()


def _second_moment(ax: Axes, found: Found) -> None:
    signals = found.run.signals()
    ax.set_ylabel("adam_rms")
    if "adam_rms" not in signals:
        ax.text(0.5, 0.5, "the optimizer has none", ha="center", transform=ax.transAxes)
        return
    layers = list(signals["layer"].astype(str).unique())
    for color, layer in zip(ramp(len(layers)), layers, strict=True):
        part = signals[signals["layer"] == layer]
        ax.plot(part["step"], part["adam_rms"], color=color, linewidth=0.8)
    ax.set_yscale("log")
