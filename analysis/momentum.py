# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Momentum of the key encoder
# This notebook answers `sweeps/momentum.yaml`, after section 5.2 of the paper: a momentum encoder
# helps, but training also works without one.
# Run `python analysis/momentum.py runs/momentum`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/momentum"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["method.momentum"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/momentum.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims
# The best momentum depends on the number of steps: in a run of 200 steps, an average over 1000
# steps hardly moves.

# %%
claims = [
    higher(
        "momentum 0.9 ends higher than none",
        table,
        {"method.momentum": 0.9},
        {"method.momentum": 0.0},
    ),
    higher(
        "momentum 0.99 ends higher than none",
        table,
        {"method.momentum": 0.99},
        {"method.momentum": 0.0},
    ),
    higher(
        "momentum 0.99 ends higher than 0.9",
        table,
        {"method.momentum": 0.99},
        {"method.momentum": 0.9},
    ),
    higher(
        "momentum 0.99 ends higher than 0.999",
        table,
        {"method.momentum": 0.99},
        {"method.momentum": 0.999},
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
