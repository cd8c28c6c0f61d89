# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Frameworks
# This notebook answers `sweeps/frameworks.yaml`, after Figure 6 of the paper: every framework
# trains unstably with a ViT, and freezing the patch projection helps all of them.
# Run `python analysis/frameworks.py runs/frameworks`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/frameworks"

# %%
from stabkit import open_study

study = open_study("frameworks", RUNS, ["method.name", "model.freeze_patch_embed"])
print(study)

# %% [markdown]
# ## Claims

# %%
learned, frozen = study.ends("model.freeze_patch_embed")
claims = [
    study.higher(f"{name}: a frozen patch projection ends higher", here | frozen, here | learned)
    for name in study.table["method.name"].unique()
    if (here := {"method.name": name})
]
claims += [
    study.higher(
        "a frozen patch projection ends higher, over all frameworks", frozen, learned,
        pairs=("seed", "method.name"),
    ),
    study.dip_more(
        "a learned patch projection dips more often than a frozen one", learned, frozen,
        within=["method.name"],
    ),
]  # fmt: skip
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
