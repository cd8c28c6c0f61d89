"""A damaged run beside a sound one: every command names it, goes on and shows no traceback."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabkit
from stabkit.analyze.diagnoses import Diagnoses, diagnose
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.summary import run_table
from stabkit.cli import main
from stabkit.rundir import LeftOutWarning, RunDir, find_runs
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer
from tests.analyze.conftest import LAYERS, STEPS, plant_run


def write_evals(run: Path, value: float, chance: float = 0.1) -> None:
    """One more evaluation of a value that its bits do not have."""
    writer = Writer(run, "planted")
    writer.add_eval(STEPS + 5, "knn_heldout", value, chance, 20, 0.07, np.ones(1000, dtype=bool))
    writer.flush()


def write_grads(run: Path, value: float) -> None:
    writer = Writer(run, "planted")
    values = np.full((1, len(LAYERS)), value, dtype=np.float32)
    missing = dict.fromkeys(SIGNALS, np.zeros((1, len(LAYERS)), dtype=bool))
    writer.add_layers(np.array([STEPS]), LAYERS, dict.fromkeys(SIGNALS, values), missing)
    writer.flush()


def status_of(run: Path, **changes: object) -> None:
    content = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(content | changes))


def in_place_of(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    file.mkdir()


def parts(run: Path, table: str) -> list[Path]:
    return sorted((run / table).glob("part-*"))


# The damage; what the summary then says on stderr (None: nothing); the verdict of the run (None:
# it is left out).
DAMAGE: dict[str, tuple[Callable[[Path], object], str | None, str | None]] = {
    "config torn": (
        lambda run: (run / "config.yaml").write_text("a: [1, 2"),
        "left out, {run}/config.yaml: not valid YAML",
        None,
    ),
    "config with a tag": (
        lambda run: (run / "config.yaml").write_text("seed: !!int ''"),
        "left out, {run}/config.yaml: not valid YAML: '' is no int",
        None,
    ),
    "config with a leading zero": (
        lambda run: (run / "config.yaml").write_text("seed: 012"),
        "012 begins with a zero",
        None,
    ),
    "config empty": (lambda run: (run / "config.yaml").write_text(""), "holds no settings", None),
    "config a list": (lambda run: (run / "config.yaml").write_text("- 1"), "no settings", None),
    "config binary": (
        lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"),
        "is not UTF-8 text",
        None,
    ),
    "config a folder": (lambda run: in_place_of(run / "config.yaml"), "Is a directory", None),
    "config deep": (
        lambda run: (run / "config.yaml").write_text("[" * 2000),
        "nested too deeply",
        None,
    ),
    "config of somebody else": (
        lambda run: (run / "config.yaml").write_text(
            "seed: none yet\nlr: [[1, {a: .nan}], 2]\nwhen: 2020-01-01\nmodel: {}\n"
        ),
        None,
        "stable",
    ),
    "status torn": (
        lambda run: (run / "status.json").write_text('{"state": "do'),
        "{run}/status.json: left out, not a status file",
        "stable",
    ),
    "status a list": (lambda run: (run / "status.json").write_text("[1]"), "no JSON", "stable"),
    "status of no state": (lambda run: status_of(run, state="fine"), "state is 'fine'", "stable"),
    "status of odd kinds": (lambda run: status_of(run, events=[1]), "events is [1]", "stable"),
    "status of text steps": (lambda run: status_of(run, step="9"), "step is '9'", "stable"),
    "status infinite": (
        lambda run: (run / "status.json").write_text('{"state": "done", "eta_s": 1e999}'),
        "eta_s is inf",
        "stable",
    ),
    "status not a number": (lambda run: status_of(run, knn=math.nan), None, "stable"),
    "status a folder": (lambda run: in_place_of(run / "status.json"), "status.json", "stable"),
    "events torn": (
        lambda run: (run / "events.jsonl").write_text('{"kind": "start"}\n{"kind": "nonf'),
        None,  # as every kill leaves it
        "stable",
    ),
    "events odd": (
        lambda run: (run / "events.jsonl").write_text(
            '{"kind": ["a"]}\n7\n{"step": "x"}\nnull\n' + "[" * 5000 + "\n"
        ),
        "{run}/events.jsonl: 3 lines left out, no entries; the first is line 2",
        "stable",
    ),
    "events a folder": (lambda run: in_place_of(run / "events.jsonl"), "events.jsonl", "stable"),
    "lock a folder": (lambda run: in_place_of(run / ".lock"), None, "stable"),
    "layers a file": (
        lambda run: (shutil.rmtree(run / "layers"), (run / "layers").write_text("x")),
        "layers: left out, not readable",
        "stable",
    ),
    "layers random": (
        lambda run: [part.write_bytes(os.urandom(999)) for part in parts(run, "layers")],
        "not readable",
        "stable",
    ),
    "evals empty": (
        lambda run: [part.write_bytes(b"") for part in parts(run, "evals")],
        "not readable",
        "stable",
    ),
    "scalars empty": (
        lambda run: [part.write_bytes(b"") for part in parts(run, "scalars")],
        "not readable",
        "unknown",
    ),
    "rows twice": (
        lambda run: [shutil.copy(p, p.with_name("part-9.parquet")) for p in parts(run, "layers")],
        "rows left out",
        "stable",
    ),
    "accuracy above 1": (
        lambda run: write_evals(run, 1.5),
        "{run}: dips of knn_heldout left out, accuracy must be a fraction",
        "unknown",
    ),
    "accuracy infinite": (lambda run: write_evals(run, math.inf), "a fraction", "unknown"),
    "accuracy below 0": (lambda run: write_evals(run, -1e300), "a fraction", "unknown"),
    "accuracy not of its bits": (lambda run: write_evals(run, 0.2), "but accuracy", "unknown"),
    "accuracy missing": (lambda run: write_evals(run, math.nan), None, "stable"),
    "chance not a number": (
        lambda run: (
            [part.unlink() for part in parts(run, "evals")],
            write_evals(run, 1.0, chance=math.nan),
        ),
        None,  # as in a run converted from a log: not known
        "stable",
    ),
    "gradient below 0": (
        lambda run: write_grads(run, -1.0),
        "{run}: spikes of grad_norm in patch_embed left out, value must not be negative",
        "unknown",
    ),
    "gradient infinite": (lambda run: write_grads(run, math.inf), None, "stable"),
    "nothing measured": (
        lambda run: [shutil.rmtree(run / t) for t in ("layers", "evals", "scalars")],
        None,
        "unknown",
    ),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    plant_run(folder / "a sound", dip=0.08, spike=True)
    plant_run(folder / "b damaged", "optim.lr=0.5", seed=1)
    return folder


@pytest.fixture
def folder(planted: Path, tmp_path: Path) -> Path:
    shutil.copytree(planted, tmp_path / "runs")
    return tmp_path / "runs"


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, list[str]]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.fixture(scope="module")
def sound(planted: Path) -> pd.Series:
    """Return the row of the sound run in the summary of a folder without damage."""
    return run_table(diagnose(stabkit.load(planted))).set_index("run").loc["a sound"]


@pytest.mark.lengthy
@pytest.mark.parametrize("damage", DAMAGE)
def test_every_command_goes_on(
    folder: Path, sound: pd.Series, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    act, expected, verdict = DAMAGE[damage]
    run = folder / "b damaged"
    act(run)

    code, out, err = say(capsys, "analyze", str(folder), "--csv", str(folder / "all.csv"))
    assert code == 0
    assert "trained unstably" in out
    assert all(line.startswith("stabkit: /") for line in err), err
    assert bool(err) == (expected is not None), err
    assert expected is None or any(expected.format(run=run) in line for line in err), err
    table = pd.read_csv(folder / "all.csv").set_index("run")
    assert table.loc["a sound", "verdict"] == sound["verdict"] == "unstable"
    assert table.loc["a sound", "deepest"] == pytest.approx(sound["deepest"])
    assert table["verdict"].get("b damaged") == verdict

    code, out, err = say(capsys, "status", str(folder))
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "done         a sound" in out
    assert all(expected and expected.format(run=run) in line for line in err), err
    assert say(capsys, "status", str(folder), "--json")[0] == 0


FOR_FIGURES = [  # damage that reaches a figure: to settings, tables and values
    "config of somebody else",
    "layers random",
    "evals empty",
    "scalars empty",
    "accuracy infinite",
    "accuracy below 0",
    "accuracy missing",
    "chance not a number",
    "gradient below 0",
    "gradient infinite",
    "nothing measured",
]


@pytest.fixture(scope="module", params=FOR_FIGURES)
def damaged(
    request: pytest.FixtureRequest, planted: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Diagnoses, Diagnoses]:
    """Diagnose the damaged run beside the sound one, and alone, once for all figures."""
    both, alone = tmp_path_factory.mktemp("both"), tmp_path_factory.mktemp("alone")
    shutil.copytree(planted, both, dirs_exist_ok=True)
    DAMAGE[request.param][0](both / "b damaged")
    shutil.copytree(both / "b damaged", alone / "b damaged")
    return diagnose(stabkit.load(both)), diagnose(stabkit.load(alone))


Tables = dict[str, list[pd.DataFrame]]


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Return the tables that each figure was drawn from so far: most damage leaves many equal."""
    return {name: [] for name in PLOTS}


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore::stabkit.rundir.LeftOutWarning")
@pytest.mark.parametrize("name", PLOTS)
def test_every_figure_is_drawn(
    damaged: tuple[Diagnoses, Diagnoses], name: str, tables: Tables
) -> None:
    both, alone = damaged
    table = drawn(name, both, tables)
    if table is not None and "run" in table:
        # These two name only the runs with events, or the three worst runs by their settings.
        assert "a sound" in set(table["run"]) or name in ("event-zoom", "signals")
    if len(alone):
        drawn(name, alone, tables)


def drawn(name: str, runs: Diagnoses, tables: Tables) -> pd.DataFrame | None:
    """Draw a figure and return its table, or None where it is refused in words.

    A figure uses its table alone, so a table that was drawn before is not drawn again.
    """
    try:
        table = PLOTS[name].table(runs)
    except ValueError as refusal:
        if not str(refusal).startswith(str(runs.path)):
            raise
        return None
    if not table.empty and not any(table.equals(before) for before in tables[name]):
        figure = PLOTS[name].figure(table)
        figure.set_layout_engine(None)  # it takes longer than all else, and reads no values
        figure.draw_without_rendering()
        tables[name].append(table)
    return table


@pytest.mark.lengthy
def test_a_folder_that_a_link_leads_to_again_is_read_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a link").symlink_to(folder / "b damaged")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "loop").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "nowhere").symlink_to(folder / "nothing")
    for verb in ("analyze", "status"):
        code, out, err = say(capsys, verb, str(folder))
        assert code == 0
        assert out.count("sound") + out.count("2 runs") > 0
        assert err == [
            f"stabkit: {folder}/itself: left out, not readable (Too many levels of symbolic links)",
            f"stabkit: {folder}/nowhere: left out, a link to nothing",
            f"stabkit: {folder}/deeper/loop: left out, it is the folder {folder}",
            f"stabkit: {folder}/a link: left out, it is the folder {folder}/b damaged",
        ]


def test_a_copy_of_a_run_does_not_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "b damaged", folder / "copies" / "c")
    code, out, err = say(capsys, "analyze", str(folder))
    assert code == 0
    assert "2 runs (2 done)" in out
    assert err == [
        f"stabkit: {folder}/copies/c: left out, it has the settings and the seed of "
        f"{folder}/b damaged"
    ]


def test_runs_without_a_seed_may_have_the_same_settings(folder: Path) -> None:
    for name in ("a sound", "b damaged"):
        (folder / name / "config.yaml").write_text("lr: 1\n")
    assert len(stabkit.load(folder)) == 2


def test_a_folder_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal is simulated, since root is never refused."""
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path).name == "b damaged":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    code, out, err = say(capsys, "analyze", str(folder))
    assert code == 0
    assert "1 run (1 done)" in out
    assert err == [f"stabkit: {folder}/b damaged: left out, not readable (Permission denied)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("name", ["config.yaml", "status.json", "events.jsonl", "layers"])
def test_a_file_that_may_not_be_read_is_named(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    RunDir(folder / "b damaged").append_entry("start", 0)
    file = folder / "b damaged" / name
    mode = file.stat().st_mode
    file.chmod(0)
    try:
        code, _, err = say(capsys, "analyze", str(folder))
        assert say(capsys, "status", str(folder))[0] == 0
    finally:
        file.chmod(mode)
    assert code == 0
    assert any(name in line for line in err)


def test_a_file_in_place_of_the_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "b damaged" / "config.yaml"
    for command in (["analyze"], ["analyze", "--plot", "knn"], ["status"]):
        code, _, err = say(capsys, command[0], str(file), *command[1:])
        assert code == 2
        if command == ["status"]:
            (line,) = err
            assert line.startswith(f"stabkit: {file}: a file, where a folder of runs was expected")
            assert "stabkit convert" in line
        else:  # a file may be a log; this one is none
            assert err[0].startswith(f"stabkit: {file}: holds one step")


@pytest.mark.lengthy
def test_a_hundred_damaged_parts_give_fifty_lines_and_a_count(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(100):
        (folder / "b damaged" / "evals" / f"part-1{i:03d}.parquet").write_bytes(b"x")
    code, _, err = say(capsys, "analyze", str(folder))
    assert code == 0
    assert len(err) == 51
    assert err[-1] == "stabkit: ... and 50 more left out"


def test_every_run_damaged_is_a_wrong_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in find_runs(folder):
        (run / "config.yaml").write_text("[")
    for command in (["analyze"], ["analyze", "--plot", "knn"]):
        code, _, err = say(capsys, command[0], str(folder), *command[1:])
        assert code == 2
        assert "no run folder in it" in err[-1]


def test_library_users_see_warnings(folder: Path) -> None:
    (folder / "b damaged" / "config.yaml").write_text("[")
    with pytest.warns(LeftOutWarning, match="b damaged: left out, "):
        assert len(stabkit.load(folder)) == 1
