# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Class token
# This notebook answers `sweeps/class_token.yaml`, after section 5.2 of the paper: the class token
# is not needed, but the last LN must not come before the pooling.
# Run `python analysis/class_token.py runs/class_token`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/class_token"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.pool"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/class_token.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        "the class token ends higher than LN then mean",
        table,
        {"model.pool": "token"},
        {"model.pool": "norm_then_mean"},
    ),
    higher(
        "the mean without LN ends higher than LN then mean",
        table,
        {"model.pool": "mean"},
        {"model.pool": "norm_then_mean"},
    ),
    higher(
        "the class token ends higher than the mean without LN",
        table,
        {"model.pool": "token"},
        {"model.pool": "mean"},
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
