"""A word of a request names a path, or a study or run by its name."""

from pathlib import Path

import pytest

from stabkit.cli.names import run_of, runs_of, sweep_file
from stabkit.cli.request import RequestError
from stabkit.rundir import RunDir

SWEEP = "name: called\nbase: tiny\ngrid: {optim.lr: [1.0e-3, 2.0e-3]}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("sweeps").mkdir()
    Path("sweeps/grid.yaml").write_text(SWEEP)
    return tmp_path


def make_run(path: str) -> None:
    RunDir(Path(path)).path.mkdir(parents=True)
    RunDir(Path(path)).config_file.touch()


def test_a_study_is_its_folder_of_runs_and_its_sweep_file() -> None:
    make_run("runs/grid/lr=1-0123abcd")
    assert runs_of("grid") == runs_of("runs/grid") == Path("runs/grid")
    assert sweep_file("grid") == sweep_file("sweeps/grid.yaml") == Path("sweeps/grid.yaml")


def test_a_sweep_file_stands_for_the_runs_of_its_name() -> None:
    with pytest.raises(RequestError, match=r"`stabkit sweep sweeps/grid\.yaml` makes them"):
        runs_of("sweeps/grid.yaml")
    make_run("runs/called/lr=1-0123abcd")
    assert runs_of("sweeps/grid.yaml") == Path("runs/called")


def test_the_settings_of_a_run_are_no_sweep_file() -> None:
    make_run("runs/grid/lr=1-0123abcd")
    settings = "runs/grid/lr=1-0123abcd/config.yaml"
    assert runs_of(settings) == Path(settings), "what reads it says what it is"


def test_a_folder_of_one_run_is_not_that_run() -> None:
    make_run("runs/grid/lr=1-0123abcd")
    with pytest.raises(RequestError, match="name a run in it: runs/grid/lr=1-0123abcd"):
        run_of("grid")


def test_a_run_is_known_by_its_name_below_runs_and_by_its_id() -> None:
    make_run("runs/grid/lr=1-0123abcd")
    make_run("runs/grid/lr=2-4567abcd")
    for word in ("grid/lr=1-0123abcd", "runs/grid/lr=1-0123abcd", "0123abcd"):
        assert run_of(word) == runs_of(word) == Path("runs/grid/lr=1-0123abcd")
    with pytest.raises(
        RequestError, match=r"not a run folder, .*; name a run in it: runs/grid/lr=1-0123abcd, runs"
    ):
        run_of("grid")
    make_run("runs/other/lr=1-0123abcd")
    with pytest.raises(RequestError, match="is the id of 2 runs, name one"):
        run_of("0123abcd")


def test_a_word_for_two_things_is_refused() -> None:
    make_run("runs/grid/lr=1-0123abcd")
    make_run("grid/lr=1-0123abcd")
    with pytest.raises(RequestError, match=r"there is \./grid and runs/grid; write which"):
        runs_of("grid")
    assert runs_of("./grid") == Path("./grid")
    Path("grid").rename("elsewhere")
    Path("grid").symlink_to("runs/grid")  # the same folder by two names is one thing
    assert runs_of("grid") == Path("grid")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("grid", "and no runs/grid; `stabkit sweep grid` makes its runs"),
        ("gird", "and no runs/gird; did you mean 'other'"),
        ("runs", "`stabkit train tiny` makes a first run"),
        ("no/where", "no/where: no such folder"),
        ("no/log.csv", "no/log.csv: no such file or folder"),
        ("log.csv", "log.csv: no such file or folder, and no runs/log.csv"),
    ],
)
def test_an_unknown_word_is_refused_with_what_there_is(word: str, said: str) -> None:
    if word == "gird":
        make_run("runs/girl/lr=1-0123abcd")
        Path("runs/gird_figures").mkdir()  # holds no run, and is nearer
        said = said.replace("other", "girl")
    with pytest.raises(RequestError, match=said):
        runs_of(word)


def test_an_unknown_sweep_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match=r"no sweeps/gird\.yaml; did you mean 'grid'"):
        sweep_file("gird")
    Path("sweeps/grid.yaml").unlink()
    with pytest.raises(RequestError, match=r"no sweeps/gird\.yaml; name a YAML file, or go"):
        sweep_file("gird")
