# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Momentum of the key encoder
# The answer to `sweeps/momentum.yaml`, after section 5.2 of the paper: a momentum encoder helps,
# and 0 works too.

# %% tags=["parameters"]
RUNS = "runs/momentum"

# %%
from stabkit.analyze.knn_plot import draw_knn, knn_table
from stabkit.analyze.study import beside_published, higher, levels, study_runs

runs = study_runs(RUNS)
table = levels(runs)

# %% [markdown]
# ## Beside the published values
# Linear probe of ViT-B/16 on ImageNet-1k, 300 epochs.

# %%
PUBLISHED = {0.0: 74.3, 0.9: 75.6, 0.99: 76.5, 0.999: 75.0}
print(beside_published(table, "method.momentum", PUBLISHED, "kNN level"))

# %% [markdown]
# ## Claims

# %%
claims = [
    higher(table, "method.momentum", 0.9, 0.0, "momentum 0.9 ends higher than none"),
    higher(table, "method.momentum", 0.99, 0.0, "momentum 0.99 ends higher than none"),
    higher(table, "method.momentum", 0.99, 0.999, "momentum 0.99 ends higher than 0.999"),
]
print("\n".join(str(claim) for claim in claims))

# %%
figure = draw_knn(knn_table(runs))
