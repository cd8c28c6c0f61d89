# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Position embedding
# The answer to `sweeps/position_embedding.yaml`, after Table 2 of the paper: positions matter
# little to a ViT trained this way.

# %% tags=["parameters"]
RUNS = "runs/position_embedding"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs.

# %%
PUBLISHED = {"sincos": 76.5, "learned": 76.1, "none": 74.9}
print(beside_published(table, "model.positions", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        table,
        "model.positions",
        "sincos",
        "learned",
        "fixed sin-cos positions end higher than learned ones",
    ),
    higher(
        table, "model.positions", "sincos", "none", "fixed sin-cos positions end higher than none"
    ),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
