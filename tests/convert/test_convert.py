"""From the log of another tool to the verdict: the whole chain by the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stabkit
from stabkit.analyze.cells import cell_label, group_cells
from stabkit.analyze.diagnoses import diagnose
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.plots import draw
from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.rundir import RunDir
from stabkit.store.reader import StoredRun
from tests.convert.conftest import DIP, EVERY, LAYERS, SPIKE, Planted, converted, planted
from tests.convert.events import write_events


def as_events(series: Planted, folder: Path) -> Path:
    rows = [
        (int(s), tag, float(v))
        for tag, (at, vs) in series.items()
        for s, v in zip(at, vs, strict=True)
    ]
    write_events(folder / "log", rows)
    return folder / "log"


def as_frame(series: Planted) -> pd.DataFrame:
    columns = {name: pd.Series(values, index=steps) for name, (steps, values) in series.items()}
    return pd.DataFrame(columns).rename_axis("step").reset_index()


def as_csv(series: Planted, folder: Path) -> Path:
    as_frame(series).to_csv(folder / "log.csv", index=False)
    return folder / "log.csv"


def as_parquet(series: Planted, folder: Path) -> Path:
    as_frame(series).to_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def as_history(series: Planted, folder: Path) -> Path:
    records = as_frame(series).rename(columns={"step": "_step"}).to_dict("records")
    lines = [json.dumps({k: v for k, v in row.items() if v == v}) for row in records]
    (folder / "history.jsonl").write_text("\n".join(lines))
    return folder / "history.jsonl"


def as_lightning(series: Planted, folder: Path) -> Path:
    """Return one row for each log call."""
    frames = [
        pd.DataFrame({"step": steps, name: values}) for name, (steps, values) in series.items()
    ]
    (folder / "version_0").mkdir()
    pd.concat(frames).to_csv(folder / "version_0" / "metrics.csv", index=False)
    return folder


WRITERS = [as_events, as_csv, as_parquet, as_history, as_lightning]


def assert_same_tables(run: StoredRun, expected: StoredRun, exact: bool) -> None:
    """Compare all tables; the order of names at one step does not count."""
    for table, keys in (("signals", ["step", "layer"]), ("scalars", ["step", "name"]),
                        ("evals", ["step", "metric"])):  # fmt: skip
        found, wanted = (
            getattr(r, table)().astype({keys[1]: str}).sort_values(keys, ignore_index=True)
            for r in (run, expected)
        )
        pd.testing.assert_frame_equal(found, wanted, check_exact=exact, rtol=0 if exact else 1e-6)


@pytest.fixture(scope="module")
def from_csv(tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    folder = tmp_path_factory.mktemp("csv")
    return converted(as_csv(planted(), folder), folder / "out")


@pytest.mark.lengthy
@pytest.mark.parametrize("write", WRITERS)
def test_a_planted_dip_and_spike_are_found(
    tmp_path: Path, out: Path, write: Callable[[Planted, Path], Path], from_csv: StoredRun,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["convert", str(write(planted(), tmp_path)), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "knn_heldout from val/knn, percent, divided by 100" in printed
    assert f"grad_norm of 5 layers, first to last: {', '.join(LAYERS)}" in printed
    run = stabkit.open_run(out)
    (dip,) = Diagnosis(run).accuracy.dips.to_dict("records")
    assert abs(dip["onset"] - DIP[0]) <= EVERY
    assert dip["recovery"] == DIP[1]
    assert np.isnan(dip["p_value"])
    (burst,) = Diagnosis(run).gradients.bursts.to_dict("records")
    assert (burst["onset"], burst["first"]) == (SPIKE, "patch_embed")
    assert main(["analyze", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("unstable", "unknown number of images, chance unknown", "1 run without sample",
                  "no p-value: sample counts unknown"):  # fmt: skip
        assert words in printed
    # Equal tables give equal figures, so these are drawn once; event files hold float32.
    assert_same_tables(run, from_csv, exact=write is not as_events)
    if write is as_events:
        for plot in ("knn", "grad-norms"):
            assert main(["analyze", str(out), "--plot", plot, "-o", str(tmp_path / "figures")]) == 0


def test_with_sample_counts_dips_are_tested(tmp_path: Path, out: Path) -> None:
    source = as_csv(planted(), tmp_path)
    assert main(["convert", str(source), "-o", str(out), "--n", "5000", "--chance", "0.1"]) == 0
    (dip,) = Diagnosis(stabkit.open_run(out)).accuracy.dips.to_dict("records")
    assert 0 < dip["p_value"] < 0.01
    assert dip["relative_depth"] > dip["depth"]


@pytest.mark.lengthy
def test_a_healthy_run_is_stable_and_a_not_finite_one_diverged(tmp_path: Path) -> None:
    series = planted()
    at = series["val/knn"][0]
    series["val/knn"] = at, np.linspace(30, 50, at.size)
    series["grad_norm/patch_embed"] = series["grad_norm/blocks.0"]
    for name, value in (("healthy", 1.0), ("bad", np.nan)):
        loss = series["train/loss"][1].copy()
        loss[300:] *= value
        (tmp_path / name).mkdir()
        source = as_events(series | {"train/loss": (np.arange(loss.size), loss)}, tmp_path / name)
        convert(source, tmp_path / "runs" / name)
    from stabkit.analyze.summary import run_table

    table = run_table(diagnose(stabkit.load(tmp_path / "runs"))).set_index("run")
    assert table["verdict"].to_dict() == {"bad": "diverged", "healthy": "stable"}


@pytest.mark.lengthy
def test_several_converted_runs_are_told_apart(tmp_path: Path) -> None:
    """They have no configuration: without their names all would be seeds of one cell."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert(as_csv(planted(), tmp_path / name), tmp_path / "runs" / name)
    runs = diagnose(stabkit.load(tmp_path / "runs"))
    assert [cell_label(cell) for cell in group_cells(runs)] == ["one", "two"]
    for plot in ("knn", "grad-norms"):
        _, _, csv = draw(plot, runs, tmp_path / "figures")
        assert set(pd.read_csv(csv)["run"]) == {"one", "two"}


def test_dry_run_lists_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(planted(), tmp_path)
    assert main(["convert", str(source), "-o", str(tmp_path / "deep" / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("would be made (table)", "val/knn", "evals: knn_heldout", "scalars: train/loss",
                  "layers: blocks.10 grad_norm"):  # fmt: skip
        assert words in printed
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--map", "val/kn=knn_heldout"],
            "--map 'val/kn': not in {source}; did you mean 'val/knn'",
        ),
        (["--map", "zzz=x"], "there is grad_norm/blocks.0, grad_norm/blocks.10,"),
        (["--map", "nope=step"], "no column of steps; name one by --map COLUMN=step"),
        (["--map", "val/knn=step"], "steps are whole numbers"),
        (["--map", "train/loss=layer:"], "no name"),
        (["--n", "0"], "--n 0"),
        (["--chance", "1"], "--chance 1"),
        (["--chance", "nan"], "--chance nan"),
        (["--maps", "a=b"], "convert takes no '--maps'"),
    ],
)
def test_wrong_requests_say_what_would_be_right(
    tmp_path: Path, out: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(planted(), tmp_path)
    assert main(["convert", str(source), "-o", str(out), *words]) == 2
    assert message.format(source=source) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_nothing_is_ever_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = as_csv(planted(), tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    assert main(["convert", str(source), "-o", str(run)]) == 0  # an empty folder loses nothing
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for folder in (run, source):
        assert main(["convert", str(source), "-o", str(folder)]) == 2
        assert "is there already and is not written over" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["convert", str(run), "-o", str(tmp_path / "x")]) == 2
    assert "is a run folder already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), "-o", str(tmp_path / "x")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    assert main(["convert", str(tmp_path / "foreign"), "-o", str(tmp_path / "x")]) == 2
    assert "no TensorBoard event files or metrics.csv in it" in capsys.readouterr().err


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(planted(), tmp_path)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(RunDir, "write_meta", fail)
    assert main(["convert", str(source), "-o", str(out)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_folder_put_there_meanwhile_is_kept(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_csv(planted(), tmp_path)

    def race(*_: object) -> None:
        out.mkdir()
        (out / "precious").touch()

    monkeypatch.setattr(RunDir, "write_meta", race)
    assert main(["convert", str(source), "-o", str(out)]) == 2
    assert "cannot be put there" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log.csv", "out", "precious"]


def test_any_held_out_accuracy_is_judged_without_an_option(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = planted()
    series["val/acc1"] = series.pop("val/knn")
    source = as_csv(series, tmp_path)
    assert main(["convert", str(source), "-o", str(out)]) == 0
    assert "knn_heldout" not in capsys.readouterr().out
    assert len(Diagnosis(stabkit.open_run(out)).accuracy.dips) == 1


def test_several_accuracies_and_none_are_pointed_out(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = planted()
    series["test/acc1"] = series["val/knn"]
    main(["convert", str(as_csv(series, tmp_path)), "-o", str(out)])
    assert "one of the accuracies is judged: kNN before others" in capsys.readouterr().out
    del series["test/acc1"], series["val/knn"]
    main(["convert", str(as_csv(series, tmp_path)), "-o", f"{out}2"])
    assert "losses and gradient norms are judged" in capsys.readouterr().out
