"""`stabkit analyze LOG` and `stabkit report LOG`: converted on the way."""

import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from stabkit import LeftOutWarning, load
from stabkit.cli import main
from tests.convert.events import write_events


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in; temporary folders lie in another, which must end empty."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def losses(spike: bool) -> list[float]:
    rng = np.random.default_rng(0)
    steps = np.arange(200)
    loss = (1.5 + 4.5 * np.exp(-steps / 60)) * np.exp(0.01 * rng.normal(size=steps.size))
    if spike:
        loss[120:126] *= [2, 3, 2.5, 2, 1.6, 1.3]
    return [float(x) for x in loss]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_log_is_judged_and_nothing_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{10 * i},{loss}" for i, loss in enumerate(losses(spike=True))]
    (here / "training.log").write_text("\n".join(["step,train_loss", *rows]))
    assert main(["analyze", "training.log"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("training.log: read as table")
    assert "stabkit convert training.log -o runs/training" in printed
    assert "training.log: 1 run" in printed
    assert "unstable" in printed
    assert "step 1,200" in printed
    assert "temporary" not in printed
    assert names(here) == ["training.log"]
    assert names(here.parent / "temporary") == []


def test_a_log_of_several_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = zip(losses(spike=True), losses(spike=False), strict=True)
    lines = [f"{i},{a},{b}" for i, (a, b) in enumerate(rows)]
    (here / "wandb_export.csv").write_text("\n".join(["Step,bad - loss,good - loss", *lines]))
    assert main(["analyze", "wandb_export.csv", "--csv", "table.csv"]) == 0
    assert "1 of 2 runs trained unstably" in capsys.readouterr().out
    assert names(here) == ["table.csv", "wandb_export.csv"]


@pytest.mark.lengthy
def test_the_page_and_the_figures_lie_beside_the_log(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i},{loss}" for i, loss in enumerate(losses(spike=True))]
    (here / "log.csv").write_text("\n".join(["step,loss", *rows]))
    assert main(["report", "log.csv"]) == 0
    page = (here / "log-report.html").read_text()
    assert "log.csv" in page
    assert str(here.parent / "temporary") not in page
    assert main(["analyze", "log.csv", "--plot", "signals"]) == 0
    assert names(here) == ["log-figures", "log-report.html", "log.csv"]
    assert "signals.png" in names(here / "log-figures")
    assert names(here.parent / "temporary") == []
    assert "log-figures" in capsys.readouterr().out


def test_a_folder_of_events_is_a_log(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [(i, "loss", loss) for i, loss in enumerate(losses(spike=False))]
    write_events(here / "tb" / "a", events)
    write_events(here / "tb" / "b", events)
    assert main(["analyze", "tb"]) == 0
    assert "2 runs" in capsys.readouterr().out


def test_what_cannot_be_read_is_refused_with_the_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "log.csv").write_text("loss\n3\n2\n1\n")
    for verb in ("analyze", "report"):
        assert main([verb, "log.csv"]) == 2
        error = capsys.readouterr().err
        assert error.strip().endswith("Try: stabkit convert log.csv -o runs/log --row-step")
    (here / "empty").mkdir()
    assert main(["analyze", "empty"]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert names(here) == ["empty", "log.csv"]
    assert names(here.parent / "temporary") == []


def test_a_log_of_which_nothing_is_judged_prints_the_command_that_names_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,err\n" + "".join(f"{i},{9 - i / 10}\n" for i in range(40)))
    assert main(["analyze", str(log)]) == 0
    out = capsys.readouterr().out
    assert "No series is a loss by its name. If err is one: stabkit convert" in out
    words = shlex.split(out.split("If err is one: ")[1].splitlines()[0])
    words[words.index("-o") + 1] = str(tmp_path / "run")
    assert main(words[1:]) == 0
    capsys.readouterr()
    assert main(["analyze", str(tmp_path / "run")]) == 0
    assert "Judged on loss;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "noted"),
    [("objective", True), ("loss", False), ("lr", False), ("sec_per_step", False), ("top5", False)],
)
def test_beside_an_accuracy_a_series_that_may_be_a_loss_is_named(
    name: str, noted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{i},{i / 100},{0.5 - i / 100},{0.1 + i / 50}\n" for i in range(40)]
    log.write_text(f"step,epoch,{name},val_acc\n" + "".join(rows))
    assert main(["analyze", str(log)]) == 0
    assert ("If objective is one: stabkit convert" in capsys.readouterr().out) == noted


def test_what_is_no_accuracy_for_its_values_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss,val_acc\n" + "".join(f"{i},1,{i / 50 - 0.1}\n" for i in range(40)))
    assert main(["analyze", str(log)]) == 0
    assert "val_acc holds -0.1: no accuracy, which is in 0..1" in capsys.readouterr().out


def test_rows_that_share_a_step_are_no_steps_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("epoch,loss\n" + "".join(f"{i // 10},{9 - i / 100}\n" for i in range(400)))
    assert main(["analyze", str(log)]) == 0
    assert "-o runs/log --row-step" in capsys.readouterr().out


def plant_logs(folder: Path) -> None:
    """Write a Lightning folder, two logs of other names, and two files that are no logs."""
    rows = [f"{i},{loss}" for i, loss in enumerate(losses(spike=False))]
    (folder / "version_0").mkdir(parents=True)
    (folder / "version_0" / "metrics.csv").write_text("\n".join(["step,train_loss", *rows]))
    (folder / "hf").mkdir()
    history = ", ".join(f'{{"step": {i}, "loss": {2 - i / 100}}}' for i in range(30))
    (folder / "hf" / "trainer_state.json").write_text(f'{{"log_history": [{history}]}}')
    (folder / "mine.csv").write_text("\n".join(["step,loss", *rows]))
    (folder / "requirements.txt").write_text("torch==2.5\nnumpy\n")
    (folder / "summary.json").write_text('{"loss": 1.5, "acc": 0.5}')


def test_logs_that_are_not_read_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant_logs(here / "logs")
    assert main(["analyze", "logs"]) == 0
    printed = capsys.readouterr().out
    said = "not read: hf, mine.csv; one is read by its name: stabkit analyze logs/hf\n"
    assert said in printed


def test_a_folder_of_logs_of_any_name_is_refused_with_the_command_for_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_logs(here / "logs")
    shutil.rmtree(here / "logs" / "hf")
    shutil.rmtree(here / "logs" / "version_0")
    assert main(["analyze", "logs"]) == 2
    said = "logs of other tools: mine.csv; one is read by its name: stabkit analyze logs/mine.csv"
    assert said in capsys.readouterr().err
    with pytest.warns(LeftOutWarning, match=r"logs of other tools: mine\.csv"):
        assert len(load("logs")) == 0
