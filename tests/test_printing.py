"""Text from other people is shown as text on a terminal, in a figure, a page and a spreadsheet."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from stabkit.analyze.csv_file import write_csv
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.plots import draw
from stabkit.cli import main
from stabkit.code_state import git_state
from stabkit.printing import counted, csv_cell, lines, one_line
from stabkit.rundir import RunDir, Status
from stabkit.store.reader import load
from stabkit.sweep.display import live_status
from stabkit.sweep.status import Row
from stabkit.sweep.table import status_table
from tests.analyze.conftest import plant_run
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
# Clear the screen, set the title, fill the clipboard, the 8-bit form of an escape, reverse a line,
# hide in it, end it.
HOSTILE = "\x1b[2J\x1b]0;t\x07\x1b]52;c;cm0=\x07\x9b2J\u202e\u2066\u200b\u2028\r\udcff"
SHOWN = r"\x1b[2J\x1b]0;t\x07\x1b]52;c;cm0=\x07\x9b2J\u202e\u2066\u200b\u2028\r\udcff"  # as escapes
MARKUP = r"\[/x] [/] [bold]"
BYTES = os.fsdecode(b"caf\xe9")  # Latin-1, no UTF-8


def is_plain(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_unsafe_characters_become_escapes_and_all_others_stay() -> None:
    assert one_line(HOSTILE) == SHOWN
    assert one_line("two\nlines\t.") == r"two\nlines\t."
    assert lines(f"two\nlines\t{HOSTILE}") == f"two\nlines\t{SHOWN}"
    fair = "Größe β₂ 模型 يوم 🙂 [red] \\x1b"
    assert one_line(fair) == lines(fair) == fair
    assert one_line(Path("a\x1b")) == r"a\x1b"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a folder with a run whose texts are all hostile, and a sound one."""
    folder = tmp_path / "runs"
    sound = RunDir(plant_run(folder / "a sound", seed=0))
    # means of final accuracies leave out the hostile run, which failed, if another has ended
    sound.write_status(Status("running", 100, 500))
    run = folder / f"=b\x1b[2J\u202e\n{BYTES} [/x] $"
    plant_run(run, seed=1)
    (run / "config.yaml").write_text(f"seed: 1\noptim: {{lr: {json.dumps('=' + HOSTILE[:-1])}}}\n")
    status = json.loads((run / "status.json").read_text())
    status |= {"state": "failed", "reason": MARKUP + HOSTILE, "events": {MARKUP + HOSTILE: 2}}
    (run / "status.json").write_text(json.dumps(status))
    RunDir(run).append_entry("nonfinite", 4, layers=[HOSTILE])
    (run / "layers" / "part-\x1b[2J.parquet").write_text("x")
    os.mkfifo(folder / "pipe\x1b[2J\nstabkit: forged")
    return folder


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "words",
    [["status"], ["status", "--json"], ["analyze"], ["analyze", "--plot", "knn"]],
    ids=" ".join,
)
def test_no_command_hands_a_terminal_what_others_wrote(
    hostile: Path, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([words[0], str(hostile), *words[1:]]) == 0
    said = capfd.readouterr()
    assert is_plain(said.out)
    assert is_plain(said.err)
    assert r"pipe\x1b[2J\nstabkit: forged: left out, a pipe, a socket or a device" in said.err


def test_an_error_shows_its_request_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status", HOSTILE], ["analyze", HOSTILE], ["train", HOSTILE], [HOSTILE],
                  ["train", "tiny", f"{HOSTILE}=1"], ["sweep", HOSTILE], ["report", HOSTILE],
                  ["evaluate", HOSTILE, "--knn"], ["export", HOSTILE, "-o", "x"]):  # fmt: skip
        try:
            code = main(words)
        except SystemExit as error:
            code = int(error.code or 0)
        assert code == 2, words
        said = capsys.readouterr()
        assert is_plain(said.err), words
        assert "\\x1b[2J" in said.err, words


@pytest.mark.lengthy
def test_figures_and_the_report_show_no_hidden_character(hostile: Path) -> None:
    assert main(["report", str(hostile)]) == 0
    page = (hostile / "report.html").read_text(encoding="utf-8")
    assert is_plain(page)
    assert r"\x1b[2J" in page


def test_a_table_on_a_terminal_takes_brackets_as_brackets() -> None:
    rows = [
        Row("run [red]", "failed", reason=f"it said {MARKUP}", events={MARKUP: 1}, log=MARKUP),
        Row("b" + HOSTILE, MARKUP, reason=HOSTILE),
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(status_table(rows))
    text = console.export_text()
    assert text.count(MARKUP) == 5  # reason, events, log, state and the totals
    assert text.count("run [red]") == 1
    assert text.count(SHOWN) == 2
    assert is_plain(text)


@pytest.mark.parametrize("columns", [1, 20, 80])
def test_a_live_table_lives_on_any_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real pseudo-terminal that knows Latin-1 alone."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    row = Row(f"模型 {MARKUP}{HOSTILE}", "failed", 1, 2, 3.0, 4.0, 0.5, reason=MARKUP)
    with open(theirs, "w", encoding="latin-1", errors="backslashreplace") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with live_status(lambda: [row]) as tick:
            tick()
        terminal.flush()
        seen = os.read(ours, 1 << 20)
    os.close(ours)
    assert seen
    assert b"\x1b]52" not in seen


def test_csv_cells_are_no_formulas(tmp_path: Path) -> None:
    formulas = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", " =1", "\t=1", "\r=1", "\uff1d1"]
    numbers = ["-1.5", "+2", "-inf", "1e-4"]
    texts = ["a=b", "", "lr 0.1, x-y", "a\nb"]
    for text in formulas:
        assert str(csv_cell(text))[0] in ("'", "\\"), text
    for text in numbers:
        assert csv_cell(text) == text
    table = pd.DataFrame(
        {
            "=run": formulas[:4],
            "number": [-1.0, 2.0, -3.5, float("nan")],
            "mixed": [-1, "=1", None, True],
            "kind": pd.Categorical(["@a", "b", "@a", "b"]),
        }
    )
    write_csv(table, tmp_path / "t.csv")
    rows = list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows == [
        ["'=run", "number", "mixed", "kind"],
        ["'=1+1", "-1.0", "-1", "'@a"],
        ["'+cmd|' /C calc'!A0", "2.0", "'=1", "b"],
        ["'-2+3", "-3.5", "", "'@a"],
        ["'@SUM(1)", "", "True", "b"],
    ]
    assert is_plain(str(csv_cell(texts[3])))
    harmless = pd.DataFrame({"run": texts[:3], "step": [1, 2, 3], "x": [0.1, -1e-9, 1e300]})
    write_csv(harmless, tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_bytes() == harmless.to_csv(index=False).encode()


@pytest.mark.lengthy
@pytest.mark.filterwarnings("ignore::stabkit.rundir.LeftOutWarning")
def test_every_csv_of_a_hostile_folder_is_harmless(hostile: Path, tmp_path: Path) -> None:
    assert main(["analyze", str(hostile), "--csv", str(tmp_path / "summary.csv")]) == 0
    for plot in ("knn", "accuracy-table"):
        draw(plot, diagnose(load(hostile)), tmp_path)
    tables = sorted(tmp_path.glob("*.csv"))
    assert len(tables) == 3
    for table in tables:
        text = table.read_text(encoding="utf-8")
        assert is_plain(text)
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))], table
        assert r"\x1b[2J" in text, table


def test_a_difference_in_any_encoding_is_recorded(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
                       cwd=tmp_path, check=True, capture_output=True)  # fmt: skip

    git("init", "-q")
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9\n")
    git("add", ".")
    git("commit", "-qm", "one")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    state = git_state(tmp_path)
    assert state is not None
    assert r"+caf\xe9" in state["diff"]
    json.dumps(state).encode()


@pytest.mark.lengthy
def test_a_run_whose_name_is_no_utf8_is_a_run_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / BYTES
    assert main(["train", "tiny", *SMALL, "train.steps=6", "--run-dir", str(run)]) == 0
    assert main(["train", "tiny", *SMALL, "train.steps=6", "--run-dir", str(run)]) == 0
    for words in (["status"], ["status", "--json"], ["analyze"]):
        assert main([words[0], str(run.parent), *words[1:]]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert r"caf\udce9: done at step 6 of 6" in said.out
    (only,) = load(run.parent)
    assert only.scalar("loss").index.tolist() == list(range(6))
    assert only.name == r"caf\udce9"


STREAMS = {
    "ascii": ({"PYTHONIOENCODING": "ascii"}, ">out", 0),
    "latin-1": ({"PYTHONIOENCODING": "latin-1"}, ">out", 0),
    "narrow": ({"COLUMNS": "20"}, ">out", 0),
    "closed": ({}, ">&-", 0),
    "all closed": ({}, ">&- 2>&- <&-", 0),
    "nobody reads": ({}, "", 1),
    "full": ({}, ">/dev/full", 1),
}


@pytest.mark.processes
@pytest.mark.parametrize("name", STREAMS)
def test_any_stdout_will_do(tmp_path: Path, name: str) -> None:
    """In a fresh interpreter: its end is where a traceback would come from."""
    plant_run(tmp_path / "模型" / BYTES, seed=0)
    environment, redirected, expected = STREAMS[name]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m stabkit status 模型 {redirected}"],
        cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == expected, done.stderr
    assert len(done.stderr.splitlines()) == (name == "full"), done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("words", ["--help", "signals", "config tiny", "analyze --plot list"])
def test_a_reader_that_stops_early_ends_every_verb_alike(words: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "stabkit", *words.split()],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "train --help"])
def test_help_on_a_full_disk_fails_with_a_word(words: str, unbuffered: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m stabkit {words} >/dev/full"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "stabkit: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("number", [0, 1, 2, 1000])
def test_a_number_agrees_with_its_noun(number: int) -> None:
    plural = number != 1
    for one, many in (("run", "runs"), ("batch", "batches"), ("collapse", "collapses")):
        assert counted(number, one) == f"{number:,} {many if plural else one}"
