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
from stabkit import open_study

study = open_study("training_length", RUNS, ["model.name", "train.steps"])
print(study)

# %% [markdown]
# ## Claims

# %%
shortest, *_, second, longest = study.ends("train.steps")
claims = [
    study.higher("the longest training ends higher than the shortest", longest, shortest),
    study.higher("the longest training ends higher than the second longest", longest, second),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
