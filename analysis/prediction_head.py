# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Prediction head
# This notebook answers `sweeps/prediction_head.yaml`, after section 5.2 of the paper: a prediction
# head helps a little and is not needed.
# Run `python analysis/prediction_head.py runs/prediction_head`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/prediction_head"

# %%
from stabkit import open_study

study = open_study("prediction_head", RUNS, ["method.predictor"])
print(study)

# %% [markdown]
# ## Claims

# %%
without, with_head = study.ends("method.predictor")
claims = [study.higher("training with a prediction head ends higher", with_head, without)]
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
