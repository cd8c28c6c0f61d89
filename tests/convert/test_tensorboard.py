import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from stabkit.convert.convert import convert
from stabkit.convert.series import ConvertError
from stabkit.convert.tensorboard import read_events
from stabkit.store.reader import open_run
from tests.convert.conftest import converted
from tests.convert.events import write_events


def rows(tag: str, first: int, last: int, offset: float = 0.0) -> list[tuple[int, str, object]]:
    return [(step, tag, step + offset) for step in range(first, last)]


@pytest.mark.lengthy
def test_every_value_is_kept_however_long_the_run_is(tmp_path: Path) -> None:
    """More than the 10,000 that TensorBoard's accumulator keeps of a tag."""
    write_events(tmp_path, rows("loss", 0, 12_000))
    series = read_events(tmp_path).series["loss"]
    np.testing.assert_array_equal(series.values, np.arange(12_000))


def test_what_torch_writes_is_read_exactly(tmp_path: Path, out: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    values = np.exp(np.random.default_rng(1).normal(size=50))
    writer = SummaryWriter(str(tmp_path / "log"))
    for step, value in enumerate(values):
        writer.add_scalar("loss", value, step)
    writer.add_histogram("weights", values, 0)
    writer.add_text("remark", "hello", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pillow, in torch's writer
        writer.add_image("views", np.zeros((3, 4, 4)), 0)
    writer.close()
    (made,) = convert(tmp_path / "log", out)
    assert made.plan.left_out == {
        "weights": "histogram", "remark/text_summary": "text", "views": "image",
    }  # fmt: skip
    loss = converted(tmp_path / "log", tmp_path / "again").scalar("loss")
    np.testing.assert_array_equal(loss, values.astype(np.float32))


def test_scalars_of_tensorflow_2_are_tensors(tmp_path: Path) -> None:
    things = [np.float32(0.5), np.float64(0.1), np.int64(3), np.array([2.5], np.float32)]
    others = [np.zeros((2, 3)), np.array(b"text"), np.zeros(0)]
    write_events(
        tmp_path,
        [(0, f"is {i}", x) for i, x in enumerate(things)]
        + [(0, f"not {i}", x) for i, x in enumerate(others)],
        tensors=True,
    )
    log = read_events(tmp_path)
    values = {tag: float(series.values[0]) for tag, series in log.series.items()}
    assert values == {"is 0": 0.5, "is 1": 0.1, "is 2": 3.0, "is 3": 2.5}
    assert set(log.left_out) == {"not 0", "not 1", "not 2"}


def test_a_tensor_that_claims_to_be_large_is_not_unpacked(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    event = Event(step=1)
    tensor = event.summary.value.add(tag="bomb").tensor
    tensor.dtype = 1
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim.add(size=10**12)
    event.summary.value.add(tag="loss", simple_value=1.0)
    with (tmp_path / "tfevents").open("wb") as file:
        RecordWriter(file).write(event.SerializeToString())
    log = read_events(tmp_path)
    assert log.left_out == {"bomb": "tensor of shape [1000000000000]"}
    assert set(log.series) == {"loss"}


def test_a_resumed_run_goes_on_where_it_takes_up_its_tags(tmp_path: Path) -> None:
    """Also a tag that is logged rarely, or that the resumed run did not come to again."""
    write_events(tmp_path, rows("loss", 0, 100) + rows("lr", 0, 100) + rows("old", 0, 90), 0)
    write_events(tmp_path, rows("loss", 60, 80, 0.5) + rows("lr", 70, 75, 0.5), 9)
    write_events(tmp_path, rows("loss", 75, 78, 0.25), 10)  # after 9, although "10" < "9"
    log = read_events(tmp_path)
    loss, lr = log.series["loss"].settled(), log.series["lr"].settled()
    expected = [*range(60), *(s + 0.5 for s in range(60, 75)), *(s + 0.25 for s in range(75, 78))]
    assert loss.values.tolist() == expected
    assert lr.values.tolist() == [*range(60), *(s + 0.5 for s in range(70, 75))]
    assert log.series["old"].steps.size == 60
    # 40, 40 and 30 of the first attempt, 5 of the second
    assert log.notes == [
        "115 values left out that a later event file takes up again from an earlier step"
    ]


def test_values_at_step_0_of_a_later_file_cut_nothing(tmp_path: Path) -> None:
    """As Lightning writes `hp_metric` when it resumes, and a test its results."""
    write_events(tmp_path, [*rows("loss", 0, 100), (0, "hp_metric", -1.0)], 0)
    write_events(tmp_path, [*rows("loss", 80, 150, 0.5), (0, "hp_metric", -1.0)], 1)
    write_events(tmp_path, [(0, "loss", 0.25), (0, "test_acc", 0.7)], 2)
    series = read_events(tmp_path).series
    loss = series["loss"].settled()
    assert loss.steps.tolist() == list(range(150))
    assert loss.values.tolist() == [0.25, *range(1, 80), *(s + 0.5 for s in range(80, 150))]
    assert series["test_acc"].steps.size == 1


def test_a_writer_says_where_a_run_was_resumed(tmp_path: Path) -> None:
    """`purge_step` of torch's SummaryWriter: the first loss after it comes only later."""
    from torch.utils.tensorboard import SummaryWriter

    first = SummaryWriter(str(tmp_path))
    for step in range(0, 100, 10):
        first.add_scalar("loss", step, step)
        first.add_scalar("val/acc", 0.5, step)
    first.close()
    second = SummaryWriter(str(tmp_path), purge_step=45, filename_suffix=".1")
    second.add_scalar("loss", 0.5, 70)
    second.close()
    series = read_events(tmp_path).series
    assert series["loss"].steps.tolist() == [0, 10, 20, 30, 40, 70]
    assert series["val/acc"].steps.tolist() == [0, 10, 20, 30, 40]


def test_two_writers_of_different_tags_leave_each_other_alone(tmp_path: Path) -> None:
    write_events(tmp_path, rows("loss", 0, 50), 0)
    write_events(tmp_path, rows("val/acc", 0, 50), 1)
    assert {tag: s.steps.size for tag, s in read_events(tmp_path).series.items()} == {
        "loss": 50, "val/acc": 50,
    }  # fmt: skip


def test_within_a_file_the_later_of_two_values_wins_and_order_does_not_matter(
    tmp_path: Path, out: Path
) -> None:
    write_events(tmp_path / "log", [(s, "loss", float(v)) for v, s in enumerate([3, 1, 2, 1, 3])])
    run = converted(tmp_path / "log", out)
    assert run.scalar("loss").to_dict() == {1: 3.0, 2: 2.0, 3: 4.0}


@pytest.mark.parametrize("cut", [1, 4, 5, 13, 20, 60])
def test_a_file_torn_by_a_kill_keeps_what_is_before(tmp_path: Path, cut: int) -> None:
    path = write_events(tmp_path, rows("loss", 0, 10))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = read_events(tmp_path)
    record = 45  # bytes at least that a value takes: at most two are lost
    assert 10 - 1 - cut // record <= log.series["loss"].steps.size + 1 <= 10
    (note,) = log.notes
    assert "ends within a record, at byte" in note
    assert f"kept the {log.series['loss'].steps.size + 1} records before it" in note


@pytest.mark.parametrize("place", [0, 9, 14, -2])
def test_damage_is_seen_and_what_follows_is_not_believed(tmp_path: Path, place: int) -> None:
    path = write_events(tmp_path, [(0, "loss", 0.5), (1, "loss", 0.25), (2, "loss", 0.125)])
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0] + 16  # the first record, a file's version
    second = struct.unpack("<Q", content[size : size + 8])[0] + 16
    at = size + second + place if place >= 0 else size + 2 * second + place
    content[at] ^= 0xFF
    path.write_bytes(bytes(content))
    log = read_events(tmp_path)
    assert log.series["loss"].steps.tolist() == [0]
    assert log.notes == [
        f"{path.name}: damaged at byte {size + second}; kept the 2 records before it"
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"step,loss\n1,2\n", b"\x89PNG", b"x" * 9999]
)
def test_files_that_are_none_are_refused_in_words(
    tmp_path: Path, out: Path, content: bytes
) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(content)
    with pytest.raises(ConvertError, match=r"not a TensorBoard event file|no series of numbers"):
        convert(tmp_path, out)
    assert not out.exists()


def test_not_finite_values_are_kept_and_are_events(tmp_path: Path, out: Path) -> None:
    bad = {50: math.nan, 51: math.inf, 52: -math.inf}
    rows = [(step, "loss", bad.get(step, 1.0)) for step in range(60)]
    rows += [
        (step, "grad_norm/blocks.0", math.inf if step in (51, 57) else 1.0) for step in range(60)
    ]
    write_events(tmp_path / "log", rows)
    run = converted(tmp_path / "log", out)
    np.testing.assert_array_equal(run.scalar("loss").loc[50:52], list(bad.values()))
    events = [{k: v for k, v in e.items() if k != "time"} for e in run.dir.read_entries()]
    assert events == [
        {"kind": "nonfinite", "step": 50, "names": ["loss"]},
        {"kind": "overflow", "step": 51, "layers": ["blocks.0"]},
        {"kind": "overflow", "step": 57, "layers": ["blocks.0"]},
    ]


def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_events(tmp_path / "log", [(0, "loss", 1.0)])
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ConvertError, match=r"pip install 'stabkit\[tensorboard\]'"):
        convert(tmp_path / "log", out)


def test_folders_below_a_run_are_told_of(tmp_path: Path, out: Path) -> None:
    """Read folders as torch's `add_hparams` makes them."""
    write_events(tmp_path, [(0, "loss", 1.0), (1, "loss", 1.0)])
    write_events(tmp_path / "1700000000.5", [(0, "hparam/loss", 2.0)])
    (made,) = convert(tmp_path, out)
    assert made.plan.notes == ["not read, event files in folders below: 1700000000.5"]


def test_series_that_add_scalars_put_below_a_run_are_the_runs(tmp_path: Path, out: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name in ("a", "b"):
        with SummaryWriter(tmp_path / "logs" / name) as writer:
            for step in range(3):
                writer.add_scalars("all/loss", {"train": step + 0.5, "val": step + 2.0}, step)
                writer.add_scalar("lr", 0.1, step)
    one, two = convert(tmp_path / "logs", out)
    for made in (one, two):
        assert made.plan.notes == []
        run = open_run(made.folder)
        assert set(run.scalars()["name"]) == {"all/loss/train", "all/loss/val", "lr"}
        assert run.scalar("all/loss/val").to_dict() == {0: 2.0, 1: 3.0, 2: 4.0}
    (alone,) = convert(tmp_path / "logs" / "a", tmp_path / "alone")
    assert set(alone.plan.scalars) == {"all/loss/train", "all/loss/val", "lr"}


def test_a_damaged_file_in_a_folder_below_is_named(tmp_path: Path, out: Path) -> None:
    write_events(tmp_path / "logs/a", rows("loss", 0, 20), 0)
    write_events(tmp_path / "logs/b", rows("loss", 0, 20), 0)
    (tmp_path / "logs/a/below").mkdir()
    (tmp_path / "logs/a/below/events.out.tfevents.2").write_bytes(b"nothing")
    found = convert(tmp_path / "logs", out)
    assert len(found) == 2
    (note,) = (note for run in found for note in run.plan.notes if "not read" in note)
    assert "below" in note


def test_folders_below_are_runs_of_their_own(tmp_path: Path, out: Path) -> None:
    for name in ("a/b", "../sneaky", "..hidden"):
        write_events(tmp_path / "logs" / "x" / name, [(0, "loss", 1.0), (1, "loss", 1.0)])
    made = convert(tmp_path / "logs", out)
    assert sorted(run.folder.relative_to(out).as_posix() for run in made) == [
        "sneaky", "x_..hidden", "x_a_b",
    ]  # fmt: skip
