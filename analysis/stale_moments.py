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
import numpy as np
import pandas as pd

from stabkit.analyze.claims import more_events, together
from stabkit.analyze.counts import Counts
from stabkit.analyze.order import leads
from stabkit.analyze.plots import draw
from stabkit.analyze.study import study_runs

runs = study_runs(RUNS)
planted = [run for run in runs if run.settings["fault.until"]]
healthy = [run for run in runs if not run.settings["fault.until"]]
release = planted[0].settings["fault.until"]
first = planted[0].settings["fault.first"]

# %% [markdown]
# ## What was found
# A dip counts if it is 5 points deep or more and begins within two evaluations of the release. A
# burst counts if it begins within ten steps of it.

# %%
rows = []
for run in [*healthy, *planted]:
    dips, bursts = run.dips, run.bursts
    near = dips[(dips["onset"] - release).abs() <= 2 * run.settings["knn.every"]]
    row = {"seed": run.settings["seed"], "fault": run in planted, "dip": len(near) > 0}
    row |= {"deep": bool((near["depth"] >= 0.05).any())}
    row |= {"onset": near["onset"].min(), "depth, points": 100 * near["depth"].max()}
    row |= {"other dips": len(dips) - len(near)}
    row |= {"burst begins in": ", ".join(bursts[(bursts["onset"] - release).abs() <= 10]["first"])}
    rows.append(row)
table = pd.DataFrame(rows)
print(table.round(1).to_string(index=False, na_rep="-"))
for fault, arm in table.groupby("fault"):
    begins = (arm["burst begins in"] == first).sum()
    print(
        f"{'with' if fault else 'without'} the fault: {arm['deep'].sum()} of {len(arm)} dip by 5 "
        f"points or more at the release ({arm['dip'].sum()} at all), {begins} burst from {first}, "
        f"{(arm['other dips'] > 0).sum()} dip elsewhere"
    )

# %% [markdown]
# ## Claims

# %%
with_fault, without = (Counts(np.array(table[table["fault"] == f]["deep"])) for f in (True, False))
claims = [
    more_events("runs dip at the release more often than without the fault", with_fault, without),
    leads("the burst at the release begins in the patch projection", planted),
]
print(together(claims))

# %%
for name in ("knn", "grad-norms", "event-zoom"):
    print(*draw(name, runs, runs.path / "figures"), sep="\n")
