"""Choose the layers that a figure of gradients puts in front, and how they look."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stabkit.analyze.plots.style import ramp

Styles = dict[str, dict[str, Any]]
DASHES: tuple[Any, ...] = ("-", (0, (3, 1)), (0, (1, 1)))  # so close that a spike shows them
GRAY: dict[str, Any] = {"color": "0.8", "linewidth": 0.5, "zorder": 1}  # all other layers


def telling_layers(frame: pd.DataFrame) -> list[str]:
    """Return the first layer, the last block and the last layer of all.

    Spikes are said to begin in the first and to arrive in the others. `frame` has the columns layer
    and depth. Fewer names are returned if some of the three are the same layer.

    Blocks are the layers that most others share a name with, up to its numbers: `blocks.3`, `h.3`,
    `encoder_layer_3`, `stages.1.blocks.0`; the last ones if several are as many.
    """
    layers = frame.dropna(subset="depth").sort_values("depth")["layer"].astype(str).unique()
    families = [re.sub(r"\d+", "#", layer) for layer in layers]
    numbered = [family for family in families if "#" in family]
    block = max(reversed(numbered), key=numbered.count, default=None)
    blocks = [layer for layer, family in zip(layers, families, strict=True) if family == block]
    return list(dict.fromkeys([*layers[:1], *blocks[-1:], *layers[-1:]]))


def layer_styles(frame: pd.DataFrame) -> Styles:
    """Return line styles of the layers in front, which tell them apart in gray too."""
    return styles_of(telling_layers(frame))


def styles_of(layers: Sequence[str]) -> Styles:
    """Return line styles of layers in depth order: dark to light, solid first, then dashed."""
    return {
        name: {
            "color": color,
            "linestyle": DASHES[i % len(DASHES)],
            "linewidth": max(0.8, 1.1 - 0.1 * i),
            "zorder": 3 - 0.1 * i,
        }
        for i, (name, color) in enumerate(zip(layers, ramp(len(layers)), strict=True))
    }


def mark_spikes(ax: Axes, at: pd.Series, color: object, zorder: float = 3) -> None:
    """Draw triangles on the upper edge of a panel; `at` is in its horizontal units."""
    if len(at):  # an empty line off the axes has no extent, which breaks the layout
        ax.plot(
            at, np.ones(len(at)), "v", markersize=5, clip_on=False, color=color, zorder=zorder,
            transform=ax.get_xaxis_transform(), markeredgecolor="black", markeredgewidth=0.4,
        )  # fmt: skip


def cross_out(ax: Axes, at: pd.Series, color: object = "black") -> None:
    """Draw crosses on the upper edge of a panel where a value is not finite."""
    if len(at):
        ax.plot(
            at, np.ones(len(at)), "x", color=color, markersize=4, clip_on=False, zorder=4,
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip


def not_finite_handle() -> Line2D:
    """Return the legend of the crosses."""
    return Line2D([], [], color="black", linestyle="", marker="x", markersize=4, label="not finite")


def say_nothing(ax: Axes, why: str) -> None:
    """Write words in the middle of a panel that has nothing else to show."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set_yticks([])


def layer_handles(styles: Styles, *, others: bool, spikes: bool) -> list[Line2D]:
    """Return the legend of the layers in front, the gray ones and the marks of spikes."""
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    if others:
        handles.append(Line2D([], [], color=GRAY["color"], linewidth=1, label="other layers"))
    if spikes:
        handles.append(
            Line2D(
                [], [], marker="v", linestyle="", markersize=5, color="0.8", label="spike",
                markeredgecolor="black", markeredgewidth=0.4,
            )
        )  # fmt: skip
    return handles
