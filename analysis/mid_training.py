# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Dips in mid-training
# `sweeps/mid_training.yaml` trains at the paper's ratios with batch 512: does the larger learning
# rate dip in mid-training (paper: Figures 2 and 4), and does a frozen patch projection prevent it?
# Run `python analysis/mid_training.py runs/mid_training`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/mid_training"

# %%
import pandas as pd

from stabkit import open_study
from stabkit.analyze.claims import more_events
from stabkit.analyze.counts import Counts

study = open_study("mid_training", RUNS, ["model.freeze_patch_embed", "optim.lr"])
print(study)

# %% [markdown]
# ## Events
# An event is a dip of 3 points or more that begins after a fifth of the run.

# %%
every = study.runs.diagnoses()
runs = [run for run in every if (status := run.run.status()) and status.state == "done"]
print(f"{len(runs)} of {len(every)} runs have come to their end")
rows = []
for run in runs:
    dips = run.dips
    late = dips["onset"] >= 0.2 * run.settings["train.steps"]
    events = dips[late & (dips["depth"] >= 0.03)]
    rows.append({
        "frozen": run.settings["model.freeze_patch_embed"], "lr": run.settings["optim.lr"],
        "seed": run.settings["seed"], "events": len(events),
        "begin": ", ".join(events["onset"].astype(str)),
        "depth, points": round(100 * events["depth"].max(), 1),
        "end": ", ".join(events["severity"]),
        "bursts": len(run.bursts),
    })  # fmt: skip
table = pd.DataFrame(rows).sort_values(["frozen", "lr", "seed"])
print(table.to_string(index=False, na_rep="-"))

# %% [markdown]
# ## Claims


# %%
def having_events(frozen: bool, lr: float) -> Counts:
    arm = table[(table["frozen"] == frozen) & (table["lr"] == lr)]
    return Counts((arm["events"] > 0).to_numpy())


half, whole = sorted(table["lr"].unique())
learned, frozen = having_events(False, whole), having_events(True, whole)
verdicts = study.judge(
    more_events(
        f"learned: runs at lr {whole:g} dip in mid-training more often than at half of it",
        learned, having_events(False, half),
    ),
    more_events(
        f"lr {whole:g}: runs with a learned projection dip in mid-training more often", learned,
        frozen,
    ),
)  # fmt: skip
print(verdicts)

# %%
study.draw("knn")

# %%
study.draw("grad-norms")

# %%
study.draw("event-zoom")
