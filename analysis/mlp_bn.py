# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # BN in the heads
# The answer to `sweeps/mlp_bn.yaml`, after section 5.2 of the paper: BN in the MLP heads helps,
# and is not what makes contrastive learning work.

# %% tags=["parameters"]
RUNS = "runs/mlp_bn"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs.

# %%
PUBLISHED = {"batch": 76.5, "none": 74.4}
print(beside_published(table, "method.head_norm", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(
        table, "method.head_norm", "batch", "none", "heads with BN end higher than heads without"
    ),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
