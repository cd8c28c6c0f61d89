"""A run as other tools would log it, with a dip and a spike at known steps."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stabkit.convert.convert import convert
from stabkit.store.reader import StoredRun, open_run

STEPS, EVERY = 400, 5
DIP, SPIKE = (200, 240), 190
LAYERS = ["patch_embed", "blocks.0", "blocks.10", "norm", "head"]  # as deep as they stand here

Planted = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def planted() -> Planted:
    """`train/loss`, `val/knn` in percent with a dip, and gradient norms with a spike."""
    rng = np.random.default_rng(0)
    steps = np.arange(STEPS)
    series: Planted = {"train/loss": (steps, np.linspace(2, 1, STEPS))}
    for layer in reversed(LAYERS):  # the order in a log says nothing
        norms = np.exp(0.1 * rng.normal(size=STEPS))
        if layer == "patch_embed":
            norms[SPIKE : SPIKE + 3] *= 20
        series[f"grad_norm/{layer}"] = steps, norms
    at = np.arange(0, STEPS, EVERY)
    level = 0.3 + 0.2 * at / STEPS - 0.1 * ((at >= DIP[0]) & (at < DIP[1]))
    series["val/knn"] = at, 100 * (level + 0.004 * rng.normal(size=at.size))
    return series


def converted(source: Path, out: Path, *pairs: str, **options: object) -> StoredRun:
    """Return the one run of a conversion."""
    (made,) = convert(source, out, pairs, **options)  # type: ignore[arg-type]
    return open_run(made.folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
