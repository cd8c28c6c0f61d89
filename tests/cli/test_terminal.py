"""What comes out on a terminal, in a pipe, and where the terminal knows ASCII alone."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from stabkit.cli import main
from stabkit.rundir import RunDir, Status
from stabkit.store.reader import open_run
from tests.analyze.conftest import plant_run
from tests.conftest import SMALL

TIMES = ("images_per_s",)


class Terminal(io.TextIOWrapper):
    """A terminal of an encoding, and what was written to it."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, words: Sequence[str], encoding: str = "utf-8"
) -> str:
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    assert main(list(words)) == 0
    return terminal.shown()


@pytest.mark.lengthy
def test_a_training_is_shown_on_a_terminal_and_is_the_same_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "tiny", *SMALL, "train.steps=12", "--run-dir"]
    assert main([*words, str(tmp_path / "pipe")]) == 0
    piped = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[-1].split()[0] for line in piped] == ["training", "done", "stabkit"]
    assert piped[-1] == f"Next: stabkit analyze {tmp_path}/pipe"
    shown = on_terminal(monkeypatch, [*words, str(tmp_path / "terminal")])
    assert "so far" in shown
    assert "12/12" in shown
    for table in ("signals", "scalars", "evals"):
        one, other = (getattr(open_run(tmp_path / name), table)() for name in ("pipe", "terminal"))
        if table == "scalars":  # how long a step took may differ
            one, other = (frame[~frame["name"].isin(TIMES)] for frame in (one, other))
            assert len(one) > 50
        pd.testing.assert_frame_equal(
            one.reset_index(drop=True), other.reset_index(drop=True), check_exact=True
        )


@pytest.mark.lengthy
def test_a_collapsed_run_is_red_and_a_stable_one_green(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_run(tmp_path / "runs" / "lr=1,seed=0-00000001", "optim.lr=0.1")
    fallen = plant_run(tmp_path / "runs" / "lr=2,seed=0-00000002", "optim.lr=0.2", dip=0.2)
    RunDir(fallen).write_status(Status("done", 500, 500, events={"dip": 1}))
    shown = on_terminal(monkeypatch, ["status", str(tmp_path / "runs")])
    assert "\x1b[32mdone · stable" in shown
    assert "\x1b[33mdone · unstable" in shown
    assert "2 of 2 done (1 unstable, 1 stable)" in shown
    assert f"Next: stabkit analyze {tmp_path}/runs" in shown
    plain = on_terminal(monkeypatch, ["status", str(tmp_path / "runs")], "ascii")
    assert "done - unstable" in plain
    assert "\\u" not in plain


def test_status_means_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "`stabkit train tiny` makes a first run" in capsys.readouterr().err
    plant_run(tmp_path / "runs" / "study" / "one")
    plant_run(tmp_path / "runs" / "study" / "two", dip=0.2)
    for words in ([], ["study"]):
        assert main(["status", *words]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"done         {'' if words else 'study/'}one  stable  step 500/500",
            f"done         {'' if words else 'study/'}two  unstable  step 500/500",
        ]


@pytest.mark.parametrize("words", [["signals"], ["config", "tiny"], ["help"], ["analyze", "RUN"]])
def test_nothing_is_escaped_where_there_is_no_utf8(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant_run(tmp_path / "run", dip=0.2, spike=True)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    with suppress(SystemExit):
        main([str(run) if word == "RUN" else word for word in words])
    text = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert len(text) > 500
    assert "\\u" not in text
    assert "\\x" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("shtab") is None:
        assert main(["completion", shell]) == 2
        assert "pip install 'stabkit[completion]'" in capsys.readouterr().err
        pytest.skip("the extra `completion` (shtab) is not installed")
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "analyze" in printed
    assert "metric" in printed


# what a shell offers for the words so far, with the script sourced
OFFERS = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _shtab_stabkit; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": "complete -C '{words}'",
}


@pytest.mark.skipif(find_spec("shtab") is None, reason="the extra `completion` is not installed")
@pytest.mark.parametrize("shell", OFFERS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [("stabkit an", "analyze"), ("stabkit report my_r", "my_runs"),
     ("stabkit analyze --pl", "--plot"), ("stabkit completion fi", "fish"),
     ("stabkit analyze runs --plot lr-s", "lr-sensitivity"),
     ("stabkit branch run --with stab", "stable_adamw")],
)  # fmt: skip
def test_a_shell_offers_verbs_options_and_folders(
    shell: str, words: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "my_runs").mkdir()
    command = f"source ./script; {OFFERS[shell].format(words=words)}"
    done = subprocess.run(
        [shell, "-c", command], cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    first = [line.split("\t")[0].rstrip("/") for line in done.stdout.splitlines()]
    assert first == [offered], done.stderr
