"""Shared by all tests: a run small enough to train in seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: one thread, so that the same step gives the same bits everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from stabkit.config import RunConfig, parse_overrides, read_base, validate, with_settings

SMALL = [
    "data.num_train=64",
    "data.num_heldout=20",
    "data.image_size=16",
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "method.hidden=16",
    "method.out=8",
    "train.batch=8",
    "train.steps=24",
    "optim.warmup_steps=4",
    "knn.every=5",
    "knn.queries=20",
    "knn.bank=40",
    "knn.fifo=0.5",
    "runtime.checkpoint_every=7",
    "runtime.flush_every=3",
]


LONGEST = [  # files: one that began last would keep one core busy when the other has nothing to do
    "train/test_resume.py",
    "sweep/test_pool.py",
    "studies/test_studies.py",
    "train/parallel/test_distributed.py",
    "branch/test_branch_command.py",
    "sweep/test_going_on.py",
    "analyze/plots/test_plots.py",
    "train/test_exactness.py",
    "train/methods/test_build.py",
    "test_damaged_runs.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests on SLURM first, since they mostly wait beside the others, then the longest."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Put the number of threads back: a training sets it for the whole process."""
    import torch  # not before: most tests need none

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small_config(*overrides: str) -> RunConfig:
    """Return the `tiny` preset cut down to a second of training, with `key=value` overrides."""
    settings = parse_overrides([*SMALL, *overrides])
    return validate(RunConfig, with_settings(read_base("tiny"), settings), "test")


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything at and below a folder: kind, time of the last change, content."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (info.st_mode, info.st_mtime_ns, content)
    return found


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Leave out `fsync`, of which a small training has 76: only a dead machine would need it.

    A killed process loses nothing that the kernel has. Processes that a test starts do sync.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def config() -> RunConfig:
    return small_config()
