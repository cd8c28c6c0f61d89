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
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import dip_more, higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["train.batch"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/batch_size.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims
# Dips are counted per image outside of dips, not per step. The best batch size is chosen on the
# same runs, which favors the second claim.

# %%
ends = [{"train.batch": value} for value in sorted(table["train.batch"].unique())]
means = table.groupby("train.batch")["level"].mean()
best = {"train.batch": means.iloc[:-1].idxmax()}
per_image = table.assign(exposure=table["exposure"] * table["train.batch"])
claims = [
    higher("the second largest batch ends higher than the largest", table, ends[-2], ends[-1]),
    higher("the best of the smaller batches ends higher than the largest", table, best, ends[-1]),
    dip_more("the largest batch dips more often than the smallest", per_image, ends[-1], ends[0]),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
