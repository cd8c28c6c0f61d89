"""Which folders are runs, and what they are called."""

from pathlib import Path

import pytest

import stabkit
from tests.analyze.conftest import plant_run


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for seed, folder in enumerate(("a", "b")):
        plant_run(tmp_path / folder / "version_0", f"seed={seed}")
    plant_run(tmp_path / "alone", "seed=2")
    assert {run.name for run in stabkit.load(tmp_path)} == {"a/version_0", "b/version_0", "alone"}
    assert stabkit.open_run(tmp_path / "a" / "version_0").name == "version_0"


@pytest.mark.parametrize("name", ["layers", "evals", "scalars"])
def test_a_run_that_is_called_as_a_table_hides_no_other(tmp_path: Path, name: str) -> None:
    for seed, folder in enumerate(("aa", name)):
        plant_run(tmp_path / folder, f"seed={seed}")
    assert {run.name for run in stabkit.load(tmp_path)} == {"aa", name}


def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    run = stabkit.open_run(plant_run(tmp_path / "run"))
    assert run.signals("grad_norm").equals(run.signals(["grad_norm"]))
    with pytest.raises(KeyError, match=r"no signal 'grad' .* those that were: grad_norm"):
        run.signals("grad")


def test_a_scalar_that_was_not_recorded_is_refused_with_those_that_were(tmp_path: Path) -> None:
    run = stabkit.open_run(plant_run(tmp_path / "run"))
    with pytest.raises(KeyError, match=r"no scalar 'nope' .* those that were: .*loss"):
        run.scalar("nope")
    (tmp_path / "empty" / "scalars").mkdir(parents=True)
    assert stabkit.open_run(tmp_path / "empty").scalar("nope").empty


@pytest.mark.parametrize("damaged", ["a", "b"])
@pytest.mark.parametrize("table", ["evals", "scalars", "layers"])
def test_of_two_copies_the_whole_one_is_kept(tmp_path: Path, damaged: str, table: str) -> None:
    for name in ("a", "b"):
        plant_run(tmp_path / name, "train.steps=50")
    part = next((tmp_path / damaged / table).glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.warns(stabkit.LeftOutWarning) as told:
        (run,) = stabkit.load(tmp_path)
    assert run.name != damaged
    assert len(told) == 1, "what is wrong with the other copy matters to nobody"
