# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Class token
# The answer to `sweeps/class_token.yaml`, after Table 3 of the paper: the class token is not
# needed, but the last LN must not stand before the pooling.

# %% tags=["parameters"]
RUNS = "runs/class_token"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs.

# %%
PUBLISHED = {"token": 76.5, "norm_then_mean": 69.7, "mean": 76.3}
print(beside_published(table, "model.pool", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        table,
        "model.pool",
        "token",
        "norm_then_mean",
        "a class token ends higher than LN then mean",
    ),
    higher(
        table,
        "model.pool",
        "mean",
        "norm_then_mean",
        "the mean without LN ends higher than LN then mean",
    ),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
