# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Prediction head
# The answer to `sweeps/prediction_head.yaml`, after section 5.2 of the paper: a prediction head
# helps a little.

# %% tags=["parameters"]
RUNS = "runs/prediction_head"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs.

# %%
PUBLISHED = {True: 76.5, False: 75.5}
print(beside_published(table, "method.predictor", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(table, "method.predictor", True, False, "training with a prediction head ends higher"),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
