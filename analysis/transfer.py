# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Transfer
# This notebook answers `sweeps/transfer.yaml`, after Table 6 of the paper: after fine-tuning on
# other data, self-supervised pre-training beats supervised pre-training and no pre-training.
# Run `python analysis/transfer.py runs/transfer`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/transfer"

# %%
from stabkit import open_study

study = open_study("transfer", RUNS, ["method.name", "train.steps"], metric="finetune")
print(study)

# %% [markdown]
# ## Claims

# %%
scratch, *_, trained = study.ends("train.steps")
moco, supervised = ({"method.name": name} | trained for name in ("moco", "supervised"))
claims = [
    study.higher("self-supervised pre-training ends higher than none", moco, scratch),
    study.higher("self-supervised ends higher than supervised pre-training", moco, supervised),
    study.higher("supervised pre-training ends higher than none", supervised, scratch),
]
print(study.judge(*claims))

# %%
study.draw("levels")
