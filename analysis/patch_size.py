# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Patch size
# This notebook answers `sweeps/patch_size.yaml`, after Table 1 of the paper: smaller patches cost
# more and end higher.
# Run `python analysis/patch_size.py runs/patch_size`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/patch_size"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.patch_size", "model.mlp_norm"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/patch_size.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
ends = [{"model.patch_size": value} for value in sorted(table["model.patch_size"].unique())]
claims = [
    higher("the smallest patches end higher than the largest", table, ends[0], ends[-1]),
    higher("the smallest patches end higher than the next larger", table, ends[0], ends[1]),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
