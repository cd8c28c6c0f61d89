"""Links, pipes and devices in the place of a file of a run."""

import os
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.rundir import LinkedError, RunDir


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "name", ["layers", "scalars", "evals", "checkpoints", "events.jsonl", "log.txt", ".lock"]
)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_nothing_in_a_run_leads_its_writes_elsewhere(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    (victim / "part-000000.parquet").touch()
    run.mkdir()
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(victim if kind == "link" else tmp_path / "made")
    what = "a pipe" if kind == "pipe" else "a link"
    with pytest.raises(LinkedError, match=rf"{name}: is {what}"), RunDir(run).lock():
        pass
    assert (
        main(["train", "tiny", "train.steps=1", "optim.warmup_steps=0", "--run-dir", str(run)]) == 2
    )
    assert str(run) in capsys.readouterr().err  # that it is no run, or what in it is a link
    assert [path.name for path in run.iterdir()] == [name]
    assert [path.name for path in victim.iterdir()] == ["part-000000.parquet"]
    assert not (tmp_path / "made").exists()
    assert not RunDir(run).is_busy()


@pytest.mark.lengthy
@pytest.mark.parametrize("kind", ["pipe", "device", "endless"])
def test_no_reader_waits_for_what_is_no_file(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("status.json", "config.yaml", "events.jsonl", "job.json", "log.txt", ".lock",
             "layers/part-000000.parquet", "evals/part-000000.parquet")  # fmt: skip
    for seed, name in enumerate(names):
        run = tmp_path / f"run {seed}"
        path = run / name
        path.parent.mkdir(parents=True)
        (run / "config.yaml").write_text(f"seed: {seed}\n")
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(1 << 40)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("unreadable")
    assert main(["analyze", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    for name in ("status.json", "config.yaml", "events.jsonl", "layers/part", "evals/part"):
        assert name in err
