# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Learning rate x frozen patch projection
# The answer to `sweeps/lr_grid.yaml`, after Figures 2 and 5 of the paper: does a larger learning
# rate train less stably, and does a frozen random patch projection help? Run it as a script,
# `python analysis/lr_grid.py runs/lr_grid`, or open it in Jupyter with jupytext.

# %% tags=["parameters"]
RUNS = "runs/lr_grid"

# %%
import sys
from pathlib import Path

import stabkit
from stabkit.analyze.claims import mean_above_zero, more_events
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.summary import run_table

if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
    RUNS = sys.argv[1]
runs = stabkit.load(RUNS)

# %%
settings = runs.table()[["run", "optim.lr", "model.freeze_patch_embed"]]
table = run_table(runs).merge(settings, on="run")
# the level at the end: single evaluations are noisy, and a run may end inside a dip
table["level"] = [
    run.evals("knn_heldout")["value"].tail(20).median()
    for name in table["run"]
    for run in runs
    if run.name == name
]

# %% [markdown]
# ## Claims
# Published values (ViT-B/16, ImageNet, batch 4096, linear probe): learned projection 70.4, 72.2,
# 71.7 at base lr 0.5, 1.0, 1.5e-4; freezing gains 0.4, 0.6, 1.7 points.

# %%
learned = table[~table["model.freeze_patch_embed"]]
frozen = table[table["model.freeze_patch_embed"]]
low, high = learned["optim.lr"].min(), learned["optim.lr"].max()
dips_at = learned.groupby("optim.lr")["dips"].sum()
pairs = frozen.merge(learned, on=["optim.lr", "seed"], suffixes=("_frozen", "_learned"))
gains = 100 * (pairs["level_frozen"] - pairs["level_learned"])

claims = [
    more_events(
        f"the largest lr ({high:g}) dips more often than the smallest ({low:g})",
        int(dips_at[high]),
        int(dips_at[low]),
    ),
    more_events(
        "a learned patch projection dips more often than a frozen one",
        int(learned["dips"].sum()),
        int(frozen["dips"].sum()),
    ),
    mean_above_zero("a frozen patch projection ends higher", gains.tolist(), "points of kNN"),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
