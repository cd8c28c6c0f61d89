# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Batch size
# This notebook answers `sweeps/batch_size.yaml`, after Figure 1 of the paper: large batches dip and
# end lower although nothing fails. Every batch size sees the same number of images, at a rate that
# grows with the size.
# Run `python analysis/batch_size.py runs/batch_size`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/batch_size"

# %%
from stabkit import open_study

study = open_study("batch_size", RUNS, ["train.batch"])
print(study)

# %% [markdown]
# ## Claims
# Dips are counted per image outside of dips, not per step. The best batch size is chosen on the
# same runs, which favors the second claim.

# %%
smallest, *_, second, largest = study.ends("train.batch")
means = study.table.groupby("train.batch")["level"].mean()
best = {"train.batch": means.iloc[:-1].idxmax()}
claims = [
    study.higher("the second largest batch ends higher than the largest", second, largest),
    study.higher("the best of the smaller batches ends higher than the largest", best, largest),
    study.dip_more(
        "the largest batch dips more often than the smallest", largest, smallest,
        weight="train.batch",
    ),
]  # fmt: skip
print(study.judge(*claims))

# %%
study.draw("levels")

# %%
study.draw("knn")
