# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # LAMB
# This notebook answers `sweeps/optimizer.yaml`, after Figure 3 of the paper: LAMB trains without
# dips, but beyond its best rate the curve sags in mid-training and ends low.
# Run `python analysis/optimizer.py runs/optimizer`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/optimizer"

# %%
from stabkit import open_study

study = open_study("optimizer", RUNS, ["optim.lr"])
print(study)

# %% [markdown]
# ## Claims
# The sag is the distance from a curve's best level down to its end.

# %%
smallest, *_, largest = study.ends("optim.lr")
claims = [
    study.higher("the smallest lr ends higher than the largest", smallest, largest),
    study.higher("the largest lr sags more than the smallest", largest, smallest, column="sag"),
    study.dip_more(
        "the largest lr dips more often than the smallest (paper: no)", largest, smallest
    ),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
