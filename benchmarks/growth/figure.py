"""Draw the figure of run.py: one column for each subject and axis, time above memory."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from benchmarks.lib.timing import median_interval
from stabkit.analyze.plots.style import RC, new_figure

MEASURED, THEORY = "#0b4f8a", "#c8642c"


def draw(curves: Sequence[Any], file: Path) -> None:
    columns = len(curves) // 2
    with mpl.rc_context(RC):
        figure = new_figure(2.15 * columns, 4.4)
        axes = figure.subplots(2, columns, squeeze=False, sharex="col")
        for i, curve in enumerate(curves):
            _panel(axes[i % 2, i // 2], curve, top=i % 2 == 0)
        axes[0, 0].set_ylabel("time of a call, s")
        axes[1, 0].set_ylabel("memory of a call, MiB")
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        figure.savefig(file)


def _panel(ax: Axes, curve: Any, top: bool) -> None:
    sizes, values = np.array(curve.sizes), np.array(curve.values)
    middle = np.median(values, axis=0)
    spread = np.abs(np.stack([values.min(axis=0), values.max(axis=0)]) - middle)
    found, expected = median_interval(curve.slopes), curve.expected
    theory = np.array(curve.theory)
    ax.set(xscale="log", yscale="log")
    level = np.exp(np.log(middle / theory).mean())
    ax.plot(sizes, level * theory, "--", color=THEORY, lw=1.4, label="theory, at the same level")
    fit = np.exp(found.middle * (np.log(sizes) - np.log(sizes).mean()) + np.log(middle).mean())
    ax.plot(sizes, fit, "-", color=MEASURED, lw=0.9, label="fitted power")
    ax.errorbar(
        sizes, middle, spread, fmt="o", ms=3.5, lw=0.9, color=MEASURED, label="median and range"
    )
    interval = f" ({found.low:.2f}..{found.high:.2f})" if len(curve.values) > 1 else ""
    words = f"slope {found.middle:.2f}{interval}\ntheory {expected:.2f}"
    ax.text(0.04, 0.97, words, transform=ax.transAxes, va="top", fontsize=7.5)
    low, high = min(values.min(), (level * theory).min()), max(values.max(), fit.max())
    ax.set_ylim(low / 1.4, high * (high / low) ** 0.45 * 1.2)  # leaves room for the text
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks(sizes, labels=[f"{n // 1024}k" if n >= 1024 else f"{n}" for n in sizes])
    if top:
        ax.set_title(curve.what)
    else:
        ax.set_xlabel(curve.axis)


def write_csv(curves: Sequence[Any], file: Path) -> None:
    with file.open("w", newline="") as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["what", "axis", "unit", "size", "round", "value", "theory"])
        for curve in curves:
            for number, values in enumerate(curve.values):
                for size, value, theory in zip(curve.sizes, values, curve.theory, strict=True):
                    row = [curve.what, curve.axis, curve.unit, size, number]
                    table.writerow([*row, f"{value:.6g}", f"{theory:.6g}"])
