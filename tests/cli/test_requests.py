import re
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from stabkit.cli import main
from stabkit.cli.dispatch import PATIENCE_S, module_of
from stabkit.cli.parser import EXAMPLES, VERBS, build_parser
from tests.analyze.conftest import plant_run, undrawn
from tests.conftest import SMALL

__all__ = ["undrawn"]  # the fixture

ROOT = Path(__file__).parents[2]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tinny"], "no such preset; did you mean 'tiny'"),
        (["train", "no/such.yaml"], "No such file"),
        (["train", "tiny", "optim.lrr=1"], "did you mean 'optim.lr'"),
        (["train", "tiny", "--stepz", "3"], "train takes no '--stepz'"),
        (["sweep", "no.yaml"], "No such file"),
        (["sweep", "sweeps/lr_grid.yaml", "--scale", "cifr"], "did you mean 'cifar'"),
        (
            ["sweep", "sweeps/lr_grid.yaml", "--dry"],
            "sweep takes no '--dry'; did you mean '--dry-run'",
        ),
        (["status", "no-runs"], "no such folder"),
        (["analyze", "no-runs"], "no such folder"),
        (
            ["analyze", "tests", "--plot", "knn", "-o", "knn.png"],
            "--out knn.png would be a folder: it gets knn.png, .pdf and .csv",
        ),
        (
            ["analyze", "tests", "--plot", "grad_norm"],
            "no plot 'grad_norm'; did you mean 'grad-norms'",
        ),
        (["analyze", "sweeps"], "no run folder in it or below it"),
        (["analyze", "tests", "x=1"], "analyze takes no 'x=1'"),
        (["train", "tiny", "--optim.lr=1"], "settings go without dashes: optim.lr=1"),
        (["train", "lr_grid"], "lr_grid: is a sweep; `stabkit sweep lr_grid` trains its runs"),
        (["analyze", "x=1"], "analyze takes no 'x=1'"),
        # between the two may stand the runs of this clone
        (["config", "tinyy"], "did you mean 'tiny'?"),
        (["config", "tinyy"], "tinyy: no such folder, and no runs/tinyy"),
        (["config", "zzz"], "presets: cifar, imagenet, tiny"),
        (["status", "tests", "--watch", "--json"], "--json prints once, and --watch goes on"),
    ],
)
def test_wrong_requests_exit_2_and_say_what_would_be_right(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["note", "run", "abc", "hello"], "STEP: 'abc' is no whole number; write it in digits"),
        (["convert", "a", "-o", "b", "--n", "10k"], "'10k' is no whole number; write it in digits"),
        (["convert", "a", "-o", "b", "--chance", "10%"], "'10%' is no number, such as 0.1"),
        (["report"], "required: RUNS"),
        (["completion"], "required: bash|zsh|fish"),
        (["branch", "run", "--at", "dip", "--quick", "--full"], "not allowed with"),
    ],
)
def test_the_parser_says_what_would_be_right(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("analyze", "log.csv", "--csv"), ("report", "log.csv", "-o"), ("report", ".", "-o")]
)
def test_an_output_replaces_its_like_and_nothing_else(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    log = Path("log.csv")
    log.write_text("step,loss\n" + "".join(f"{i},{2 - i / 100}\n" for i in range(30)))
    plant_run(tmp_path / "run")
    for name in ("log.csv", "run/config.yaml", "run/alerts.txt"):
        file = Path(name)
        before = file.read_bytes() if file.is_file() else file.write_text("mine") and b"mine"
        assert "name another file" in refused(capsys, *words, name)
        assert file.read_bytes() == before
    Path("empty").touch()
    for _ in range(2):
        assert main([*words, "empty"]) == 0


def test_of_several_processes_another_says_what_the_first_did_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends it while it waits, where the first process refuses the same."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    said = refused(capsys, "train", "tiny", "optim.lrr=1")
    assert said.startswith("stabkit: process 1: tiny:\n  - optim.lrr: no such setting")
    assert waited == [PATIENCE_S]
    monkeypatch.setenv("RANK", "0")
    assert refused(capsys, "train", "tiny", "optim.lrr=1").startswith("stabkit: tiny:")
    assert len(waited) == 1


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("trian", "did you mean 'train'?"),
        ("anlyze", "did you mean 'analyze'?"),
        ("plot", "use `stabkit analyze RUNS --plot NAME`"),
        ("frobnicate", "known: train, sweep, status"),
    ],
)
def test_unknown_verbs_exit_2_and_name_the_one_that_was_meant(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"no verb {word!r}; {hint}" in refused(capsys, word, "x")


def test_without_a_verb_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    printed = refused(capsys)
    assert "stabkit sweep lr_grid" in printed
    with pytest.raises(SystemExit) as caught:
        main(["help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_its_help_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", verb], [verb, "--help"]):
        with pytest.raises(SystemExit):
            main(words)
    first, second = capsys.readouterr().out.split("usage: ")[1:]
    assert first == second


def test_every_example_of_the_help_is_a_command_that_is_understood() -> None:
    lines = [line.split("  ")[1] for line in EXAMPLES.splitlines() if line.startswith("  stabkit")]
    assert len(lines) > 5
    for line in lines:
        _, verb, *words = shlex.split(line)
        build_parser(verb).parse_known_args([verb, *words])


@pytest.mark.lengthy
def test_train_runs_resumes_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a 'weird' folder ü"
    command = ["train", "tiny", *SMALL, "train.steps=5", "--run-dir", str(folder)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    knn = re.search(
        rf"^{re.escape(str(folder))}: done at step 5 of 5, held-out kNN ", printed, re.M
    )
    assert knn
    assert re.match(r"\d\d?\.\d %$", printed[knn.end() :].split("\n")[0]), "in percent"
    assert main(command) == 0
    assert "done at step 5 of 5" in capsys.readouterr().out


def test_data_that_is_missing_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.name=imagefolder", f"data.path={tmp_path}/nothing"]
    runs = tmp_path / "runs"
    for command in (
        ["train", "tiny", *SMALL, *words, "--run-dir", str(runs)],
        ["sweep", "sweeps/momentum.yaml", *SMALL, *words, "--runs", str(runs)],
    ):
        assert main(command) == 2
        assert f"data.path = '{tmp_path}/nothing': no such folder" in capsys.readouterr().err
        assert not runs.exists()


def test_damaged_data_are_refused_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.parquet").write_bytes(b"no table")
    (tmp_path / "test.parquet").write_bytes(b"no table")
    words = ["data.name=parquet", f"data.path={tmp_path}", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "tiny", *SMALL, *words]) == 2
    assert f"{tmp_path}/train.parquet" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_plots_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "anything", "--plot", "list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {
        "accuracy-table",
        "event-zoom",
        "freeze-patch",
        "grad-norms",
        "knn",
        "layer-map",
        "loss",
        "lr-sensitivity",
        "onset-order",
        "optimizer",
        "signals",
        "stability-map",
    }


@pytest.mark.processes
def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stabkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("stabkit ")


HEAVY = {"numpy", "pandas", "pyarrow", "pydantic", "scipy", "torch", "yaml"}


@pytest.mark.processes
def test_help_and_version_import_next_to_nothing() -> None:
    code = """
import sys
from stabkit.cli import main
for words in (["--help"], ["--version"], ["train", "--help"], ["trian"]):
    try:
        main(words)
    except SystemExit:
        pass
print("loaded", *sys.modules, file=sys.stderr)
"""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    _, loaded = done.stderr.rsplit("loaded ", 1)
    names = set(loaded.split())
    assert not names & HEAVY
    assert {name for name in names if name.startswith("stabkit")} <= {
        "stabkit", "stabkit.cli", "stabkit.cli.options", "stabkit.cli.parser", "stabkit.garbage",
        "stabkit.presets", "stabkit.printing", "stabkit.version",
    }  # fmt: skip


@pytest.mark.processes
def test_a_launcher_holds_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    """It stays for the length of a sweep, beside those of others on a login node."""
    code = """
import sys
from stabkit.cli import main
main(["sweep", "lr_grid", "--dry-run"])
print("loaded", *sys.modules, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert not {"pandas", "scipy", "torch"} & set(done.stderr.rsplit("loaded ", 1)[1].split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help_and_its_module(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: stabkit {verb} ")
    assert "--help" in printed
    assert find_spec(module_of(verb)) is not None


def test_an_error_names_the_verb_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "log.csv"])
    assert capsys.readouterr().err.splitlines()[-1].startswith("stabkit convert: error: ")
