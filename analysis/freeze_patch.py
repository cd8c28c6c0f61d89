# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # The patch projection
# This notebook answers `sweeps/freeze_patch.yaml`, after section 4.2 of the paper: a frozen random
# patch projection helps, BN or WeightNorm on it does not help, and clipping its gradient helps.
# Run `python analysis/freeze_patch.py runs/freeze_patch`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/freeze_patch"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import draw, save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import dip_more, higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["model.freeze_patch_embed", "model.patch_norm", "optim.clip"]
runs = study_runs(RUNS)
table = levels(runs, FACTORS)
paper_sweep = load_sweep(Path("sweeps/freeze_patch.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
PLAIN = {"model.freeze_patch_embed": False, "model.patch_norm": "none", "optim.clip": "none"}
FROZEN = PLAIN | {"model.freeze_patch_embed": True}
BN, WEIGHT = PLAIN | {"model.patch_norm": "batch"}, PLAIN | {"model.patch_norm": "weight"}
CLIPPED = PLAIN | {"optim.clip": "patch_embed"}
claims = [
    higher("frozen ends higher than learned", table, FROZEN, PLAIN),
    higher("clipped ends higher than learned", table, CLIPPED, PLAIN),
    higher("BN ends higher than learned (paper: no help)", table, BN, PLAIN),
    higher("WeightNorm ends higher than learned (paper: no help)", table, WEIGHT, PLAIN),
    dip_more("learned dips more often than frozen", table, PLAIN, FROZEN),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
print(*draw("knn", runs, runs.path / "figures"), sep="\n")
