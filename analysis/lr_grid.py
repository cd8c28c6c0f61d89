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
from stabkit import open_study

study = open_study("lr_grid", RUNS, ["model.freeze_patch_embed", "optim.lr"])
print(study)

# %% [markdown]
# ## Claims

# %%
learned, frozen = study.ends("model.freeze_patch_embed")
smallest, *_, largest = (learned | rate for rate in study.ends("optim.lr"))
rate = f"{largest['optim.lr']:g}"
claims = [
    study.dip_more(
        f"learned: the largest lr ({rate}) dips more often than the smallest", largest, smallest
    ),
    study.dip_more(
        "a learned patch projection dips more often than a frozen one", learned, frozen,
        within=["optim.lr"],
    ),
    study.higher(
        "a frozen patch projection ends higher", frozen, learned, pairs=("seed", "optim.lr")
    ),
]  # fmt: skip
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
