"""Reports and figures killed at every write operation: the old file or the new, never a half."""

import signal
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest

from stabkit.cli import main
from tests.analyze.conftest import plant_run
from tests.faults.children import Run, Tell, children
from tests.faults.writes import die_at

pytestmark = pytest.mark.processes

OLD = b"what was there before"


def written(command: list[str]) -> int:
    return main(command)


def killed(command: list[str], at: int) -> int:
    die_at(at)
    return main(command)


def warm_up() -> None:
    """Draw small and once: what is looked at is how it is written, not what."""
    import stabkit.analyze.report.page as page

    mpl.rcParams["figure.dpi"] = 20
    html = (page.FOLDER / "report.html.j2").read_text(encoding="utf-8")
    page.make_report = lambda runs: runs  # type: ignore[assignment, return-value]
    page.render = lambda *_: html


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with children(warm_up) as run:
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("what", ["report", "figure", "table"])
def test_killed_at_every_write_operation(run: Run, tmp_path: Path, what: str, tell: Tell) -> None:
    runs, new, folder = tmp_path / "runs", tmp_path / "new", tmp_path / "out"
    plant_run(runs / "one")
    commands = {
        "report": lambda out: ["report", str(runs), "--out", str(out / "report.html")],
        "figure": lambda out: ["analyze", str(runs), "--plot", "knn", "--out", str(out)],
        "table": lambda out: ["analyze", str(runs), "--csv", str(out / "runs.csv")],
    }
    new.mkdir()
    assert run(written, commands[what](new)) == 0
    whole = {path.name: path.read_bytes() for path in new.iterdir()}
    assert len(whole) == (3 if what == "figure" else 1)
    folder.mkdir()
    kills, code = 0, -signal.SIGKILL
    while code:
        for name in whole:
            (folder / name).write_bytes(OLD)
        code = run(killed, commands[what](folder), kills + 1)
        assert code in (0, -signal.SIGKILL)
        for name, content in whole.items():
            assert (folder / name).read_bytes() in (OLD, content), (name, kills + 1)
        kills += code != 0
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name in whole
    } == whole
    assert kills > 3
    tell(f"kills of a {what}: {kills} at write operations, the old file or the new after each")
