"""Every study, from its sweep file to its figure, on runs made by hand instead of trained."""

import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from stabkit.analyze.plots import catalog
from stabkit.config import save_config
from stabkit.rundir import RunDir, Status
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from stabkit.sweep.grid import PlannedRun, load_sweep

SWEEPS = sorted(Path("sweeps").glob("*.yaml"))
NOT_OF_PAPER = ("stale_moments", "mid_training", "paper_shares")
OF_PAPER = [path for path in SWEEPS if path.stem not in NOT_OF_PAPER]
DRAWN_IN_FULL = ("gradients", "lr_grid", "optimizer")
LAYERS = ["patch_embed", "blocks.0", "blocks.1"]
STEPS, EVERY, SPIKE = 160, 10, 60
SEEDS = 3  # what most studies have; with more, the same is done more often


def plant(run: PlannedRun, folder: Path, level: float) -> None:
    rng = np.random.default_rng(run.config.seed)
    rundir = RunDir(folder)
    folder.mkdir(parents=True)
    rundir.config_file.write_text(save_config(run.config))
    rundir.write_status(Status("done", STEPS, STEPS))
    writer = Writer(folder, "planted")
    grads = np.exp(0.1 * rng.normal(size=(STEPS, len(LAYERS)))).astype(np.float32)
    grads[SPIKE : SPIKE + 3, 0] *= 20
    grads[SPIKE + 2 : SPIKE + 4, 2] *= 20
    present = dict.fromkeys(SIGNALS, np.zeros_like(grads, dtype=bool))
    writer.add_layers(np.arange(STEPS), LAYERS, dict.fromkeys(SIGNALS, grads), present)
    writer.add_scalars(np.arange(STEPS), "nonfinite_layers", np.zeros(STEPS))
    for step in range(0, STEPS + 1, EVERY):
        correct = rng.random(500) < level
        writer.add_eval(step, "knn_heldout", float(correct.mean()), 0.1, 20, 0.07, correct)
    writer.add_eval(STEPS, "finetune", float(correct.mean()), 0.1, 0, 0.0, correct)
    writer.flush()


def draw_coarsely(patch: pytest.MonkeyPatch) -> None:
    """Write figures in few dots, not arranged, and no PDF: both take longer than all else."""
    savefig = Figure.savefig

    @contextmanager
    def as_they_are(figure: Figure) -> Iterator[BboxBase]:
        figure.set_layout_engine(None)
        yield figure.bbox_inches

    def coarse(figure: Figure, file: IO[bytes], *, format: str, **how: object) -> None:
        if format == "png":
            savefig(figure, file, format=format, **how | {"dpi": 20})  # type: ignore[arg-type]

    patch.setattr(catalog, "arranged", as_they_are)
    patch.setattr(Figure, "savefig", coarse)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_its_analysis_answers_with_verdicts_and_figures(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = load_sweep(path).runs
    seeds = sorted({run.config.seed for run in runs})[:SEEDS]
    for number, run in enumerate(runs):
        if run.config.seed in seeds:
            plant(run, tmp_path / run.folder, 0.3 + 0.01 * number)
    if path.stem not in DRAWN_IN_FULL:
        draw_coarsely(monkeypatch)
    script = Path("analysis", f"{path.stem}.py").resolve()
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    paper = load_sweep(path, "imagenet" if path in OF_PAPER else None)
    monkeypatch.chdir("/")  # it runs from anywhere
    runpy.run_path(str(script))
    text = capsys.readouterr().out
    verdicts = sum(text.count(f"{word} ") for word in ("HOLDS", "FAILS", "UNDECIDED"))
    assert verdicts >= 1
    assert len(re.findall(r"^ {10}(?:\S.*, )?n = \d", text, re.MULTILINE)) == verdicts
    for value in (run.published for run in paper.runs if run.published is not None):
        assert f"{value:.1f}" in text
    figures = list((tmp_path / "figures").glob("*.png"))
    assert figures
    assert all(figure.with_suffix(".csv").stat().st_size for figure in figures)


@pytest.mark.parametrize("path", OF_PAPER, ids=lambda p: p.stem)
def test_imagenet_scale_is_the_papers(path: Path) -> None:
    """Sections 4 and 5: batch 4096, AdamW, 40 epochs of warm-up, 100, 300 or 600 epochs."""
    sweep = load_sweep(path, "imagenet")
    assert all(run.slurm["timeout_min"] for run in sweep.runs)
    assert path.stem == "gradients" or sweep.published is not None
    for run in sweep.runs:
        config = run.config
        an_epoch = 1281167 // config.train.batch
        epochs = config.train.steps / an_epoch
        if config.train.steps > 1:
            assert min(abs(epochs - e) for e in (100, 300, 600)) < 0.3, run.folder
            assert config.optim.warmup_steps / an_epoch == pytest.approx(40, abs=0.1)
        varied = {k for k in run.settings if k != "seed"}
        assert config.train.batch == 4096 or "train.batch" in varied
        assert config.optim.name == "adamw" or path.stem == "optimizer"
        assert (config.method.temperature, config.method.momentum) == (0.2, 0.99) or varied & {
            "method.name",
            "method.momentum",
        }
        assert config.data.image_size == 224
