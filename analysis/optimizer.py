# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # LAMB
# This notebook answers `sweeps/optimizer.yaml`, after Figure 3 of the paper: LAMB trains without
# dips, but beyond its best rate the curve sags in mid-training and ends low.
# Run `python analysis/optimizer.py runs/optimizer`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/optimizer"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import dip_more, higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["optim.lr"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/optimizer.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims
# The sag is the distance from a curve's best level down to its end.

# %%
ends = [{"optim.lr": value} for value in sorted(table["optim.lr"].unique())]
claims = [
    higher("the smallest lr ends higher than the largest", table, ends[0], ends[-1]),
    higher("the largest lr sags more than the smallest", table, ends[-1], ends[0], column="sag"),
    dip_more(
        "the largest lr dips more often than the smallest (paper: no)", table, ends[-1], ends[0]
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
