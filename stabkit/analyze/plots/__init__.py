"""Figures of runs: `draw` one into files, `figure_of` returns it; `PLOTS` lists all."""

from stabkit.analyze.plots.catalog import PLOTS, draw, figure_of, save, table_of

__all__ = ["PLOTS", "draw", "figure_of", "save", "table_of"]
