"""Logs of Lightning, written by hand; one of Lightning itself is in tests/integrations."""

from pathlib import Path

import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from tests.convert.conftest import converted

BY_HAND = """epoch,grad_2.0_norm/net.0.weight,loss_epoch,loss_step,step,val_acc
,,,2.0,0,
,3.0,,,0,
0,,,,4,0.25
,,,1.0,5,
,4.0,,,5,
0,,1.5,,9,
1,,,,9,0.5
"""


def test_blanks_and_several_rows_a_step(tmp_path: Path, out: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").write_text(BY_HAND)
    run = converted(tmp_path, out)
    assert run.dir.read_meta()["converted"]["format"] == "lightning"
    assert run.scalar("loss_step").to_dict() == {0: 2.0, 5: 1.0}
    assert run.scalar("loss_epoch").to_dict() == {9: 1.5}
    assert run.scalar("epoch").to_dict() == {4: 0.0, 9: 1.0}
    assert run.evals("val_acc")["value"].tolist() == [0.25, 0.5]
    assert run.signals()[["step", "layer", "grad_norm"]].to_numpy().tolist() == [
        [0, "net.0", 3.0], [5, "net.0", 4.0],
    ]  # fmt: skip


def test_event_files_beside_are_a_question(tmp_path: Path, out: Path) -> None:
    (tmp_path / "metrics.csv").write_text(BY_HAND)
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    with pytest.raises(ConvertError, match="choose by --format"):
        convert(tmp_path, out)
    assert converted(tmp_path, out, format="lightning").scalar("loss_step").size == 2
