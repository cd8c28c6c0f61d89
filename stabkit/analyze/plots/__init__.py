"""Figures of runs: `draw` one by its name, `save` it; `PLOTS` lists them."""

from stabkit.analyze.plots.catalog import PLOTS, draw, save

__all__ = ["PLOTS", "draw", "save"]
