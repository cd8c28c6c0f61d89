# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # LAMB
# The answer to `sweeps/optimizer.yaml`, after Figure 3 of the paper: LAMB trains without dips,
# but beyond its best rate the curve sags.

# %% tags=["parameters"]
RUNS = "runs/optimizer"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 100 epochs, batch 4096, LAMB, weight decay 1e-3.

# %%
PUBLISHED = {0.0005: 72.5, 0.0006: 70.9, 0.0008: 66.5}
print(beside_published(table, "optim.lr", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = []
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
