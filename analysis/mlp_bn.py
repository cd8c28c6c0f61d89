# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # BN in the heads
# This notebook answers `sweeps/mlp_bn.yaml`, after section 5.2 of the paper: BN in the heads helps,
# but contrastive learning also works without it.
# Run `python analysis/mlp_bn.py runs/mlp_bn`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/mlp_bn"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["method.head_norm"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/mlp_bn.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        "heads with BN end higher than heads without",
        table,
        {"method.head_norm": "batch"},
        {"method.head_norm": "none"},
    ),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
