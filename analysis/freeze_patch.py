# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # The patch projection
# This notebook answers `sweeps/freeze_patch.yaml`, after section 4.2 of the paper: a frozen random
# patch projection helps, BN or WeightNorm on it does not help, and clipping its gradient helps.
# Run `python analysis/freeze_patch.py runs/freeze_patch`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/freeze_patch"

# %%
from stabkit import open_study

study = open_study(
    "freeze_patch", RUNS, ["model.freeze_patch_embed", "model.patch_norm", "optim.clip"]
)
print(study)

# %% [markdown]
# ## Claims

# %%
plain = {"model.freeze_patch_embed": False, "model.patch_norm": "none", "optim.clip": "none"}
frozen, clipped = plain | {"model.freeze_patch_embed": True}, plain | {"optim.clip": "patch_embed"}
bn, weight = plain | {"model.patch_norm": "batch"}, plain | {"model.patch_norm": "weight"}
claims = [
    study.higher("frozen ends higher than learned", frozen, plain),
    study.higher("clipped ends higher than learned", clipped, plain),
    study.higher("BN ends higher than learned (paper: no help)", bn, plain),
    study.higher("WeightNorm ends higher than learned (paper: no help)", weight, plain),
    study.dip_more("learned dips more often than frozen", plain, frozen),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
