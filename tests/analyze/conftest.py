"""Runs made by hand, with planted dips and spikes at known places."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stabkit.analyze.diagnosis import Diagnoses, Diagnosis, diagnose
from stabkit.config import save_config
from stabkit.rundir import RunDir, Status
from stabkit.store.reader import load, open_run
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from tests.conftest import small_config

LAYERS = ["patch_embed", "blocks.0", "blocks.1", "norm"]
STEPS, EVERY, SAMPLES = 500, 5, 1000
DIP = (250, 300)  # steps
SPIKE = 240

PlantRun = Callable[..., Path]


def diagnosed(folder: Path) -> Diagnoses:
    return diagnose(load(folder))


def diagnosed_run(folder: Path) -> Diagnosis:
    return Diagnosis(open_run(folder))


def plant_run(
    folder: Path, *overrides: str, dip: float = 0.0, spike: bool = False, seed: int = 0
) -> Path:
    """A rising kNN curve, a `dip` that deep between `DIP`, a patch projection spike at `SPIKE`."""
    rng = np.random.default_rng(seed)
    config = small_config(f"seed={seed}", *overrides)
    folder.mkdir(parents=True)
    rundir = RunDir(folder)
    rundir.config_file.write_text(save_config(config))
    rundir.write_status(Status("done", STEPS, STEPS))
    writer = Writer(folder, "planted")
    steps = np.arange(STEPS)
    grads = np.exp(0.1 * rng.normal(size=(STEPS, len(LAYERS)))) * [1.0, 2.0, 3.0, 4.0]
    if spike:
        grads[SPIKE : SPIKE + 3, 0] *= 20
        grads[SPIKE + 2, 1] *= 20
    frozen = np.zeros_like(grads, dtype=bool)
    frozen[:, 0] = config.model.freeze_patch_embed
    nothing = np.zeros_like(frozen)
    missing = dict(zip(SIGNALS, (frozen, frozen, nothing), strict=True))
    writer.add_layers(steps, LAYERS, dict.fromkeys(SIGNALS, grads.astype(np.float32)), missing)
    writer.add_scalars(steps, "loss", np.linspace(2, 1, STEPS))
    threshold = rng.random(
        SAMPLES
    )  # how hard each sample is: answers of one sample belong together
    for step in range(0, STEPS + 1, EVERY):
        level = 0.3 + 0.3 * step / STEPS - (dip if DIP[0] <= step < DIP[1] else 0.0)
        correct = threshold + 0.01 * rng.normal(size=SAMPLES) < level
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()
    return folder


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two learning rates by frozen and learned, two seeds; the large rate, learned, is unstable."""
    for lr in (1e-3, 2e-2):
        for freeze in ("false", "true"):
            for seed in (0, 1):
                bad = lr > 1e-2 and freeze == "false"
                plant_run(
                    tmp_path / f"lr {lr} {freeze} {seed}",
                    f"optim.lr={lr}",
                    f"model.freeze_patch_embed={freeze}",
                    dip=0.08 if bad else 0.0,
                    spike=bad,
                    seed=seed,
                )
    return tmp_path
