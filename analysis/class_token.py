# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Class token
# This notebook answers `sweeps/class_token.yaml`, after section 5.2 of the paper: the class token
# is not needed, but the last LN must not come before the pooling.
# Run `python analysis/class_token.py runs/class_token`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/class_token"

# %%
from stabkit import open_study

study = open_study("class_token", RUNS, ["model.pool"])
print(study)

# %% [markdown]
# ## Claims

# %%
token, normed, mean = ({"model.pool": name} for name in ("token", "norm_then_mean", "mean"))
claims = [
    study.higher("the class token ends higher than LN then mean", token, normed),
    study.higher("the mean without LN ends higher than LN then mean", mean, normed),
    study.higher("the class token ends higher than the mean without LN", token, mean),
]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
