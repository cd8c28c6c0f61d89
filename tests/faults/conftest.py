"""Processes that train and die, and what they have to end as."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import Run, children
from tests.faults.training import observed, warm_up, whole


@pytest.fixture(scope="package")
def run() -> Iterator[Run]:
    with children(warm_up) as run:
        yield run


@pytest.fixture(scope="package")
def unbroken(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(whole, folder) == 0
    assert len(observed(folder)) == 2
    return folder
