"""Branch studies of real events whose cause is known: are the true cures called so, and no others?

All gradients are held back until step RELEASE (`fault.until`). Adam's second moment forgets how
large they are, and their return makes the accuracy dip. What acts on the second moment prevents
it: a beta2 of .9, a reset of the moments, StableAdamW. Another rounding, a kick, or other batches
do not.

The settings were chosen on seeds 0 to 9. Events are those of seeds from 200 on.
"""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.branch.begin import Beginnings
from stabkit.branch.control import prove_control
from stabkit.branch.judge.branch_table import branch_table
from stabkit.branch.study import QUICK, Branch, BranchStudy, config_of_branch, folder_of, plan_study
from stabkit.branch.study_file import write_plan
from stabkit.config import RunConfig, parse_overrides, read_base, validate, with_settings
from stabkit.rundir import RunDir
from stabkit.store.reader import open_run
from stabkit.train.loop import train

RELEASE, AFTER, EVERY = 120, 24, 4
SETTINGS = (
    *("data.image_size=16", "data.num_train=1000", "data.num_heldout=1000"),
    *("model.patch_size=8", "model.width=48", "model.depth=2", "model.heads=3"),
    *("method.name=supervised", "train.batch=64", f"train.steps={RELEASE + AFTER}"),
    *("optim.lr=3e-2", "optim.beta1=0.7", f"optim.warmup_steps={RELEASE}"),
    *("optim.schedule=constant", f"fault.until={RELEASE}", f"knn.every={EVERY}", "knn.bank=250"),
    *(f"runtime.checkpoint_every={RELEASE}", "runtime.keep_states=2", "runtime.flush_every=200"),
)
CURES = ("optim.beta2=0.9", "reset_moments", "stable_adamw")
NUDGE, KICK = "another ulp", "a kick"  # interventions that have no effect


Measured = tuple[dict[str, Any], pd.DataFrame | None]  # facts of a seed, and its branches


def parent_config(seed: int) -> RunConfig:
    """Return the settings of a run with a planted event."""
    settings = parse_overrides([*SETTINGS, f"seed={seed}"])
    return validate(RunConfig, with_settings(read_base("tiny"), settings), "planted")


def measure_event(seed: int, folder: Path) -> Measured:
    """Train a run and, if it dips at the release, all branches; all of it in this process.

    Returns facts of the run, and the table of branches. Leaves nothing in `folder`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    parent = folder / "parent"
    train(parent_config(seed), RunDir(parent))
    facts = {"seed": seed, **_dip(parent)}
    table = None
    if facts["depth"] > 0:
        size = QUICK
        study = plan_study(
            parent, str(RELEASE), size, (*CURES, "skip_batches"), [RELEASE], RELEASE + AFTER
        )
        table = _table(study, folder / "study", size.replicates).assign(seed=seed)
    shutil.rmtree(folder)
    return facts, table


def _dip(parent: Path) -> dict[str, float]:
    """Return onset and depth, in points, of the dip at the release; depth 0 without one."""
    evals = open_run(parent).evals("knn_heldout")
    dips = Diagnosis(open_run(parent)).accuracy.dips
    near = dips[(dips["onset"] - RELEASE).abs() <= 2 * EVERY]
    before = 100 * evals["value"][evals["step"] <= RELEASE].tail(3).median()
    lowest = 100 * evals["value"][evals["step"] > RELEASE].min()
    return {
        "before": before,
        "lowest": lowest,
        "onset": near["onset"].min() if len(near) else -1,
        "depth": 100 * near["depth"].max() if len(near) else 0.0,
    }


def _table(study: BranchStudy, folder: Path, replicates: int) -> pd.DataFrame:
    """Train every branch of a study, with replicates of NUDGE and KICK beside its own."""
    beginnings = Beginnings(study, folder)
    folder.mkdir(parents=True)
    beginnings.make_states(lambda _: None)
    kick = beginnings.measure_kick()
    count = len(study.branches)
    without = [
        Branch(f"{name}-{i}", "intervention", change, "kick", RELEASE, i,
               settings | {"branch.nudge": count + number * replicates + i})
        for number, (name, change, settings) in enumerate(
            [("ulp", NUDGE, {}), ("kick", KICK, {"branch.kick": kick})]
        )
        for i in range(replicates)
    ]  # fmt: skip
    study = study._replace(branches=(*study.branches, *without))
    beginnings.study = study
    write_plan(study, folder, kick)
    for branch in study.branches:
        config = config_of_branch(study, branch, kick)
        beginnings.make_folder(branch, kick)
        rundir = RunDir(folder / folder_of(branch, config))
        train(config, rundir)
        if branch.kind == "control":
            prove_control(study, branch.begin, rundir.path)
    return branch_table(folder)
