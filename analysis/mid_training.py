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
from stabkit.analyze.compare import compare_pairs, in_words
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

# %% [markdown]
# ## Seen afterwards
# This was not written down before the runs, so it is no test. How far does the mean of ten
# evaluations fall from its peak during the warm-up to its low before step 420? What does the larger
# rate cost at the end, and what does freezing gain there?

# %%
falls, levels = {}, {}
for run in runs:
    key = run.settings["model.freeze_patch_embed"], run.settings["optim.lr"]
    knn = run.evals("knn_heldout")
    means = 100 * knn.set_index("step")["value"].rolling(10).mean()
    falls.setdefault(key, []).append(means.loc[:240].max() - means.loc[240:420].min())
    levels.setdefault(key, {})[run.settings["seed"]] = 100 * run.level
for (is_frozen, lr), found in falls.items():
    arm = "frozen" if is_frozen else "learned"
    print(f"{arm}, lr {lr:g}: falls by {', '.join(f'{fall:.1f}' for fall in found)} points")
level = pd.DataFrame(levels)
if (True, whole) in level:
    print(in_words(compare_pairs(level[False, half], level[False, whole]), "2e-2", "4e-2"))
    print(in_words(compare_pairs(level[False, whole], level[True, whole]), "learned", "frozen"))

# %%
study.draw("knn")

# %%
study.draw("grad-norms")

# %%
study.draw("event-zoom")
