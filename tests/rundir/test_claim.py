"""Every command refuses a folder that holds anything but its run, and leaves every byte."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.cli import main
from stabkit.config import load_config, save_config
from stabkit.rundir import ForeignFolderError, RunDir, State, Status
from stabkit.sweep.folders import write_waiting
from stabkit.sweep.grid import PlannedRun, load_sweep
from stabkit.train import loop
from stabkit.train.weights import export
from tests.conftest import SMALL, small_config, tree

WORDS = ["tiny", *SMALL]
Plant = Callable[[Path, Path], object]  # from what was made, to a folder


def monitored(folder: Path, error: Exception | None = None) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, stabkit.Monitor(model, optimizer, folder):
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
        if error:
            raise error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every kind, made once and copied."""
    made = tmp_path_factory.mktemp("made")
    monitored(made / "monitor done")
    monitored(made / "monitor failed", ValueError("user"))
    log = made / "log.csv"
    log.write_text("step,loss\n" + "".join(f"{i},{1 / (i + 1)}\n" for i in range(9)))
    assert main(["convert", str(log), "-o", str(made / "converted")]) == 0
    assert main(["train", *WORDS, "--run-dir", str(made / "run")]) == 0
    weights = made / "weights.pt"
    export(RunDir(made / "run"), weights)
    assert main(["import", str(weights), *WORDS, "--run-dir", str(made / "imported")]) == 0
    return made


def copy_of(name: str) -> Plant:
    return lambda made, folder: shutil.copytree(made / name, folder)


def as_(state: str) -> Plant:
    def plant(made: Path, folder: Path) -> None:
        shutil.copytree(made / "monitor failed", folder)
        RunDir(folder).write_status(Status(state, 2))  # type: ignore[arg-type]

    return plant


def with_our_config(name: str) -> Plant:
    def plant(made: Path, folder: Path) -> None:
        shutil.copytree(made / name, folder)
        (folder / "config.yaml").write_text(save_config(load_config("tiny", SMALL)))

    return plant


def files(**content: str) -> Plant:
    def plant(_: Path, folder: Path) -> None:
        for name, text in content.items():
            path = folder / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return plant


def in_place(_: Path, folder: Path) -> None:
    folder.write_text("a file")


def no_meta(made: Path, folder: Path) -> None:
    shutil.copytree(made / "run", folder)
    (folder / "meta.json").write_text("{")


def no_config(made: Path, folder: Path) -> None:
    shutil.copytree(made / "run", folder)
    (folder / "config.yaml").unlink()


# What lies in the folder, and what the refusal says about it.
FOREIGN: dict[str, tuple[Plant, str]] = {
    "monitor done": (copy_of("monitor done"), "holds what a Monitor recorded"),
    "monitor failed": (copy_of("monitor failed"), "holds what a Monitor recorded"),
    "monitor running": (as_("running"), "holds what a Monitor recorded"),
    "monitor and our config": (with_our_config("monitor done"), "this run did not record"),
    "converted": (copy_of("converted"), "holds a converted log"),
    "converted and our config": (with_our_config("converted"), "holds a converted log"),
    "imported": (copy_of("imported"), "imported weights"),
    "photos": (files(a_dot_jpg="a", b_dot_jpg="b"), "holds 'a.jpg', 'b.jpg', and no run"),
    "checkout": (files(_dot_git__HEAD="ref"), "holds '.git', and no run"),
    "a checkpoint alone": (files(checkpoints__last_dot_pt="x"), "holds 'checkpoints', and no run"),
    "settings of others": (files(config_dot_yaml="lr: 1"), "lr: no such setting"),
    "torn settings": (files(config_dot_yaml="a: [1,"), "not valid YAML"),
    "no settings any more": (no_config, "holds a run without its config.yaml"),
    "torn meta": (no_meta, "meta.json: not readable"),
    "a file": (in_place, "a file, where a folder was expected"),
    "a link": (lambda _, folder: folder.symlink_to("nowhere"), "a link to nothing"),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("case", FOREIGN)
def test_train_and_import_refuse_it(
    made: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, message = FOREIGN[case]
    folder = tmp_path / "runs" / "mine"
    folder.parent.mkdir()
    plant(made, folder)
    before = tree(tmp_path)
    capsys.readouterr()
    assert main(["train", *WORDS, "--run-dir", str(folder)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert str(folder) in said.err
    assert said.out == ""
    with pytest.raises(ValueError, match=r".*") as caught:
        loop.train(load_config("tiny", SMALL), RunDir(folder))
    assert message in str(caught.value)
    weights = str(made / "weights.pt")
    assert main(["import", weights, *WORDS, "--run-dir", str(folder)]) == 2
    assert tree(tmp_path) == before


STATES: tuple[State, ...] = ("done", "preempted", "failed", "running", "waiting")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr=0.5", "optim.lr: 0.004 there, 0.5 asked"),
        ("seed=3", "seed: 0 there, 3 asked"),
        ("train.steps=40", "train.steps: 24 there, 40 asked"),
    ],
)
def test_a_run_refuses_another_configuration_in_every_state(
    made: Path, tmp_path: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, before in in_states(made, tmp_path, STATES):
        capsys.readouterr()
        assert main(["train", *WORDS, word, "--run-dir", str(folder)]) == 2
        said = capsys.readouterr().err
        assert "is the folder of another run" in said
        assert message in said
        assert said.count("there,") == 1
        with pytest.raises(ForeignFolderError, match="another run"):
            loop.train(load_config("tiny", [*SMALL, word]), RunDir(folder))
        assert tree(folder) == before


def in_states(
    made: Path, tmp_path: Path, states: Sequence[State]
) -> Iterator[tuple[Path, dict[str, tuple[int, int, bytes]]]]:
    """Put a copy of the run into one state after the other; yield it and its content."""
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    for state in states:
        RunDir(folder).write_status(Status(state, 14, 24))
        yield folder, tree(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.lengthy
def test_what_may_lie_in_the_folder_of_a_run_that_begins(made: Path, tmp_path: Path) -> None:
    for name in (".lock", "log.txt", "slurm-12_3.out", ".config.yaml.tmp", ".config.yaml.x8Q.tmp"):
        (tmp_path / name).write_text("text")
    assert main(["train", *WORDS, "--run-dir", str(tmp_path)]) == 0
    assert (tmp_path / "log.txt").read_text() == "text"


@pytest.mark.lengthy
def test_a_run_goes_on_beside_other_files_in_its_folder(made: Path, tmp_path: Path) -> None:
    """Also in an older folder, whose configuration lacks settings that were added later."""
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    (folder / "notes.md").write_text("mine")
    lines = (folder / "config.yaml").read_text().splitlines()
    older = [line for line in lines if line.strip() not in ("qk_norm: false", "beta2: 0.999")]
    assert len(older) == len(lines) - 2
    (folder / "config.yaml").write_text("\n".join(older))
    RunDir(folder).write_status(Status("preempted", 24, 24))
    assert main(["train", *WORDS, "runtime.threads=1", "--run-dir", str(folder)]) == 0
    assert (folder / "notes.md").read_text() == "mine"
    assert RunDir(folder).standing() == "done"


# --- what a wrong request does to the run that it names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runtime.device=foo", "runtime.device = 'foo': should be auto, cpu, cuda"),
        ("runtime.device=meta", "runtime.device = 'meta': should be auto, cpu, cuda"),
        ("runtime.device=cuda:77", "runtime.device 'cuda:77': the"),
        ("runtime.device=mps", "runtime.device 'mps': there is no such device here"),
        ("runtime.signals_every=9", "does nothing without runtime.signals"),
        ("data.name=imagefolder", "imagefolder data needs path"),
    ],
)
def test_a_wrong_override_leaves_the_run_as_it_was(
    made: Path, tmp_path: Path, word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, before in in_states(made, tmp_path, STATES[1:]):
        capsys.readouterr()
        assert main(["train", *WORDS, word, "--run-dir", str(folder)]) == 2
        if word != "runtime.device=cuda:77":  # this machine may have GPUs
            assert message in capsys.readouterr().err
        assert tree(folder) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runtime.device=cuda:77"], "runtime.device 'cuda:77': "),
        (["compute.precision=tf32"], "compute.precision 'tf32' needs a CUDA device"),
        (["model={name: vit_of_nobody}"], "vit_of_nobody"),
        (["data.name=imagefolder", "data.path=/no/where"], "no such folder"),
    ],
)
def test_a_wrong_request_makes_no_folder(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *WORDS, *words, "--run-dir", str(tmp_path / "a" / "run")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_reported_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config("runtime.device=xpu", "data.name=imagefolder", "data.path=/no/where")
    with pytest.raises(ValueError, match=r"runtime.device(.|\n)*data.path"):
        loop.train(config, RunDir(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_failed_work_is_not_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder then says which run failed, and the same command goes on in it."""

    def fail(*_: object) -> None:
        raise OSError("train.parquet: input/output error")

    monkeypatch.setattr(loop, "load_data", fail)
    folder = tmp_path / "run"
    words = [*WORDS, "--run-dir", str(folder)]
    for _ in range(2):
        assert main(["train", *words]) == 1
        status = RunDir(folder).read_status()
        assert status is not None
        assert status.state == "failed"
        assert "train.parquet" in str(status.reason)
    assert (folder / "config.yaml").exists()
    assert main(["train", *words, "seed=1"]) == 2
    assert "seed: 0 there, 1 asked" in capsys.readouterr().err


# --- the Monitor


@pytest.mark.parametrize("first_step", [None, 0, 3, 24])
@pytest.mark.parametrize(
    "case", ["run", "imported", "converted", "waiting", "log", "status", "file"]
)
def test_a_monitor_refuses_what_no_monitor_wrote(
    made: Path, tmp_path: Path, case: str, first_step: int | None
) -> None:
    folder = tmp_path / "run"
    if case == "waiting":  # as a sweep leaves it
        folder.mkdir()
        (folder / "config.yaml").write_text(save_config(small_config()))
        RunDir(folder).write_status(Status("waiting"))
    elif case == "log":
        files(events_dot_jsonl='{"step": 3, "loss": 1}\n{"step": 4, "loss": 2}\n')(made, folder)
    elif case == "status":
        files(status_dot_json='{"ok": true}')(made, folder)
    elif case == "file":
        in_place(made, folder)
    else:
        shutil.copytree(made / case, folder)
    before = tree(tmp_path)
    model = nn.Linear(3, 2)
    with pytest.raises(ForeignFolderError, match="another folder"):
        stabkit.Monitor(
            model, torch.optim.SGD(model.parameters(), 0.1), folder, first_step=first_step
        )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 30, -1])
def test_a_monitor_goes_on_where_its_first_log_line_was_torn(tmp_path: Path, cut: int) -> None:
    line = b'{"time": "2026-01-01T00:00:00.000+00:00", "kind": "noticed", "step": 0}\n'
    (tmp_path / "events.jsonl").write_bytes(line[:cut])
    monitored(tmp_path)
    assert stabkit.open_run(tmp_path).scalar("grad_norm_total").index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("text", ["hello", "hello\n", '{"step": 3', '{"loss": 1}'])
def test_a_monitor_refuses_a_log_of_others_that_is_torn(tmp_path: Path, text: str) -> None:
    (tmp_path / "events.jsonl").write_text(text)
    with pytest.raises(ForeignFolderError, match="was not written by a Monitor"):
        monitored(tmp_path)
    assert (tmp_path / "events.jsonl").read_text() == text


def test_a_monitor_records_beside_what_its_training_keeps(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 0.1\nmodel: linear\n")
    (tmp_path / "checkpoint.pt").write_bytes(b"mine")
    monitored(tmp_path)
    assert stabkit.open_run(tmp_path).scalar("grad_norm_total").index.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="holds steps 0 to 2 already; pass first_step=3"):
        monitored(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"mine"


# --- convert and evaluate


@pytest.mark.parametrize("case", ["run", "monitor done", "imported", "converted"])
def test_a_log_is_converted_into_no_folder_that_holds_anything(
    made: Path, tmp_path: Path, case: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / case, folder)
    before = tree(tmp_path)
    assert main(["convert", str(made / "log.csv"), "-o", str(folder)]) == 2
    assert tree(tmp_path) == before


def test_evaluate_refuses_a_checkpoint_that_is_not_of_the_run(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    (folder / ".lock").unlink()
    (folder / "config.yaml").write_text(save_config(small_config("seed=5")))
    before = tree(tmp_path)
    assert main(["evaluate", str(folder), "--knn"]) == 2
    assert "belongs to run" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--knn", "runtime.device=foo"]) == 2
    assert "runtime.device = 'foo'" in capsys.readouterr().err
    assert main(["export", str(folder), "-o", str(tmp_path / "x.pt")]) == 2
    assert tree(tmp_path) == before


@pytest.mark.lengthy
@pytest.mark.parametrize("kept", ["config.yaml", "status.json", "evals/part-000000.parquet"])
def test_no_output_is_written_over_what_a_run_keeps(made: Path, tmp_path: Path, kept: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    before = tree(tmp_path)
    assert main(["analyze", str(folder), "--csv", str(folder / kept)]) == 2
    assert main(["report", str(folder), "-o", str(folder / kept)]) == 2
    assert main(["export", str(folder), "-o", str(folder / kept)]) == 2
    assert tree(tmp_path) == before
    assert main(["analyze", str(folder), "--csv", str(folder / "table.csv")]) == 0
    assert main(["analyze", str(folder), "--csv", str(folder / "table.csv")]) == 0


# --- sweeps

SWEEP = "name: demo\nbase: tiny\ngrid: {optim.lr: [1e-3, 2e-3, 3e-3]}\n"


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--retry", "failed"]])
def test_a_sweep_names_every_run_whose_folder_holds_something_else(
    made: Path,
    tmp_path: Path,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(SWEEP)
    planned = load_sweep(Path("demo.yaml"), None, SMALL).runs
    folders = [Path("runs/demo") / run.folder for run in planned]
    shutil.copytree(made / "run", folders[0])  # done, of another learning rate
    shutil.copytree(made / "monitor done", folders[2])
    before = tree(tmp_path)
    assert main(["sweep", "demo.yaml", *SMALL, *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{folders[0]}: is the folder of another run" in said.err
    assert "optim.lr: 0.004 there, 0.001 asked" in said.err
    assert f"{folders[2]}: holds what a Monitor recorded" in said.err
    assert str(folders[1]) not in said.err
    assert tree(tmp_path) == before


def test_a_run_with_two_folders_is_named_with_both(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text("name: demo\nbase: tiny\n")
    run = load_sweep(Path("demo.yaml"), None, SMALL).runs[0].run_id
    for name in (f"seed=0-{run}", f"threads=2-{run}"):
        shutil.copytree(made / "run", Path("runs/demo") / name)
    before = tree(tmp_path)
    assert main(["sweep", "demo.yaml", *SMALL]) == 2
    assert f"seed=0-{run} and threads=2-{run} are one run; move all" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_a_sweep_is_not_run_inside_a_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.yaml").write_text(SWEEP)
    shutil.copytree(made / "monitor done", "runs/demo")
    before = tree(tmp_path)
    assert main(["sweep", "demo.yaml", *SMALL]) == 2
    assert tree(tmp_path) == before


def test_a_sweep_writes_nothing_into_the_folder_of_a_monitor(made: Path, tmp_path: Path) -> None:
    """The folder may have become one after the sweep file was read."""
    folder = tmp_path / "cell"
    shutil.copytree(made / "monitor done", folder)
    before = tree(tmp_path)
    with pytest.raises(ForeignFolderError, match="a Monitor recorded"):
        write_waiting(PlannedRun({}, small_config(), "run"), RunDir(folder), "missing", 1)
    assert tree(tmp_path) == before
    assert np.isfinite(stabkit.open_run(folder).scalar("grad_norm_total")).all()
