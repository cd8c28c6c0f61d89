# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Training length
# The answer to `sweeps/training_length.yaml`, after section 5.2 of the paper: longer training
# helps, the more the smaller the model.

# %% tags=["parameters"]
RUNS = "runs/training_length"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k.

# %%
PUBLISHED = {"300 epochs": 76.5, "600 epochs": 76.7}
print(beside_published(table, "train.steps", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = []
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
