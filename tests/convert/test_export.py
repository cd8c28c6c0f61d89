from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabkit.cli import main
from stabkit.convert.export import export_events
from stabkit.store.reader import StoredRun, open_run
from stabkit.store.tables import stored_table
from stabkit.store.writer import Writer
from tests.analyze.conftest import plant_run
from tests.convert.conftest import converted


def tables(run: StoredRun) -> dict[str, pd.DataFrame]:
    """Return the tables as stored, where null differs from NaN, without the samples."""
    frames = {}
    for name, order in (("layers", ["step", "depth"]), ("scalars", ["step", "name"]),
                        ("evals", ["step", "metric", "k"])):  # fmt: skip
        table = stored_table(run.dir.table(name), name)
        columns = {c: table[c].to_pylist() for c in table.column_names if c != "correct"}
        frames[name] = pd.DataFrame(columns, dtype=object).sort_values(order, ignore_index=True)
    return frames


@pytest.mark.lengthy
def test_there_and_back_the_tables_are_the_same_to_float32(tmp_path: Path, out: Path) -> None:
    folder = plant_run(tmp_path / "run", "model.freeze_patch_embed=true", dip=0.1, spike=True)
    writer = Writer(folder, "more")
    steps = np.arange(40)
    writer.add_scalars(steps, "acc", np.where(steps == 7, np.nan, 1e-50 * steps + 1 / 3))
    writer.add_scalars(steps, "grad_norm/odd", -1.0 * steps)  # as a layer's, and no norm
    writer.add_scalars(steps, "knn_train", 1e39 * steps)
    for k in (10, 20):
        writer.add_accuracies(steps[-1:], "knn_full", np.array([k / 100]), 0.1, 60, k, 0.07)
    writer.add_accuracies(steps, "val", steps / 41, np.nan, 0, 0, np.nan)
    writer.flush()
    run = open_run(folder)
    export_events(run, tmp_path / "events")
    before, after = tables(run), tables(converted(tmp_path / "events", out))
    pd.testing.assert_frame_equal(after["layers"], before["layers"])
    for name in ("scalars", "evals"):
        with np.errstate(over="ignore"):  # 1e39 and more is infinite there
            rounded = before[name]["value"].astype(np.float32).astype(float)
        expected = before[name].assign(value=rounded)
        pd.testing.assert_frame_equal(
            after[name].astype({"value": float}), expected, check_exact=True
        )


@pytest.mark.lengthy
def test_tensorboard_itself_reads_the_export(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = open_run(plant_run(tmp_path / "run"))
    run.dir.append_entry("nonfinite", 3, layers=["<b>norm</b>"])
    export_events(run, tmp_path / "events")
    reader = EventAccumulator(str(tmp_path / "events"), {"scalars": 0, "tensors": 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    assert {"loss", "knn_heldout", "grad_norm/blocks.0", "param_norm/norm"} <= set(tags)
    losses = [e.value for e in reader.Scalars("loss")]
    np.testing.assert_array_equal(losses, run.scalar("loss").astype(np.float32))
    (text,) = [e for e in reader.Tensors("events") if e.step == 3]
    assert text.tensor_proto.string_val[0] == b'{"kind": "nonfinite", "layers": ["<b>norm</b>"]}'


def test_a_layout_that_is_not_ours_is_passed_over(tmp_path: Path, out: Path) -> None:
    from stabkit.convert.layout import of_layout, order_of

    tags = ["a", "b"]
    evil = {"a": {"name": "x", "table": "layers", "signal": "../x"}}
    tagged = [{"tags": said} for said in (3, {"a": 3}, {"a": {"name": 1}}, evil)]
    for layout in ([], "x", None, *tagged):
        assert of_layout(layout, tags) == {}
        assert order_of(layout) == []
    facts = {"chance": 7, "n": "x", "k": -1, "temperature": True}
    said = {"tags": {"a": {"name": "x", "table": "evals", **facts}}, "layers": ["p", 3]}
    assert dict(of_layout(said, tags)["a"].facts) == {}
    assert order_of(said) == ["p"]


def test_the_two_ways_to_export_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, events = str(plant_run(tmp_path / "run")), str(tmp_path / "events")
    for words, message in [
        ([run], "export needs one of: -o FILE, for the weights"),
        ([run, "-o", "w.pt", "--tensorboard", events], "export needs one of"),
        ([run, "--tensorboard", events, "--encoder", "online"], "--encoder goes with -o"),
        ([str(tmp_path / "no"), "--tensorboard", events], "no such folder"),
        ([str(tmp_path), "--tensorboard", events], "not a run folder"),
        ([run, "--tensorboard", f"{run}/config.yaml"], "is a file"),
        ([run, "-o", "w.pt"], "has no checkpoint yet"),
    ]:
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", run, "--tensorboard", events]) == 0
    assert "float32" in capsys.readouterr().out
    assert main(["export", run, "--tensorboard", events]) == 2
    assert "holds event files already" in capsys.readouterr().err
    assert [path.name[:19] for path in Path(events).iterdir()] == ["events.out.tfevents"]
