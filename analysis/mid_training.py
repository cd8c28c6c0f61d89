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
import pandas as pd

from stabkit import open_study
from stabkit.analyze.claims import from_comparison, more_events
from stabkit.analyze.compare import compare_pairs, in_words
from stabkit.analyze.counts import Counts
from stabkit.analyze.shared_falls import shared_falls, shared_in_words

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


half, whole = sorted({run.settings["optim.lr"] for run in every})
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
# ## The second test
# It was written down before seeds 20 to 24 were run. Do the seeds of a setting share a fall? Does
# the mean of ten evaluations fall further at the larger rate, from its peak in the warm-up to its
# low before step 420? Does freezing make that fall smaller? What do both cost at the end?

# %%
print("\n".join(shared_in_words(shared_falls(every))) or "no setting has a fall that seeds share")

# %%
falls, levels = {}, {}
for run in runs:
    key = run.settings["model.freeze_patch_embed"], run.settings["optim.lr"]
    knn = run.evals("knn_heldout")
    means = 100 * knn.set_index("step")["value"].rolling(10).mean()
    fall = means.loc[:240].max() - means.loc[240:420].min()
    falls.setdefault(key, {})[run.settings["seed"]] = fall
    levels.setdefault(key, {})[run.settings["seed"]] = 100 * run.level
fall, level = pd.DataFrame(falls).round(1), pd.DataFrame(levels).round(1)
fall.columns = level.columns = [f"{'frozen' if key[0] else 'learned'}, {key[1]:g}" for key in falls]
print(f"falls, points\n{fall}\n\nlevels at the end, %\n{level}")
low, high, cured = (f"{arm}, {lr:g}" for arm, lr in
                    [("learned", half), ("learned", whole), ("frozen", whole)])  # fmt: skip
claims = []
if {low, high} <= set(fall):
    claims.append(from_comparison(f"learned: falls are larger at lr {whole:g} than at half of it",
                                  compare_pairs(fall[low], fall[high]), "points"))  # fmt: skip
    print(in_words(compare_pairs(level[low], level[high]), low, high))
if {high, cured} <= set(fall):
    claims.append(from_comparison(f"lr {whole:g}: falls are smaller with a frozen projection",
                                  compare_pairs(fall[cured], fall[high]), "points"))  # fmt: skip
    print(in_words(compare_pairs(level[high], level[cured]), high, cured))
print(study.judge(*claims))

# %%
study.draw("knn")

# %%
study.draw("grad-norms")

# %%
study.draw("event-zoom")
