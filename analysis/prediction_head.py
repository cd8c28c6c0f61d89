# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Prediction head
# This notebook answers `sweeps/prediction_head.yaml`, after section 5.2 of the paper: a prediction
# head helps a little and is not needed.
# Run `python analysis/prediction_head.py runs/prediction_head`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/prediction_head"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["method.predictor"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/prediction_head.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        "training with a prediction head ends higher",
        table,
        {"method.predictor": True},
        {"method.predictor": False},
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
