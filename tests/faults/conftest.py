"""Processes that train and die, what they have to end as, and how many there were."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.children import Run, Tell, children
from tests.faults.training import observed, warm_up, whole

COUNTED: list[str] = []


@pytest.fixture
def tell() -> Tell:
    """Say something at the end of all tests, whether or not pytest shows what they print."""
    return COUNTED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in COUNTED:
        terminalreporter.write_line(line)


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
