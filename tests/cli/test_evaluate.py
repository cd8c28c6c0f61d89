"""Run `stabkit evaluate`, `export` and `import` as they are typed."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import stabkit
from stabkit.cli import main
from stabkit.rundir import MONITOR_SETTINGS, RunDir
from stabkit.store.writer import Writer
from tests.conftest import SMALL

QUICK = ["linear.epochs=2", "finetune.epochs=2", "finetune.warmup_epochs=1", "finetune.batch=16"]
ALL = ["--knn", "--linear", "--finetune"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    words = ["train.steps=4", "optim.warmup_steps=0", "--run-dir", str(folder)]
    assert main(["train", "tiny", *SMALL, *words]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


@pytest.mark.lengthy
def test_every_method_is_recorded_at_the_step_of_the_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stabkit.open_run(run).evals()
    checkpoint = RunDir(run).checkpoint_file.read_bytes()
    printed = said(capsys, "evaluate", str(run), *ALL, *QUICK, "knn.k=[5, 20]")
    evals = stabkit.open_run(run).evals()
    new = evals.iloc[len(before) :] if len(evals) == len(before) + 4 else evals.iloc[:0]
    assert new["metric"].tolist() == ["knn_full", "knn_full", "linear", "finetune"]
    assert new["k"].tolist() == [5, 20, 0, 0]
    assert new["step"].eq(4).all()
    assert new["chance"].eq(0.1).all()
    assert new["n"].eq(20).all()
    for metric, k, value in zip(new["metric"], new["k"], new["value"], strict=True):
        correct = stabkit.open_run(run).correct(metric, k)
        assert correct is not None
        np.testing.assert_allclose(correct.mean(axis=1), [value])
        assert f"{metric}" in printed
        assert f"{100 * value:.2f} % of 20 held-out images" in printed
    assert "augmentation is off" in printed
    assert "chosen" in printed
    events = stabkit.open_run(run).log()
    assert events[events["kind"] == "evaluated"]["metric"].tolist() == new["metric"].tolist()
    assert RunDir(run).checkpoint_file.read_bytes() == checkpoint


def test_repeating_replaces_and_touches_nothing_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(run), "--knn", "--linear", "knn.k=[5, 20]", "linear.epochs=1"])
    first = stabkit.open_run(run).evals()
    main(["evaluate", str(run), "--knn", "knn.k=9"])
    second = stabkit.open_run(run).evals()
    assert second[second["metric"] == "knn_full"]["k"].tolist() == [9]
    rows = [
        sorted(map(repr, frame[frame["metric"] != "knn_full"].to_dict("records")))
        for frame in (first, second)
    ]
    assert rows[0] == rows[1]
    assert {"linear", "knn_heldout"} < set(second["metric"])


def test_results_of_other_steps_stay(run: Path) -> None:
    writer = Writer(run, "id")
    for step in (2, 4):
        writer.add_eval(step, "linear", 0.5, 0.1, 0, 0.0, np.array([True, False]))
    writer.flush()
    assert main(["evaluate", str(run), "--linear", "linear.epochs=1"]) == 0
    evals = stabkit.open_run(run).evals("linear")
    assert evals["step"].tolist() == [2, 4]
    assert evals["n"].tolist() == [2, 20]


def test_a_rate_at_the_edge_of_the_grid_is_pointed_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), "--linear", "linear.epochs=1"]
    assert "the chosen rate is an end of linear.lr" in said(capsys, *words, "linear.lr=[1e-9, 0.1]")


@pytest.mark.lengthy
def test_the_same_evaluation_gives_the_same_bits(run: Path) -> None:
    bits = []
    for _ in range(2):
        assert main(["evaluate", str(run), *ALL, *QUICK]) == 0
        evals = stabkit.open_run(run).evals()
        made = evals["metric"].isin(["knn_full", "linear", "finetune"])
        bits.append(evals[made]["correct"].tolist())
        assert len(bits[-1]) == 5  # k of 10, 20 and, for 100 and 200, all 64 images
    assert bits[0] == bits[1]


def test_transfer_to_other_classes_has_a_metric_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    data = tmp_path / "flowers"
    for split, count in (("train", 6), ("val", 2)):
        for c, name in enumerate(("daisy", "rose", "tulip")):
            (data / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((20, 24, 3), 60 * c + 3 * i, np.uint8)
                Image.fromarray(pixels).save(data / split / name / f"{i}.png")
    words = ["data.name=imagefolder", f"data.path={data}"]
    said(capsys, "evaluate", str(run), "--knn", "--finetune", *QUICK, *words, "knn.k=3")
    evals = stabkit.open_run(run).evals()
    new = evals[evals["metric"].str.endswith("_flowers")]
    assert new["metric"].tolist() == ["knn_full_flowers", "finetune_flowers"]
    assert new["chance"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert new["n"].tolist() == [6, 6]


def test_export_then_import_then_evaluate(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "backbone.pt"
    assert f"{file}: 30 tensors of the online" in said(capsys, "export", str(run), "-o", str(file))
    assert all(torch.is_tensor(t) for t in torch.load(file, weights_only=True).values())
    folder = tmp_path / "imported"
    words = ["import", str(file), "tiny", *SMALL, "--run-dir", str(folder)]
    assert "30 tensors" in said(capsys, *words)
    assert "is a run already" in said(capsys, *words, code=2)
    for place in (run, folder):
        assert main(["evaluate", str(place), "--knn", "knn.k=7"]) == 0
    first, second = (stabkit.open_run(place).correct("knn_full") for place in (run, folder))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)
    assert main(["status", str(folder)]) == 0
    file.write_bytes(b"broken")
    words[-1] = str(tmp_path / "other")
    assert "it is damaged, or holds code" in said(capsys, *words, code=1)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one or more of --knn, --linear, --finetune"),
        (["--kn"], "evaluate takes no '--kn'; did you mean '--knn'"),
        (["--knn", "knn.kk=3"], "knn.kk: no such setting; did you mean 'knn.k'"),
        (["--knn", "knn.k=[]"], "knn.k = "),
        (
            ["--knn", "knn.k=40000"],
            "knn.k.0 = 40000: should be a whole number above 0 below 32,768\n",
        ),
        (["--linear", "linear.lr=[0.1, -1]"], "linear.lr.0 = -1: should be a number above 0"),
        (
            ["--linear", "linear.choose_on=1"],
            "linear.choose_on = 1: should be a number above 0 below 1",
        ),
        (
            ["--finetune", "finetune.batch=7"],
            "finetune.batch = 7: should be a whole number above 0 in multiples of 2",
        ),
        (["--finetune", "finetune.epochs=3"], "warmup_epochs 5 exceeds epochs 3"),
        (["--knn", "data.image_size=32"], "data.image_size = 32: should be 16, the size the"),
        (["--knn", "data.name=cifar10"], "cifar10 data needs path"),
        (["--knn", "data.name=cifar10", "data.path=/no/where"], "no such folder"),
        (["--knn", "optim.lr=1"], "optim.lr: no such setting"),
    ],
)
def test_wrong_requests_exit_2_and_change_nothing(
    trained: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert message in said(capsys, "evaluate", str(trained), *words, code=2)
    after = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert before == after


def test_folders_without_a_trained_run_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in (["evaluate", "--knn"], ["export", "-o", str(tmp_path / "x.pt")]):
        command = [verb[0], str(tmp_path), *verb[1:]]
        assert "not a run folder, it has no config.yaml" in said(capsys, *command, code=2)
        (tmp_path / "loop").mkdir(exist_ok=True)  # as a Monitor's, without settings
        command[1] = str(tmp_path / "loop")
        assert "no run of `stabkit train`, it has no config.yaml" in said(capsys, *command, code=2)
        settings = RunDir(tmp_path / "loop").config_file
        settings.write_text(f"{MONITOR_SETTINGS}\nlr: 1\n")
        assert "a Monitor recorded a loop of your own here" in said(capsys, *command, code=2)
        settings.unlink()
    with RunDir(run).lock():
        busy = said(capsys, "evaluate", str(run), "--knn", code=2)
        assert "another process is writing here" in busy
    RunDir(run).checkpoint_file.unlink()
    assert "has no checkpoint yet" in said(capsys, "evaluate", str(run), "--knn", code=2)
    no_file = ["import", str(tmp_path / "none.pt"), "tiny", *SMALL]
    assert "no such file of weights" in said(capsys, *no_file, code=2)


def test_a_checkpoint_that_does_not_fit_fails_with_its_keys(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = RunDir(run).checkpoint_file
    content = torch.load(file, weights_only=True)
    content["model"]["online.backbone.strange"] = content["model"].pop("online.backbone.norm.bias")
    torch.save(content, file)
    message = said(capsys, "evaluate", str(run), "--knn", code=1)
    assert "1 missing: norm.bias" in message
    assert "1 unexpected: strange" in message


def change_status(run: Path, **changes: Any) -> None:
    rundir = RunDir(run)
    status = rundir.read_status()
    assert status is not None
    rundir.write_status(replace(status, **changes))


def test_an_unfinished_run_is_noted_with_what_resuming_drops(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_status(run, state="running")
    assert "is not done" in said(capsys, "evaluate", str(run), "--knn")


def test_the_reason_of_the_run_is_printed_as_a_note(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_status(run, reason="diverged: no longer finite")
    printed = said(capsys, "evaluate", str(run), "--knn")
    assert f"{run}: note: diverged: no longer finite" in printed


def test_data_that_cannot_be_used_exit_2_and_change_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        (tmp_path / "pets" / split / "cat").mkdir(parents=True)
        (tmp_path / "pets" / split / "cat" / "torn.png").write_bytes(b"no image")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    words = ["data.name=imagefolder", f"data.path={tmp_path / 'pets'}"]
    message = said(capsys, "evaluate", str(run), "--knn", *words, code=2)
    assert "torn.png: not an image that Pillow can decode" in message
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_settings_are_no_part_of_a_run(run: Path) -> None:
    assert not {"linear", "finetune"} & yaml.safe_load((run / "config.yaml").read_text()).keys()


def test_other_data_drop_the_caps_and_name_the_metric(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for split, count in (("train", 30), ("val", 12)):
        for label in ("a", "b"):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    words = ["data.name=imagefolder", f"data.path={tmp_path / 'pets'}", "knn.k=3"]
    said(capsys, "evaluate", str(run), "--knn", *words, "knn.temperature=0.5")
    evals = stabkit.open_run(run).evals("knn_full_pets")
    assert evals[["n", "k", "chance"]].to_numpy().tolist() == [[24, 3, 0.5]]
    assert evals["temperature"].tolist() == [0.5]
    event = stabkit.open_run(run).log().iloc[-1]
    assert (event["data"]["num_train"], event["bank"]) == (0, 60)


def test_the_seed_of_an_evaluation_is_its_own(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        words = ["linear.epochs=3", "linear.lr=0.1", f"seed={seed}"]
        said(capsys, "evaluate", str(run), "--linear", *words)
    events = stabkit.open_run(run).log()
    choosing = events[events["kind"] == "evaluated"]["choosing"].tolist()
    assert choosing[0] != choosing[1]


def test_a_run_of_another_device_is_evaluated_on_this_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:77"))
    message = said(capsys, "evaluate", str(run), "--knn", code=2)
    assert str(run) in message
    assert "runtime.device 'cuda:77': " in message
    assert "knn_full" in said(capsys, "evaluate", str(run), "--knn", "runtime.device=cpu")


def test_a_cut_checkpoint_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RunDir(run).checkpoint_file
    file.write_bytes(file.read_bytes()[:1000])
    assert str(file) in said(capsys, "evaluate", str(run), "--knn", code=1)


@pytest.mark.parametrize("foreign", [False, True])
def test_a_damaged_part_is_named_before_anything_is_measured(
    run: Path, foreign: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    part = min((run / "evals").iterdir())
    if foreign:
        pq.write_table(pa.table({"step": [1], "x": [2]}), part)
    else:
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 4
        part.write_bytes(content)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    message = said(capsys, "evaluate", str(run), "--knn", code=1)
    assert f"{part}: not readable (" in message
    assert "move it away to go on without it" in message
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
