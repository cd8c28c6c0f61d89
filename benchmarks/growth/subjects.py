"""Define what run.py measures, and what theory says about it.

A theory is relative (multiplications, elements held, rows read): only its growth matters.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.lib.planted import plant_run
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.summary import run_table
from stabkit.config import RunConfig, read_base, validate, with_settings
from stabkit.monitor.knn.vote import knn_predict
from stabkit.store.reader import load
from stabkit.train.data.batches import Batch
from stabkit.train.loop import train_step
from stabkit.train.recording import Silent
from stabkit.train.state import build_state

CLASSES, WIDTH, PATCH = 10, 64, 8
SIMILARITIES = 2**26  # the most that kNN holds at once
STEPS, LAYERS = 120, [f"blocks.{i}" for i in range(3)]


@dataclass(frozen=True)
class Subject:
    """`make(size)` returns what is timed. Time follows `work(size)`, memory `held(size)`."""

    what: str
    axis: str
    sizes: Sequence[int]
    make: Callable[[int], Callable[[], Any]]
    work: Callable[[int], float]
    held: Callable[[int], float]


def subjects(device: torch.device, folder: Path) -> list[Subject]:
    """Return all subjects. `folder` is where runs are written."""
    return [
        _step("batch", [16, 32, 64, 128], device),
        _step("depth", [2, 4, 8, 16], device),
        _step("tokens", [17, 37, 65, 145, 257], device),
        _knn("bank size", [2**n for n in range(12, 17)], device),
        _knn("queries", [2**n for n in range(10, 14)], device),
        Subject("run table", "runs", [2, 4, 8, 16], lambda n: _table(folder, n), float, float),
    ]


def _step(axis: str, sizes: Sequence[int], device: torch.device) -> Subject:
    def config(size: int) -> RunConfig:
        shape = {"batch": 8 if axis == "tokens" else 16, "depth": 4, "tokens": 17} | {axis: size}
        settings = {
            "train.batch": shape["batch"],
            "model.depth": shape["depth"],
            "data.image_size": PATCH * math.isqrt(shape["tokens"] - 1),
        }
        return validate(RunConfig, with_settings(read_base("tiny"), settings), "growth")

    def held(size: int) -> float:
        return step_held(config(size), fused=device.type != "cpu")

    return Subject(
        "training step",
        axis,
        sizes,
        lambda size: _made_step(config(size), device),
        lambda size: step_work(config(size)),
        held,
    )


def _made_step(config: RunConfig, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    batch, image = config.train.batch, config.data.image_size
    state = build_state(config, config.data.num_train, device)
    view1, view2 = torch.randn(2, batch, 3, image, image, device=device)
    index = torch.arange(batch, device=device)
    made = Batch(view1, view2, index % CLASSES, index, slice(0, batch))
    return lambda: train_step(config, state, Silent(), made, 1, CLASSES)


def step_work(config: RunConfig) -> float:
    """Return the multiplications of a step of two views: forward, backward (twice that), twin."""
    tokens, depth, _ = _shape(config)
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    backbone = (tokens - 1) * 3 * PATCH**2 * WIDTH + depth * block
    hidden, out = config.method.hidden, config.method.out
    projector, predictor = WIDTH * hidden + hidden**2 + hidden * out, 2 * out * hidden
    online, twin = backbone + projector + predictor, backbone + projector
    return 2 * config.train.batch * (3 * online + twin)


def step_held(config: RunConfig, fused: bool) -> float:
    """Return the elements that backward keeps of the blocks, for two views.

    16 widths for each token: the inputs of both norms, of qkv, of the projection and of fc1 (one
    each), q, k and v (three), and the inputs of GELU and of fc2 (four each). Attention that is
    not fused also keeps its weights, one for each head and pair of tokens.
    """
    tokens, depth, heads = _shape(config)
    pairs = 0 if fused else heads * tokens**2
    return 2 * config.train.batch * depth * (16 * tokens * WIDTH + pairs)


def _shape(config: RunConfig) -> tuple[int, int, int]:
    model = config.model
    assert (model.width, model.patch_size) == (WIDTH, PATCH)
    assert model.depth
    assert model.heads
    return (config.data.image_size // PATCH) ** 2 + 1, model.depth, model.heads


def _knn(axis: str, sizes: Sequence[int], device: torch.device) -> Subject:
    """kNN of 256 queries, or with a bank of 16,384. Memory: feature copies and similarities."""
    torch.manual_seed(0)

    def shape(size: int) -> tuple[int, int]:
        return (256, size) if axis == "bank size" else (size, 2**14)

    def make(size: int) -> Callable[[], object]:
        queries, entries = shape(size)
        query, bank = (torch.randn(n, WIDTH, device=device) for n in (queries, entries))
        labels = torch.arange(entries, device=device) % CLASSES
        return lambda: knn_predict(query, bank, labels, CLASSES, 20, 0.07)

    def held(size: int) -> float:
        queries, entries = shape(size)
        return (queries + entries) * WIDTH + min(queries * entries, SIMILARITIES)

    return Subject("kNN", axis, sizes, make, lambda size: math.prod(shape(size)), held)


def _table(folder: Path, runs: int) -> Callable[[], object]:
    """Make runs of 120 steps and 24 evaluations. Return a call that reads and tabulates them."""
    parent = folder / str(runs)
    with mock.patch("os.fsync"):  # durability is not what is measured here
        for seed in range(runs):
            plant_run(parent, {"seed": seed}, STEPS, LAYERS)
    return lambda: run_table(diagnose(load(parent)))
