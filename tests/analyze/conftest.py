"""Runs made by hand, with planted dips and spikes at known places."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stabkit.analyze.diagnoses import Diagnoses, diagnose
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.report import figures, zooms
from stabkit.analyze.report.pictures import Picture
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


def diagnosed(folder: Path) -> Diagnoses:
    return diagnose(load(folder))


def diagnosed_run(folder: Path) -> Diagnosis:
    return Diagnosis(open_run(folder))


def level(run: Diagnosis) -> float:
    """In points: the median of the last fifth of the evaluations, by hand."""
    values = run.evals("knn_heldout")["value"].to_numpy()
    return 100 * float(np.median(values[-round(len(values) / 5) :]))


def plant_run(
    folder: Path, *overrides: str, dip: float = 0.0, spike: bool = False, seed: int = 0
) -> Path:
    """Make the run of `_plant`, or copy it if it was made before."""
    arguments = (overrides, dip, spike, seed)
    if arguments not in _PLANTED:
        made = Path(_MADE.name) / str(len(_PLANTED))
        _PLANTED[arguments] = _plant(made, *overrides, dip=dip, spike=spike, seed=seed)
    shutil.copytree(_PLANTED[arguments], folder)
    return folder


def evaluate_again(folder: Path, start: float, seed: int) -> None:
    """Accuracies that rise from `start` to .3 more, the same in every seed but for a jitter."""
    for part in (folder / "evals").iterdir():
        part.unlink()
    jitter = 0.001 * np.random.default_rng([seed, int(1000 * start)]).normal()
    writer = Writer(folder, "planted")
    for step in range(0, STEPS + 1, EVERY):
        correct = np.linspace(0, 1, SAMPLES) < start + jitter + 0.3 * step / STEPS
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.flush()


def blow_up(folder: Path) -> None:
    """Make a planted run one whose loop raised on a loss of NaN."""
    loss = np.where(np.arange(STEPS) < 200, 1.0, np.nan)
    writer = Writer(folder, "planted")
    writer.add_scalars(np.arange(STEPS), "train/loss", loss)
    writer.flush()
    RunDir(folder).append_entry("nonfinite", 200, where="train/loss")
    RunDir(folder).write_status(Status("failed", 300, STEPS, reason="loss is nan"))


_MADE = tempfile.TemporaryDirectory()
_PLANTED: dict[tuple[Any, ...], Path] = {}


def _plant(folder: Path, *overrides: str, dip: float, spike: bool, seed: int) -> Path:
    """Write a rising kNN curve with a `dip` in `DIP` and a patch projection spike at `SPIKE`."""
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


def plant_loop(
    folder: Path,
    layers: Sequence[str] = (),
    burst: str = "",
    warmup: int = 0,
    loss: str = "loss",
    losses: NDArray[np.float64] | None = None,
    **scalars: float | NDArray[np.float64],
) -> Path:
    """Write what a Monitor in another loop records: no settings, no evaluations.

    At step 300 the gradient of layer `burst` and three steps later those of all others rise
    20-fold. `scalars` are constants or series, of which `lr` rises in `warmup` steps.
    """
    rng, steps = np.random.default_rng(0), np.arange(STEPS)
    writer = Writer(folder, "loop")
    if layers:
        grads = np.exp(0.1 * rng.normal(size=(STEPS, len(layers))))
        mine = np.array([name == burst for name in layers])
        grads[300:306, mine] *= 20
        grads[303:306, ~mine] *= 20 if burst else 1
        nothing = np.zeros_like(grads, dtype=bool)
        writer.add_layers(
            steps, list(layers), dict.fromkeys(SIGNALS, grads.astype(np.float32)),
            dict.fromkeys(SIGNALS, nothing),
        )  # fmt: skip
    writer.add_scalars(steps, loss, falling_loss() if losses is None else losses)
    for name, value in scalars.items():
        rise = np.minimum(1, (steps + 1) / (warmup + 1)) if name == "lr" else np.ones(STEPS)
        writer.add_scalars(steps, name, value * rise)
    writer.flush()
    return folder


def falling_loss() -> NDArray[np.float64]:
    """Return a loss that falls from 6 to 3, with little noise."""
    noise = np.random.default_rng(1).normal(size=STEPS)
    return np.linspace(6, 3, STEPS) + 0.01 * noise


@pytest.fixture(scope="session")
def whole_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates by frozen and learned, two seeds; the large rate, learned, is unstable."""
    folder = tmp_path_factory.mktemp("grid")
    for lr in (1e-3, 2e-2):
        for freeze in ("false", "true"):
            for seed in (0, 1):
                bad = lr > 1e-2 and freeze == "false"
                plant_run(
                    folder / f"lr {lr} {freeze} {seed}",
                    f"optim.lr={lr}",
                    f"model.freeze_patch_embed={freeze}",
                    dip=0.08 if bad else 0.0,
                    spike=bad,
                    seed=seed,
                )
    return folder


@pytest.fixture(scope="session")
def grid_runs(whole_grid: Path) -> Diagnoses:
    """Return the runs of the grid, for tests that only look at them: each thing is found once."""
    return diagnosed(whole_grid)


@pytest.fixture
def grid(whole_grid: Path, tmp_path: Path) -> Path:
    """Return a copy of the grid, for tests that change it or write into it."""
    shutil.copytree(whole_grid, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out of a report: drawing takes most of the time."""
    unplaced = {name: replace(plot, place=None) for name, plot in figures.PLOTS.items()}
    monkeypatch.setattr(figures, "PLOTS", unplaced)
    monkeypatch.setattr(zooms, "event_zoom_figure", lambda rows: Figure())
    for module in (figures, zooms):
        monkeypatch.setattr(module, "picture", lambda figure, alt: Picture("data:,", 1, 1, alt))
