"""The boxes of Stable-Baselines3. All values are made up."""

from pathlib import Path

import pytest

from stabkit.convert.boxes import is_boxed
from stabkit.convert.tables import read_table
from tests.convert.conftest import converted

RULE = "-" * 42


def box(n: int, loss: float | str | None) -> str:
    rows = [
        ("rollout/", ""), ("   ep_rew_mean", f"{20 + n}"), ("time/", ""), ("   fps", "700"),
        ("   total_timesteps", f"{2048 * (n + 1)}"),
    ]  # fmt: skip
    if loss is not None:
        rows += [("train/", ""), ("   loss", f"{loss}"), ("   approx_kl", "1.2e-05")]
    return "\n".join([RULE, *(f"| {name:<22} | {value:<12} |" for name, value in rows), RULE])


def test_each_box_is_a_row(tmp_path: Path, out: Path) -> None:
    """The first box has no losses yet; other lines are counted."""
    losses = [None, 6.5, 6.25, "nan", 6.0]
    text = "Using cpu device\n" + "\n".join(box(n, loss) for n, loss in enumerate(losses))
    (tmp_path / "train.log").write_text(text + "\n")
    run = converted(tmp_path / "train.log", out)
    loss = run.scalar("train/loss")
    assert loss.index.tolist() == [4096, 6144, 8192, 10240]
    assert loss.tolist() == pytest.approx([6.5, 6.25, float("nan"), 6.0], nan_ok=True)
    assert run.scalar("rollout/ep_rew_mean").tolist() == [20, 21, 22, 23, 24]
    notes = run.dir.read_meta()["converted"]["notes"]
    assert "1 line outside the boxes left out" in notes


def test_a_box_that_is_cut_off_is_left_out(tmp_path: Path) -> None:
    whole = "\n".join(box(n, 6.5) for n in range(3))
    (tmp_path / "train.log").write_text(whole[: -len(RULE) - 1])
    table = read_table(tmp_path / "train.log")
    assert table.columns["time/total_timesteps"].values.tolist() == [2048, 4096]
    assert "the last box is cut off and left out" in table.notes


def test_a_table_between_bars_is_no_box(tmp_path: Path) -> None:
    rows = ["| step | loss |", "|---|---|", "| 0 | 2.5 |", "| 1 | 1.25 |"]
    assert not is_boxed("\n".join([RULE, *rows]))
    (tmp_path / "log.txt").write_text("\n".join(rows) + "\n")
    assert [*read_table(tmp_path / "log.txt").columns] == ["step", "loss"]
