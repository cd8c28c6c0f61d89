# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Learning rate x frozen patch projection
# This notebook answers `sweeps/lr_grid.yaml`, after Figures 2 and 5 of the paper: does a larger
# learning rate train less stably, and does a frozen random patch projection help?
# Run `python analysis/lr_grid.py runs/lr_grid`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/lr_grid"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import dip_more, higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.freeze_patch_embed", "optim.lr"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/lr_grid.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
LEARNED, FROZEN = {"model.freeze_patch_embed": False}, {"model.freeze_patch_embed": True}
low, high = ({"optim.lr": table["optim.lr"].agg(end)} for end in ("min", "max"))
claims = [
    dip_more(
        f"learned: the largest lr ({high['optim.lr']:g}) dips more often than the smallest",
        table,
        LEARNED | high,
        LEARNED | low,
    ),
    dip_more(
        "a learned patch projection dips more often than a frozen one",
        table,
        LEARNED,
        FROZEN,
        within=["optim.lr"],
    ),
    higher(
        "a frozen patch projection ends higher", table, FROZEN, LEARNED, pairs=("seed", "optim.lr")
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
