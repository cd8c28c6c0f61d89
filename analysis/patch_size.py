# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Patch size
# The answer to `sweeps/patch_size.yaml`, after Table 1 of the paper: smaller patches cost more
# and end higher.

# %% tags=["parameters"]
RUNS = "runs/patch_size"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B on ImageNet-1k, 300 epochs; with patch 7, BN in the MLP blocks (ViT-BN).

# %%
PUBLISHED = {16: 76.7, 7: 79.5}
print(beside_published(table, "model.patch_size", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = []
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
