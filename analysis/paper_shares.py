# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Dips in mid-training, in the paper's shares of the run
# This notebook answers `sweeps/paper_shares.yaml`: does the larger learning rate dip in
# mid-training (paper: Figures 2 and 4), does the patch projection herald it, and does freezing
# prevent it?
# Run `python analysis/paper_shares.py runs/paper_shares`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/paper_shares"

# %%
import numpy as np
import pandas as pd

from stabkit import open_study

study = open_study("paper_shares", RUNS, ["model.freeze_patch_embed", "optim.lr"])
print(study)

# %% [markdown]
# ## Events
# An event is a dip of 3 points or more that begins after a fifth of the run: after step 120. It is
# heralded if a burst or swell starts in the patch projection, up to 30 steps before it or 10 after.

# %%
dips = study.finished.dips()
events = dips[(dips["onset"] >= 120) & (dips["depth"] >= 0.03)]
rises = pd.concat([study.finished.bursts(), study.finished.swells()])
rises = rises[rises["first"].str.contains("patch_embed", na=False)]


def is_heralded(run: str, onset: int) -> bool:
    late = rises.loc[rises["run"] == run, "onset"] - onset
    return bool(late.between(-30, 10).any())


near = [is_heralded(*dip) for dip in zip(events["run"], events["onset"], strict=True)]
heralded = events[np.array(near, dtype=bool)]
print(study.shares({"a dip in mid-training": events, "a heralded one": heralded}))
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
    study.higher("what the larger lr costs: the smaller ends higher (learned)", half, whole),
    study.higher("what freezing brings: frozen runs end higher (larger lr)", cured, whole),
]
print(study.judge(*claims))

# %%
study.draw("knn")

# %%
study.draw("event-zoom")
