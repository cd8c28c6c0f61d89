# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Transfer
# This notebook answers `sweeps/transfer.yaml`, after Table 6 of the paper: after fine-tuning on
# other data, self-supervised pre-training beats supervised pre-training and no pre-training.
# Run `python analysis/transfer.py runs/transfer`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/transfer"

# %%
from pathlib import Path

from stabkit.analyze.claims import together
from stabkit.analyze.plots import save
from stabkit.analyze.plots.levels import draw_levels
from stabkit.analyze.study import higher, levels, published, study_runs, study_table
from stabkit.sweep.grid import load_sweep

FACTORS = ["method.name", "train.steps"]
runs = study_runs(RUNS)
metrics = dict.fromkeys(name for run in runs for name in run.evals()["metric"].unique())
metric = next((name for name in metrics if name.startswith("finetune")), None)
if metric is None:
    raise SystemExit(f"{runs.path}: no run is fine-tuned; see the top of sweeps/transfer.yaml")
table = levels(runs.judged_by(metric), FACTORS)
paper_sweep = load_sweep(Path("sweeps/transfer.yaml"), "imagenet")
paper = published(paper_sweep.runs, FACTORS, paper_sweep.published.measure)
print(study_table(table, paper))

# %% [markdown]
# ## Claims

# %%
SCRATCH = {"train.steps": table["train.steps"].min()}
trained = table[table["train.steps"] > SCRATCH["train.steps"]]
MOCO = {"method.name": "moco", "train.steps": trained["train.steps"].max()}
SUPERVISED = MOCO | {"method.name": "supervised"}
claims = [
    higher("self-supervised pre-training ends higher than none", table, MOCO, SCRATCH),
    higher("self-supervised ends higher than supervised pre-training", table, MOCO, SUPERVISED),
    higher("supervised pre-training ends higher than none", table, SUPERVISED, SCRATCH),
]
print(together(claims))

# %%
figure = draw_levels(table, paper)
print(*save(figure, table, runs.path / "figures" / "levels"), sep="\n")
