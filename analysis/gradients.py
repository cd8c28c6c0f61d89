# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Gradients
# The answer to `sweeps/gradients.yaml`, after Figure 4 of the paper: gradients spike first in the
# patch projection, then in the last layers, and a dip of kNN accuracy follows.
# Run `python analysis/gradients.py runs/gradients`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/gradients"

# %%
import pandas as pd

from stabkit.analyze.claims import mean_above_zero, more_events, together
from stabkit.analyze.events import bursts, dips, spikes
from stabkit.analyze.plots import draw
from stabkit.analyze.study import study_runs
from stabkit.analyze.summary import summary

LEAD = 30  # steps before a dip in which a burst counts as its herald
GAP = 10  # steps between spikes of one burst
runs = study_runs(RUNS)
print(summary(runs))

# %% [markdown]
# ## Onsets
# One row a burst: the step at which the patch projection and the last block spiked, if they did.

# %%
rows = []
for run in runs:
    found = spikes(run)
    blocks = [name for name in run.signals()["layer"].unique() if name.startswith("blocks.")]
    for burst in bursts(found, GAP).to_dict("records"):
        inside = found[found["onset"].between(burst["onset"], burst["end"])]
        onset = inside.groupby("layer", observed=True)["onset"].min()
        row = {"run": run.name, "onset": burst["onset"], "layers": burst["layers"]}
        row |= {"first": burst["first"], "patch_embed": onset.get("patch_embed")}
        rows.append(row | {"last_block": onset.get(blocks[-1])})
columns = ["run", "onset", "layers", "first", "patch_embed", "last_block"]
onsets = pd.DataFrame(rows, columns=columns)
print(onsets.to_string(index=False) if len(onsets) else "no layer's gradient spiked")

# %% [markdown]
# ## Claims
# Published as a figure of one run: the lag is "a couple" of iterations in the text and "tens" in
# the caption. A burst with no spike of the last block says nothing about the lag.

# %%
both = onsets.dropna(subset=["patch_embed", "last_block"])
first = int(onsets["first"].str.contains("patch_embed").sum())
heralded = total = 0
for run in runs:
    starts = onsets.loc[onsets["run"] == run.name, "onset"]
    for dip in dips(run).to_dict("records"):
        total += 1
        heralded += bool(starts.between(dip["onset"] - LEAD, dip["onset"]).any())
claims = [
    more_events(
        "bursts begin in the patch projection more often than not", first, len(onsets) - first
    ),
    mean_above_zero(
        "the last block spikes after the patch projection",
        (both["last_block"] - both["patch_embed"]).tolist(),
        "steps",
    ),
    more_events(f"a dip has a burst in the {LEAD} steps before it", heralded, total - heralded),
]
print(together(claims))

# %%
print(*draw("grad-norms", runs, runs.path / "figures"), sep="\n")
