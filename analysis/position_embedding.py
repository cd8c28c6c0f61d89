# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Position embedding
# This notebook answers `sweeps/position_embedding.yaml`, after section 5.2 of the paper: positions
# matter little to a ViT trained this way.
# Run `python analysis/position_embedding.py runs/position_embedding`, or open it in Jupyter.

# %% tags=["parameters"]
RUNS = "runs/position_embedding"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.positions"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/position_embedding.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        "fixed sin-cos positions end higher than learned ones",
        table,
        {"model.positions": "sincos"},
        {"model.positions": "learned"},
    ),
    higher(
        "fixed sin-cos positions end higher than none",
        table,
        {"model.positions": "sincos"},
        {"model.positions": "none"},
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
