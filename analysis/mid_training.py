# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Dips in mid-training
# This notebook answers `sweeps/mid_training.yaml`, which trains with the paper's long warm-up and
# batch 512: does the larger learning rate dip in mid-training (paper: Figures 2 and 4), and does a
# frozen patch projection prevent it?
# Run `python analysis/mid_training.py runs/mid_training`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/mid_training"

# %%
from stabkit import open_study

study = open_study("mid_training", RUNS, ["model.freeze_patch_embed", "optim.lr"])
print(study)

# %% [markdown]
# ## Events
# An event is a dip of 3 points or more that begins after a fifth of the run: after step 120.

# %%
dips = study.finished.dips()
events = dips[(dips["onset"] >= 120) & (dips["depth"] >= 0.03)]
print(study.shares({"a dip in mid-training": events}))
print(events[["run", "onset", "recovery", "depth", "severity"]].to_string(index=False))

# %% [markdown]
# ## Claims

# %%
learned, frozen = study.ends("model.freeze_patch_embed")
half, whole = (learned | rate for rate in study.ends("optim.lr"))
cured = whole | frozen
claims = [
    study.more_runs("learned: more runs dip at the larger lr", events, whole, half),
    study.more_runs("larger lr: more runs dip if the projection is learned", events, whole, cured),
]
print(study.judge(*claims))

# %% [markdown]
# ## The second test
# It was written down before seeds 20 to 24 were run. Do the seeds of a setting share a fall? Does
# the mean of ten evaluations fall further at the larger rate, from its peak in the warm-up to its
# low before step 420? Does freezing make that fall smaller? What do both cost at the end?


# %%
def fall(run: str) -> float:
    knn = study.runs[run].evals("knn_heldout").set_index("step")["value"].rolling(10).mean()
    return float(100 * (knn.loc[:240].max() - knn.loc[240:420].min()))


print(*study.shared_falls() or ["no setting has a fall that seeds share"], sep="\n")
study.table["fall"] = study.table["run"].map(fall)
print(study.table[["arm", "seed", "fall", "level"]].round(1).to_string(index=False))
claims = [
    study.higher("learned: falls are larger at the larger lr", whole, half, "fall"),
    study.higher("larger lr: falls are smaller with a frozen projection", whole, cured, "fall"),
]
print(study.judge(*claims))

# %%
claims = [
    study.higher("what the larger lr costs: the smaller ends higher (learned)", half, whole),
    study.higher("what freezing brings: frozen runs end higher (larger lr)", cured, whole),
]
print(study.judge(*claims))

# %%
study.draw("knn")

# %%
study.draw("event-zoom")
