# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Training length
# This notebook answers `sweeps/training_length.yaml`, after section 5.2 of the paper: longer
# training helps, and it helps smaller models more.
# Run `python analysis/training_length.py runs/training_length`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/training_length"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.name", "train.steps"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/training_length.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
ends = [{"train.steps": value} for value in sorted(table["train.steps"].unique())]
claims = [
    higher("the longest training ends higher than the shortest", table, ends[-1], ends[0]),
    higher("the longest training ends higher than the second longest", table, ends[-1], ends[-2]),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
