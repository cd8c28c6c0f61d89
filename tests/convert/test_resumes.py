"""A log that was appended to after a resume holds two attempts. All values are made up."""

from pathlib import Path

import numpy as np

from tests.convert.conftest import converted


def test_a_rare_series_is_cut_where_the_others_go_back(tmp_path: Path, out: Path) -> None:
    """The resumed run ends before the accuracy is measured again: it had 0.9 in the old attempt."""
    first = [f"{s},{s},{s / 400 if s % 100 == 0 else ''}" for s in range(0, 401, 10)]
    again = [f"{s},{-s}," for s in range(250, 291, 10)]
    (tmp_path / "log.csv").write_text("\n".join(["step,loss,val_acc", *first, *again]))
    run = converted(tmp_path / "log.csv", out)
    assert run.evals("val_acc")["step"].tolist() == [0, 100, 200]
    assert run.scalar("loss").index.tolist() == list(range(0, 291, 10))
    assert run.scalar("loss").loc[240:250].tolist() == [240, -250]
    notes = run.dir.read_meta()["converted"]["notes"]
    assert any(note.startswith("18 values left out of attempts") for note in notes)


def test_a_series_that_goes_back_alone_does_not_cut_the_others(tmp_path: Path, out: Path) -> None:
    rows = [f"{s},{s},{s},{s},1" for s in range(40)]
    rows[20:20] = ["5,,,,2"]
    (tmp_path / "log.csv").write_text("\n".join(["step,loss,lr,norm,odd", *rows]))
    run = converted(tmp_path / "log.csv", out)
    assert run.scalar("loss").size == 40


def test_two_resumes(tmp_path: Path, out: Path) -> None:
    steps = [*range(0, 30), *range(20, 40), *range(10, 50)]
    rows = [f"{s},{i}" for i, s in enumerate(steps)]
    (tmp_path / "log.csv").write_text("\n".join(["step,loss", *rows]))
    loss = converted(tmp_path / "log.csv", out).scalar("loss")
    assert loss.index.tolist() == list(range(50))
    np.testing.assert_array_equal(loss.loc[:9], range(10))
    np.testing.assert_array_equal(loss.loc[10:], range(50, 90))


def test_values_that_were_not_finite_in_an_attempt_that_was_given_up_are_counted(
    tmp_path: Path, out: Path
) -> None:
    first = [f"{s},{s if s < 90 else 'nan'}" for s in range(100)]
    again = [f"{s},{s}" for s in range(70, 140)]
    (tmp_path / "log.csv").write_text("\n".join(["step,loss", *first, *again]))
    notes = converted(tmp_path / "log.csv", out).dir.read_meta()["converted"]["notes"]
    assert any(note.startswith("30 values, 10 of them not finite, left out") for note in notes)
