"""Commands of a user without rights: one line, an exit code, no traceback, nothing changed."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stabkit.cli import main
from tests.analyze.conftest import plant_run
from tests.conftest import SMALL, tree

NOBODY = 65534
SWEEP = "name: demo\nbase: tiny\n"

pytestmark = pytest.mark.skipif(
    not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder with a run that everybody may read and only root may write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant_run(folder / "runs" / "a", dip=0.08, spike=True)
        secret = folder / "secret" / "b"
        shutil.copytree(folder / "runs" / "a", secret)
        (folder / "demo.yaml").write_text(SWEEP)
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        secret.chmod(0o700)
        # Import here what the commands need: a child may have no right to read the libraries.
        import stabkit.analyze.report.page
        import stabkit.convert.sources
        import stabkit.sweep.launch  # noqa: F401

        assert main(["analyze", str(folder / "runs")]) == 0
        with tempfile.TemporaryDirectory() as other:
            assert main(["train", "tiny", *SMALL, "train.steps=1", "--run-dir", f"{other}/a"]) == 0
        yield folder


def as_nobody(words: list[str], cwd: Path) -> tuple[int, str, str]:
    """Run a command in a forked child that has become another user."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.chdir(cwd)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                code = main(words)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), read(out), read(err)


def read(file: "tempfile._TemporaryFileWrapper[str]") -> str:
    file.seek(0)
    return file.read()


DENIED = "Permission denied"
CASES = {  # the command, its exit code, and what its line says
    "train": (["train", "tiny", *SMALL, "--run-dir", "{folder}/runs/new"], 1, DENIED),
    "train in a run": (["train", "tiny", *SMALL, "--run-dir", "{folder}/runs/a"], 2, "runs/a"),
    "train in a hidden run": (["train", "tiny", *SMALL, "--run-dir", "{folder}/secret/b"], 2, "b"),
    "sweep": (["sweep", "{folder}/demo.yaml", *SMALL, "--cluster", "local"], 1, DENIED),
    "analyze": (["analyze", "{folder}/runs"], 0, ""),
    "analyze a table": (["analyze", "{folder}/runs", "--csv", "{folder}/t.csv"], 1, DENIED),
    "analyze a figure": (["analyze", "{folder}/runs", "--plot", "knn"], 1, DENIED),
    "analyze a hidden run": (["analyze", "{folder}/secret"], 2, "not readable"),
    "report": (["report", "{folder}/runs"], 1, DENIED),
    "status": (["status", "{folder}/runs"], 0, ""),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("case", CASES)
def test_a_user_without_rights_gets_a_line_and_an_exit_code(folder: Path, case: str) -> None:
    words, code, line = CASES[case]
    before = tree(folder)
    found, out, err = as_nobody([word.format(folder=folder) for word in words], folder)
    assert (found, "Traceback" in out + err) == (code, False), err
    assert line in err
    assert all(said.startswith(("stabkit: ", "  - ")) for said in err.splitlines()), err
    assert bool(err) == (code != 0), err
    assert tree(folder) == before
