# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Gradients
# This notebook answers `sweeps/gradients.yaml`, after Figure 4 of the paper: gradients spike first
# in the patch projection, then in the last layers, and a dip of kNN accuracy follows.
# Run `python analysis/gradients.py runs/gradients`, or open it in Jupyter (jupytext).

# %% tags=["parameters"]
RUNS = "runs/gradients"

# %%
import numpy as np

from stabkit import event_association, onset_order
from stabkit.analyze.across_runs import bursts_and_dips, onsets
from stabkit.analyze.claims import from_interval, more_often, together
from stabkit.analyze.plots import draw
from stabkit.analyze.study import study_runs
from stabkit.analyze.summary import summary
from stabkit.detect import shallow_first

LEAD = 30  # steps before a dip in which a burst counts as its herald
runs = study_runs(RUNS)
print(summary(runs))

# %% [markdown]
# ## Onset order
# Each row is a layer: in how many bursts of several layers it spiked (`events`), how often it was
# among the first, how often chance alone would put it there, and its median lag after the first
# layer in steps.

# %%
joined = onsets(runs)
order = onset_order(joined)
print(order.to_string(index=False) if len(order) else "no layer's gradient spiked")

# %% [markdown]
# ## Claims
# The paper shows one run: the lag is "a couple" of iterations in the text and "tens" in the
# caption. Only bursts with both layers are evidence about it. Whether bursts precede dips is tested
# within runs, by two measures: the rate of dips soon after a burst over the rate elsewhere, and the
# coincidences compared with those of bursts moved to other places in the run.

# %%
layers = {layer for run in runs for layer in run.layers["layer"]}
blocks = sorted((name for name in layers if name.startswith("blocks.")), key=lambda x: int(x[7:]))
last = blocks[-1] if blocks else "blocks"
began = int((joined[joined["lag"] == 0]["layer"] == "patch_embed").sum())
lag = shallow_first(joined, "patch_embed", last)
anywhere = shallow_first(joined)
herald = event_association(bursts_and_dips(runs), LEAD)
with np.errstate(divide="ignore"):  # no dip after a burst is a rate of zero
    rates = np.log2([herald.hazard_ratio, herald.hazard_low, herald.hazard_high]).tolist()
claims = [
    more_often(
        "bursts begin in the patch projection more often than not",
        began,
        joined.groupby(["run", "burst"]).ngroups - began,
    ),
    more_often(
        "the shallowest layer of a burst spikes before its deepest", anywhere.before, anywhere.after
    ),
    from_interval(
        f"the last block ({last}) spikes after the patch projection",
        lag.lag,
        lag.low,
        lag.high,
        "steps (median)",
        lag.events,
        lag.p_value,
    ),
    from_interval(
        f"dips are likelier in the {LEAD} steps after a burst",
        *rates,
        "(log2 ratio of rates)",
        herald.effects,
        herald.p_value,
    ),
]
print(together(claims))
print(
    f"{herald.observed} of {herald.effects} dips have a burst in the {LEAD} steps before, "
    f"by chance {herald.expected:.2f} (p = {herald.p_value:.2g})"
)

# %%
for name in ("grad-norms", "layer-map", "event-zoom", "onset-order"):
    print(*draw(name, runs, runs.path / "figures"), sep="\n")
