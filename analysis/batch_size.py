# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Batch size
# The answer to `sweeps/batch_size.yaml`, after Figure 1 of the paper: large batches dip, and end
# lower although nothing fails. The same number of images is seen at every size.

# %% tags=["parameters"]
RUNS = "runs/batch_size"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 100 epochs, base lr 1e-4, linear rule.

# %%
PUBLISHED = {1024: 71.5, 2048: 72.6, 4096: 72.2, 6144: 69.7}
print(beside_published(table, "train.batch", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = []
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
