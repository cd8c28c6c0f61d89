# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Patch size
# This notebook answers `sweeps/patch_size.yaml`, after Table 1 of the paper: smaller patches cost
# more and end higher.
# Run `python analysis/patch_size.py runs/patch_size`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/patch_size"

# %%
from stabkit import open_study

study = open_study("patch_size", RUNS, ["model.patch_size", "model.mlp_norm"])
print(study)

# %% [markdown]
# ## Claims

# %%
sizes = study.ends("model.patch_size")
claims = [
    study.higher("the smallest patches end higher than the largest", sizes[0], sizes[-1]),
    study.higher("the smallest patches end higher than the next larger", sizes[0], sizes[1]),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
