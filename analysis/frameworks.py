# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Frameworks
# This notebook answers `sweeps/frameworks.yaml`, after Figure 6 of the paper: every framework
# trains unstably with a ViT, and freezing the patch projection helps all of them.
# Run `python analysis/frameworks.py runs/frameworks`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/frameworks"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import dip_more, higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["method.name", "model.freeze_patch_embed"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/frameworks.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
LEARNED, FROZEN = {"model.freeze_patch_embed": False}, {"model.freeze_patch_embed": True}
gains = [
    higher(f"{name}: a frozen patch projection ends higher", rows, FROZEN, LEARNED)
    for name, rows in table.groupby("method.name")
]
claims = [
    *gains,
    higher(
        "a frozen patch projection ends higher, over all frameworks",
        table,
        FROZEN,
        LEARNED,
        pairs=("seed", "method.name"),
    ),
    dip_more(
        "a learned patch projection dips more often than a frozen one",
        table,
        LEARNED,
        FROZEN,
        within=["method.name"],
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
