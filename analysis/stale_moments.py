# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Stale moments
# `sweeps/stale_moments.yaml` plants a cause of instability at a known step: a positive control for
# the detectors. Do they find the dip, its onset, and the layer in which it began?
# Run `python analysis/stale_moments.py runs/stale_moments`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/stale_moments"

# %%
import pandas as pd

from stabkit import open_study
from stabkit.analyze.claims import more_events
from stabkit.analyze.counts import Counts
from stabkit.analyze.order import leads

study = open_study("stale_moments", RUNS, ["fault.until"])
every = study.runs.diagnoses()
settings = next(run.settings for run in every if run.settings["fault.until"])
release, first = settings["fault.until"], settings["fault.first"]
runs = [run for run in every if run.evals()["step"].max() > release]
planted = [run for run in runs if run.settings["fault.until"]]
print(f"{len(runs)} of {len(every)} runs have come past the release at step {release}")

# %% [markdown]
# ## What was found
# A dip is the one that was planted if it begins within two evaluations of the release. It is deep
# if it loses 5 points or more. A burst is the one that was planted if it begins within ten steps of
# the release.

# %%
rows = []
for run in runs:
    dips, bursts = run.dips, run.bursts
    near = dips[(dips["onset"] - release).abs() <= 2 * run.settings["knn.every"]]
    burst = bursts[(bursts["onset"] - release).abs() <= 10]
    rows.append({
        "fault": run in planted, "seed": run.settings["seed"], "onset": near["onset"].min(),
        "depth, points": 100 * near["depth"].max(), "deep": bool((near["depth"] >= 0.05).any()),
        "burst begins in": ", ".join(burst["first"]), "other dips": len(dips) - len(near),
    })  # fmt: skip
table = pd.DataFrame(rows).sort_values(["fault", "seed"])
print(table.round(1).to_string(index=False, na_rep="-"))
for fault, arm in table.groupby("fault"):
    print(
        f"{'with' if fault else 'without'} the fault, {len(arm)} runs: {arm['deep'].sum()} dip by "
        f"5 points or more at the release, {(arm['burst begins in'] == first).sum()} burst there "
        f"from {first} on, {(arm['other dips'] > 0).sum()} dip at another time"
    )

# %% [markdown]
# ## Claims

# %%
without, with_fault = (Counts(arm["deep"].to_numpy()) for _, arm in table.groupby("fault"))
verdicts = study.judge(
    more_events("runs dip at the release more often than without the fault", with_fault, without),
    leads(f"the burst at the release begins in {first}", planted),
)
print(verdicts)

# %%
study.draw("knn")

# %%
study.draw("grad-norms")

# %%
study.draw("event-zoom")
