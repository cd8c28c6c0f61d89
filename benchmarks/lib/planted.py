"""Write runs by hand, through the store's own Writer, instead of training them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stabkit.config import RunConfig, read_base, run_id, save_config, validate, with_settings
from stabkit.rundir import RunDir, Status
from stabkit.store.writer import Writer

SAMPLES, EVERY = 200, 5  # of an evaluation; steps between two


def plant_run(
    parent: Path,
    settings: Mapping[str, Any],
    steps: int,
    layers: Sequence[str],
    dip_at: int | None = None,
) -> Path:
    """Write a run of the `tiny` preset with gradient norms, a loss, and kNN every 5 steps.

    The kNN accuracy is 50 %. At `dip_at` it falls to 30 % for six evaluations, and every layer's
    gradient bursts just before.
    """
    config = validate(
        RunConfig, with_settings(read_base("tiny"), {**settings, "train.steps": steps}), "benchmark"
    )
    rng = np.random.default_rng(config.seed)
    rundir = RunDir(parent / f"run-{run_id(config)}")
    rundir.path.mkdir(parents=True)
    rundir.config_file.write_text(save_config(config))
    rundir.append_entry("start", 0)
    rundir.write_status(Status("done", steps, steps))
    writer = Writer(rundir.path, run_id(config))
    norms = rng.lognormal(sigma=0.3, size=(steps, len(layers))).astype(np.float32)
    if dip_at is not None:
        norms[dip_at - 3 : dip_at] *= 30
    missing = {"grad_norm": np.zeros(norms.shape, dtype=bool)}
    writer.add_layers(np.arange(steps), list(layers), {"grad_norm": norms}, missing)
    writer.add_scalars(np.arange(steps), "loss", rng.lognormal(sigma=0.1, size=steps))
    for step in range(0, steps, EVERY):
        inside = dip_at is not None and dip_at <= step < dip_at + 6 * EVERY
        correct = rng.random(SAMPLES) < (0.3 if inside else 0.5)
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()
    return rundir.path
