# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Frameworks
# The answer to `sweeps/frameworks.yaml`, after Figure 6 and Table 4 of the paper: every framework
# is unstable with a ViT, and freezing the patch projection helps all of them.

# %% tags=["parameters"]
RUNS = "runs/frameworks"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs, patch projection frozen.

# %%
PUBLISHED = {"moco": 76.5, "simclr": 73.9, "byol": 73.9, "swav": 71.6}
print(beside_published(table, "method.name", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = []
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
