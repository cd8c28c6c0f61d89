import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stabkit.cli import main
from stabkit.convert.convert import convert
from stabkit.convert.long_form import MOST_RUNS
from stabkit.convert.series import ConvertError
from stabkit.store.reader import open_run
from tests.convert.conftest import converted

RUNS = {"a": [3.0, 2.0, 1.0], "b": [6.0, 5.0, 4.0]}


def read(path: Path, lines: Sequence[str], out: Path, *pairs: str) -> dict[str, list[float]]:
    """Return the loss of each run of a log, by the name of its folder."""
    path.write_text("\n".join(lines) + "\n")
    made = convert(path, out, pairs)
    runs = {one.folder.name: open_run(one.folder).scalars() for one in made}
    return {name: rows[rows["name"] == "loss"]["value"].tolist() for name, rows in runs.items()}


def test_one_run_after_another_and_side_by_side(tmp_path: Path, out: Path) -> None:
    rows = [f"{run},{i},{v}" for run, of in RUNS.items() for i, v in enumerate(of)]
    for name, lines in (("after", rows), ("beside", sorted(rows, key=lambda r: r[2]))):
        assert read(tmp_path / "log.csv", ["run,step,loss", *lines], out / name) == RUNS


def test_seeds_and_settings_make_runs(tmp_path: Path, out: Path) -> None:
    rows = [
        {"seed": seed, "step": i, "loss": v}
        for seed, of in enumerate(RUNS.values())
        for i, v in enumerate(of)
    ]
    found = read(tmp_path / "log.jsonl", [json.dumps(row) for row in rows], out)
    assert found == {"seed_0": RUNS["a"], "seed_1": RUNS["b"]}


def test_a_resumed_run_with_another_id_is_one_run(tmp_path: Path, out: Path) -> None:
    rows = [f"{'ab'[k > 3]},{i},{i / 2}" for k, i in enumerate([0, 1, 2, 3, 2, 3, 4])]
    found = read(tmp_path / "log.csv", ["run_id,step,loss", *rows], out)
    assert found == {"out": [0, 0.5, 1, 1.5, 2]}


def test_a_column_of_very_many_numbers_makes_no_runs(tmp_path: Path, out: Path) -> None:
    rows = [f"{i // 2},{i % 2},{i}" for i in range(2 * MOST_RUNS + 2)]
    with pytest.raises(ConvertError, match="steps start from the beginning 1,000 times"):
        read(tmp_path / "log.csv", ["trial,step,loss", *rows], out)


def test_rows_of_tag_and_value_become_series(tmp_path: Path, out: Path) -> None:
    rows = [
        f"{run},{tag},{i},{v + plus}"
        for run, of in RUNS.items()
        for tag, plus in (("loss", 0), ("lr", 100))
        for i, v in enumerate(of)
    ]
    assert read(tmp_path / "log.csv", ["run,tag,step,value", *rows], out) == RUNS


def test_rows_of_phases_become_series_of_training_and_validation(tmp_path: Path, out: Path) -> None:
    rows = [
        f"{e},{phase},{e + plus}" for e in range(9) for phase, plus in (("train", 0), ("val", 9))
    ]
    (tmp_path / "log.csv").write_text("\n".join(["epoch,phase,loss", *rows]))
    scalars = converted(tmp_path / "log.csv", out).scalars()
    found = {str(n): of["value"].tolist() for n, of in scalars.groupby("name", observed=True)}
    assert found == {"train/loss": list(range(9)), "val/loss": list(range(9, 18))}


def test_the_file_name_of_a_tensorboard_download_has_the_tag(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "run-exp1_train-tag-loss.csv"
    rows = [f"1700000000.5,{i},{v}" for i, v in enumerate(RUNS["a"])]
    assert read(path, ["Wall time,Step,Value", *rows], out) == {"out": RUNS["a"]}


def test_json_of_lists_is_a_table_whose_rows_count(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"loss": RUNS["a"], "val": {"loss": [9, 9, 9]}, "top": [9, 8, 7]}))
    with pytest.raises(ConvertError, match="no column of steps") as error:
        convert(path, out)
    assert error.value.options == ("--row-step",)
    path.write_text(json.dumps({"step": [4, 6, 8], "loss": RUNS["a"], "other": [1, 2]}))
    run = converted(path, out)
    np.testing.assert_equal(run.scalars()[["step", "value"]].to_numpy().T, [[4, 6, 8], RUNS["a"]])


@pytest.mark.parametrize("command", ["analyze", "convert", "dry"])
def test_a_note_on_all_runs_of_a_table_is_told_once(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{seed},{step},{4 - step / 9 + 0.1 * seed},{0.3 + step / 100 + seed / 20}"
        for seed in range(3)
        for step in range(30)
    ]
    log, out = tmp_path / "log.csv", tmp_path / "runs"
    log.write_text("\n".join(["seed,step,loss,val_acc", *rows]) + "\n")
    more = ["-o", str(out), *(["--dry-run"] if command == "dry" else [])]
    words = ["analyze", str(log)] if command == "analyze" else ["convert", str(log), *more]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("  left out  seed: says of which run") == 3
    assert printed.count("on how many samples is unknown") == 1
    assert printed.index("on how many samples") > printed.rindex("left out  seed")
