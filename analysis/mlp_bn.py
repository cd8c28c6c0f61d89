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
from stabkit import open_study

study = open_study("mlp_bn", RUNS, ["method.head_norm"])
print(study)

# %% [markdown]
# ## Claims

# %%
batch, none = {"method.head_norm": "batch"}, {"method.head_norm": "none"}
claims = [study.higher("heads with BN end higher than heads without", batch, none)]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
