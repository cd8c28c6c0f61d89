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
from stabkit import open_study

study = open_study("gradients", RUNS)
print(study.runs.summary())

# %% [markdown]
# ## Onset order
# Each row is a layer: in how many bursts of several layers it spiked (`events`), how many it led,
# with ties shared among the layers that were first together (`first`), how many chance alone would
# give it (`expected`: one in the number of layers), and its median lag after the first layer.

# %%
order = study.onset_order()
print(order.to_string(index=False) if len(order) else "no layer's gradient spiked")

# %% [markdown]
# ## Claims
# The paper shows one run: the lag is "a couple" of iterations in the text and "tens" in the
# caption. Only bursts with both layers are evidence about it, and a lag of one step is within the
# error of an onset. Whether bursts precede dips is judged by the dips that have a burst only
# shortly before them, against those that have one only shortly after. If nothing links the two,
# both are equally likely, even where bursts and dips are both likelier early in a run. Where there
# are several seeds of one setting, the bursts of the other seeds must not do as well.

# %%
first = "patch_embed"
depths = study.finished[0].signals("grad_norm").groupby("layer", observed=True)["depth"].first()
last = depths[depths.index.str.startswith("blocks.")].idxmax()
claims = [
    study.leads("the patch projection is the first layer of a burst more often than by chance"),
    study.later("the deepest layer of a burst spikes after its shallowest"),
    study.later(f"the last block ({last}) spikes after the patch projection", first, last),
    study.herald("dips come within 30 steps after a burst, not before one"),
]
print(study.judge(*claims))
print(study.herald_words())

# %%
study.draw("grad-norms")

# %%
study.draw("layer-map")

# %%
study.draw("event-zoom")

# %%
study.draw("onset-order")
