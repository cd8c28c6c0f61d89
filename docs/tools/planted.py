"""Plant the runs that the gallery draws: made-up numbers with events at known places.

Nothing is trained. A larger learning rate makes dips, each with a burst of gradients before it that
begins in the patch projection; a frozen projection makes fewer.
"""

from pathlib import Path

import numpy as np

from stabkit.config import RunConfig, load_config, save_config
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer

LAYERS = ["patch_embed", *(f"blocks.{at}" for at in range(6)), "norm", "projector", "predictor"]
STEPS, EVERY, SAMPLES = 400, 5, 1000
RATES = (0.004, 0.016, 0.04)
SEEDS = (0, 1, 2)
# steps at which bursts begin, by what trains and the rate
BURSTS = {
    ("learned", 0.016): (230,),
    ("learned", 0.04): (150, 270),
    ("frozen", 0.04): (230,),
    ("lamb", 0.04): (),
}


def plant_grid(folder: Path) -> None:
    """Plant the frozen and learned patch projection at three rates and three seeds."""
    for seed in SEEDS:
        for rate in RATES:
            for frozen in (False, True):
                overrides = [f"model.freeze_patch_embed={str(frozen).lower()}"]
                name = "frozen" if frozen else "learned"
                plant(folder / f"{name}-{rate}-{seed}", name, rate, seed, overrides)


def plant_optimizers(folder: Path) -> None:
    """Plant AdamW and LAMB at three rates and three seeds."""
    for seed in SEEDS:
        for rate in RATES:
            plant(folder / f"adamw-{rate}-{seed}", "learned", rate, seed, [])
            plant(folder / f"lamb-{rate}-{seed}", "lamb", rate, seed, ["optim.name=lamb"])


def plant(folder: Path, arm: str, rate: float, seed: int, overrides: list[str]) -> None:
    """Write a run folder."""
    settings = [f"seed={seed}", f"optim.lr={rate}", f"train.steps={STEPS}", *overrides]
    config = load_config("tiny", settings)
    rng = np.random.default_rng([seed, round(1000 * rate), len(arm)])
    rundir = RunDir(folder)
    folder.mkdir(parents=True)
    rundir.config_file.write_text(save_config(config))
    rundir.write_status(Status("done", STEPS, STEPS))
    writer = Writer(folder, "planted")
    bursts = [at + int(rng.integers(0, 12)) for at in BURSTS.get((arm, rate), ())]
    write_layers(writer, config, bursts, rng)
    write_loss(writer, config, bursts, rng)
    write_accuracy(writer, arm, rate, bursts, rng)
    writer.flush()


def write_layers(
    writer: Writer, config: RunConfig, bursts: list[int], rng: np.random.Generator
) -> None:
    steps = np.arange(STEPS)
    fall = 1 + 2 * np.exp(-steps / 30)[:, None]
    norms = 0.3 * fall * np.exp(0.15 * rng.normal(size=(STEPS, len(LAYERS))))
    for at in bursts:  # first the patch projection, then one block after the other
        for depth in range(len(LAYERS)):
            first = at + (0 if depth == 0 else 2 + depth // 2)
            norms[first : first + 6, depth] *= (60 if depth == 0 else 25) * 0.7 ** np.arange(6)
    missing = np.zeros_like(norms, dtype=bool)
    missing[:, 0] = config.model.freeze_patch_embed
    values = {"grad_norm": norms, "grad_max": norms / 8, "param_norm": 5 + 0 * norms}
    stored = {name: values[name].astype(np.float32) for name in SIGNALS}
    masks = dict.fromkeys(SIGNALS, missing)
    writer.add_layers(steps, LAYERS, stored, masks)


def write_loss(
    writer: Writer, config: RunConfig, bursts: list[int], rng: np.random.Generator
) -> None:
    steps = np.arange(STEPS)
    loss = 2.2 + 1.6 * np.exp(-steps / 120) + 0.05 * rng.normal(size=STEPS)
    for at in bursts:
        loss += np.where(steps >= at + 7, 1.4 * np.exp(-(steps - at - 7) / 12), 0)
    warm = max(config.optim.warmup_steps, 1)
    decay = 0.5 * (1 + np.cos(np.pi * np.clip((steps - warm) / (STEPS - warm), 0, 1)))
    peak = config.optim.lr * config.train.batch / 256
    writer.add_scalars(steps, "loss", loss)
    writer.add_scalars(steps, "lr", peak * np.where(steps < warm, steps / warm, decay))


def write_accuracy(
    writer: Writer, arm: str, rate: float, bursts: list[int], rng: np.random.Generator
) -> None:
    best = {"learned": (0.56, 0.54, 0.44), "frozen": (0.51, 0.54, 0.50), "lamb": (0.5, 0.52, 0.4)}
    end = best[arm][RATES.index(rate)] + 0.01 * rng.normal()
    bars = rng.random(SAMPLES)  # how hard each sample is
    for step in range(0, STEPS + 1, EVERY):
        level = 0.29 + (end - 0.29) * (1 - np.exp(-step / 110)) / (1 - np.exp(-STEPS / 110))
        if arm == "lamb" and rate == RATES[-1]:  # no dip, but a slow sag
            level -= 0.08 * max(0, step - 200) / 200
        for at in bursts:
            if step > at + 8:
                level -= 0.13 * np.exp(-(((step - at - 25) / 22) ** 2))
        correct = bars + 0.02 * rng.normal(size=SAMPLES) < level
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 200, 0.07, correct)
