# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Position embedding
# This notebook answers `sweeps/position_embedding.yaml`, after section 5.2 of the paper: positions
# matter little to a ViT trained this way.
# Run `python analysis/position_embedding.py runs/position_embedding`, or open it in Jupyter.

# %% tags=["parameters"]
RUNS = "runs/position_embedding"

# %%
from stabkit import open_study

study = open_study("position_embedding", RUNS, ["model.positions"])
print(study)

# %% [markdown]
# ## Claims

# %%
fixed, learned, none = ({"model.positions": name} for name in ("sincos", "learned", "none"))
claims = [
    study.higher("fixed sin-cos positions end higher than learned ones", fixed, learned),
    study.higher("fixed sin-cos positions end higher than none", fixed, none),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
