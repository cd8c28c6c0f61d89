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
from stabkit import open_study

study = open_study("stale_moments", RUNS, ["fault.until"])
without, fault = study.ends("fault.until")
print(study)

# %% [markdown]
# ## What was found
# A dip is the one that was planted if it begins within two evaluations of the release. It is deep
# if it loses 5 points or more. A burst is the one that was planted if it begins within ten steps of
# the release.

# %%
release, runs = fault["fault.until"], study.finished
dips, bursts = runs.dips(), runs.bursts()
near = (dips["onset"] - release).abs() <= 2 * runs[0].settings["knn.every"]
deep = dips[near & (dips["depth"] >= 0.05)]
planted = bursts[(bursts["onset"] - release).abs() <= 10]
events = {
    "a dip by 5 points or more at the release": deep,
    "a burst there from the patch projection on": planted[planted["first"] == "patch_embed"],
    "a dip at another time": dips[~near],
}
print(study.shares(events))
print(deep[["run", "onset", "trough", "depth", "severity"]].to_string(index=False))

# %% [markdown]
# ## Claims

# %%
more = study.more_runs("more runs dip at the release than without the fault", deep, fault, without)
begin = study.leads("bursts begin in the patch projection", settings=fault)
print(study.judge(more, begin))

# %%
study.draw("knn")

# %%
study.draw("grad-norms")

# %%
study.draw("event-zoom")
