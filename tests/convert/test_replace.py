"""`convert --force` replaces an earlier conversion, and nothing else."""

import shlex
from pathlib import Path

import pytest

import stabkit
from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError


def log(folder: Path, name: str, *losses: float) -> Path:
    path = folder / name
    path.write_text("\n".join(["step,loss", *(f"{i},{x}" for i, x in enumerate(losses))]))
    return path


def chart(folder: Path, *runs: str) -> Path:
    path = folder / "chart.csv"
    header = ",".join(f'"{name}"' for name in ["Step", *(f"{run} - loss" for run in runs)])
    path.write_text("\n".join([header, *(f"{i}{',1' * len(runs)}" for i in range(3))]))
    return path


def test_an_earlier_conversion_is_replaced_whole(tmp_path: Path, out: Path) -> None:
    convert(chart(tmp_path, "a", "b"), out)
    (out / "figures").mkdir()
    (out / "a" / "report.html").touch()
    convert(log(tmp_path, "one.csv", 3, 2, 1), out, force=True)
    assert stabkit.open_run(out).scalar("loss").tolist() == [3, 2, 1]
    assert not (out / "a").exists()
    assert not (out / "figures").exists()
    convert(chart(tmp_path, "b", "c"), out, force=True)
    assert [run.path.name for run in stabkit.load(out)] == ["b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chart.csv", "one.csv", "out"]


def test_a_conversion_that_fails_leaves_the_earlier_one(tmp_path: Path, out: Path) -> None:
    convert(log(tmp_path, "one.csv", 3, 2, 1), out)
    (tmp_path / "text").write_text("no numbers at all\n")
    with pytest.raises(ConvertError, match="not readable as a table"):
        convert(tmp_path / "text", out, force=True)
    assert stabkit.open_run(out).scalar("loss").tolist() == [3, 2, 1]


@pytest.mark.parametrize("what", ["run", "notes in a conversion", "other folder", "file", "link"])
def test_what_convert_did_not_make_is_kept(what: str, tmp_path: Path, out: Path) -> None:
    source = log(tmp_path, "one.csv", 3, 2, 1)
    if what == "file":
        out.touch()
    elif what == "link":
        convert(source, tmp_path / "real")
        out.symlink_to(tmp_path / "real")
    else:
        out.mkdir()
        (out / "x").mkdir()
        if what == "run":
            (out / "x" / "config.yaml").touch()
        elif what == "notes in a conversion":
            convert(source, out / "a")
            (out / "a" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConvertError, match=f"{out}: --force replaces only what convert made"):
        convert(source, out, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_printed_commands_work_as_they_are(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "my log.csv"
    source.write_text("loss,val acc1\n3,0.1\n2,0.12\n1,0.14\n")
    assert main(["convert", str(source), "-o", str(out), "--n", "50", "--map", "x=skip"]) == 2
    command = capsys.readouterr().err.split("Try: ")[1].strip()
    words = shlex.split(command.replace("--map=x=skip", ""))
    assert words[0] == "stabkit"
    assert "--n=50" in words
    assert main(words[1:]) == 0
    printed = capsys.readouterr().out
    command = next(line for line in printed.splitlines() if line.startswith("If a guess is wrong"))
    assert main(shlex.split(command.split(": ", 1)[1])[1:]) == 0
    values = stabkit.open_run(out).evals("val acc1")["value"]
    assert values.tolist() == pytest.approx([0.001, 0.0012, 0.0014])


def test_a_disk_that_fails_at_the_last_rename_leaves_the_earlier_one(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(log(tmp_path, "one.csv", 3, 2, 1), out)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == out and self.name != "replaced":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="Input/output error"):
            convert(log(tmp_path, "two.csv", 9, 9, 9), out, force=True)
    assert stabkit.open_run(out).scalar("loss").tolist() == [3, 2, 1]
