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
from stabkit import open_study

study = open_study("momentum", RUNS, ["method.momentum"])
print(study)

# %% [markdown]
# ## Claims
# The best momentum depends on the number of steps: in a run of 200 steps, an average over 1000
# steps hardly moves.

# %%
none, short, usual, long = ({"method.momentum": value} for value in (0.0, 0.9, 0.99, 0.999))
claims = [
    study.higher("momentum 0.9 ends higher than none", short, none),
    study.higher("momentum 0.99 ends higher than none", usual, none),
    study.higher("momentum 0.99 ends higher than 0.9", usual, short),
    study.higher("momentum 0.99 ends higher than 0.999", usual, long),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
