"""A replay is the run bit for bit, or says from where on and why it is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import stabkit
from stabkit.cli import main
from stabkit.config import RunConfig
from stabkit.replay import plan
from stabkit.replay.answer import answers, look
from stabkit.replay.plan import ReplayRefusedError, make_plan
from stabkit.replay.proof import ReplayDiffersError
from stabkit.replay.replay import replay
from stabkit.rundir import ForeignFolderError, RunDir, kept_states
from stabkit.train import loop
from stabkit.train.loop import train
from stabkit.train.weights_bits import weights_bits
from tests.conftest import small_config, tree
from tests.train.processes import exit_codes, start
from tests.train.test_exactness import stopped

CONFIG = small_config(
    "runtime.checkpoint_every=3", "runtime.keep_states=5", "runtime.threads=1",
    "runtime.signals=[features]", "runtime.signals_every=4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_lead(monkeypatch: pytest.MonkeyPatch, same_threads: None) -> None:
    """Shorten the lead, since the runs here are short."""
    monkeypatch.setattr(plan, "LEAD", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(CONFIG, RunDir(folder))
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.lengthy
def test_from_every_kept_state_and_from_the_start_it_is_the_run(
    trained: Path, tmp_path: Path
) -> None:
    steps = [state.step for state in kept_states(RunDir(trained).states_folder)]
    before = tree(trained)
    for first in (0, *(step for step in steps if step < 20)):
        done = replay(trained, str(first + 2), tmp_path / str(first))
        assert done is not None
        assert done.plan.start == first
        assert done.rows == done.plan.end - first
        assert done.evaluations
        assert done.states == [step for step in steps if first < step <= done.plan.end]
    assert tree(trained) == before, "the run is only read"


@pytest.mark.lengthy
def test_the_first_replay_compares_every_column_of_the_record(
    trained: Path, tmp_path: Path
) -> None:
    done = replay(trained, "5", tmp_path / "out", until=12)
    assert done is not None
    record, here = stabkit.open_run(trained).signals(), stabkit.open_run(done.folder).signals()
    shared = record.columns.intersection(here.columns)
    assert set(record.columns) == set(shared)
    assert {"attention_entropy", "adam_rms"} <= set(here.columns)
    assert here["feature_norm" if "feature_norm" in here else "output_rms"].notna().any()
    assert here["step"].unique().tolist() == list(range(done.plan.start, 12))


@pytest.mark.lengthy
def test_tensors_add_up_to_their_layers(trained: Path, tmp_path: Path) -> None:
    done = replay(trained, "5", tmp_path / "out", until=9)
    assert done is not None
    tensors = pd.read_parquet(done.folder / "tensors.parquet")
    squares = tensors["grad_norm"].pow(2).groupby(tensors["step"]).sum()
    total = stabkit.open_run(trained).scalar("grad_norm_total").loc[squares.index]
    np.testing.assert_allclose(np.sqrt(squares), total, rtol=1e-6)


@pytest.mark.lengthy
@pytest.mark.parametrize("method", ["moco", "simclr", "swav", "byol", "supervised"])
def test_samples_add_up_to_the_loss_of_their_batch(method: str, tmp_path: Path) -> None:
    config = small_config(f"method.name={method}", "train.steps=4", "runtime.threads=1")
    train(config, RunDir(tmp_path / "run"))
    done = replay(tmp_path / "run", "2", tmp_path / "out")
    assert done is not None
    samples = pd.read_parquet(done.folder / "samples.parquet")
    mean = samples["loss"].groupby(samples["step"]).mean()
    run = stabkit.open_run(tmp_path / "run")
    loss = run.scalar("loss") / 2 if method == "byol" else run.scalar("loss_nats")
    np.testing.assert_allclose(mean, loss.loc[mean.index], rtol=1e-5)
    assert (samples.groupby("step")["sample"].nunique() == config.train.batch).all()
    assert len(answers(look(done.folder, done.plan), done.plan)) == 4


@pytest.mark.lengthy
def test_a_preempted_run_is_replayed_over_its_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rundir = stopped(tmp_path / "run", monkeypatch, 3)
    train(small_config("train.steps=6"), rundir)
    done = replay(rundir.path, "2", tmp_path / "out", until=6)
    assert done is not None
    assert (done.plan.start, done.plan.end, done.rows) == (0, 6, 6)
    assert done.states == [6]
    assert [attempt["first_step"] for attempt in done.plan.later] == [4]


def train_three(folder: Path, config: RunConfig) -> None:
    train(config, RunDir(folder))


def replay_three(folder: Path, out: Path) -> None:
    plan.LEAD = 2
    done = replay(folder, "8", out)
    assert (done is None) == (not RunDir(out).config_file.exists()) or done is None


@pytest.mark.processes
def test_a_run_of_three_processes_is_replayed_by_three(tmp_path: Path) -> None:
    config = small_config(
        "train.batch=12", "train.steps=12", "runtime.threads=1",
        "runtime.checkpoint_every=3", "runtime.keep_states=4",
    )  # fmt: skip
    folder, out = tmp_path / "run", tmp_path / "out"
    assert exit_codes(start(3, train_three, folder, config)) == [0, 0, 0]
    with pytest.raises(ReplayRefusedError, match="torchrun --nproc-per-node 3 -m stabkit replay"):
        make_plan(folder, "8")
    assert exit_codes(start(3, replay_three, folder, out)) == [0, 0, 0]
    facts = json.loads((out / "replay.json").read_text())
    assert facts["equal"] == {"rows": 6, "evaluations": 3, "states": [9, 12]}
    samples = pd.read_parquet(out / "samples.parquet")
    assert (samples.groupby("step")["sample"].nunique() == 12).all()


def change(run: Path, name: str, act: Any) -> Path:
    """Change a tensor in a kept state, in a file that is otherwise sound; return the file."""
    file = next(s.path for s in kept_states(RunDir(run).states_folder) if s.step > 9)
    content = torch.load(file, weights_only=True)
    act(content["model"][name])
    file.unlink()
    torch.save(content, file)
    return file


def one_ulp(tensor: torch.Tensor) -> None:
    flat = tensor.view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))


@pytest.mark.lengthy
def test_one_ulp_in_one_weight_of_the_record_is_named(run: Path, tmp_path: Path) -> None:
    name = "online.backbone.blocks.1.mlp.fc1.weight"
    file = change(run, name, one_ulp)
    step = int(file.stem.removeprefix("step-"))
    with pytest.raises(ReplayDiffersError, match=rf"{file.name} .*first in model\.{name}"):
        replay(run, str(step - 1), tmp_path / "out")


@pytest.mark.lengthy
def test_a_replay_from_a_changed_state_differs_and_says_from_where_on(
    run: Path, tmp_path: Path
) -> None:
    file = change(run, "online.backbone.patch_embed.proj.weight", lambda t: t.mul_(1.01))
    step = int(file.stem.removeprefix("step-"))
    words = rf"from step {step} on: .*was .*perhaps its files, its data or stabkit's code"
    with pytest.raises(ReplayDiffersError, match=words):
        replay(run, str(step + 2), tmp_path / "out")


@pytest.mark.lengthy
def test_the_bits_of_the_weights_are_compared_at_every_step(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "weights_bits", lambda weights: weights_bits(weights) + 1)
    with pytest.raises(ReplayDiffersError, match=r"from step 6 on: weights_bits was \d+"):
        replay(run, "12", tmp_path / "out")


@pytest.mark.lengthy
def test_changed_circumstances_are_named_with_a_difference(run: Path, tmp_path: Path) -> None:
    change(run, "online.backbone.patch_embed.proj.weight", lambda t: t.mul_(1.01))
    rundir = RunDir(run)
    meta = rundir.read_meta()
    meta["attempts"][0] |= {"threads": 2, "processor": "another"}
    meta["attempts"][0]["packages"]["timm"] = "0.1"
    rundir.write_meta(meta)
    with pytest.raises(
        ReplayDiffersError, match=r"\. Changed: processor was another, is .*timm was 0\.1"
    ):
        replay(run, "14", tmp_path / "out")
    assert torch.get_num_threads() == 2, "as many as the run had"


@pytest.mark.lengthy
def test_a_damaged_state_is_named_and_passed_over(run: Path, tmp_path: Path) -> None:
    states = kept_states(RunDir(run).states_folder)
    bytes_ = bytearray(states[1].path.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    states[1].path.unlink()
    states[1].path.write_bytes(bytes_)
    said: list[str] = []
    done = replay(run, str(states[1].step + 2), tmp_path / "out", say=said.append)
    assert done is not None
    assert done.plan.start == states[0].step
    assert f"passed over: {states[1].path}: damaged" in said[0]


@pytest.mark.lengthy
def test_an_event_is_named_by_its_kind_and_number(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dips = pd.DataFrame(
        {"kind": "dip", "onset": [5, 10, 15], "end": [5, 10, 20], "size": [0.1, 0.3, 0.2]}
    )
    monkeypatch.setattr(plan, "found_events", lambda *_: dips)
    assert make_plan(trained, "dip").onset == 10, "the deepest"
    third = make_plan(trained, "dip:3")
    assert (third.onset, third.end, third.words) == (15, 24, "dip at steps 15 to 20")
    assert make_plan(trained, "dip:1", until=12).end == 12
    there = "there are dip:1 at step 5, dip:2 at step 10, dip:3 at step 15"
    with pytest.raises(ReplayRefusedError, match=there):
        make_plan(trained, "dip:4")


def test_what_cannot_be_replayed_is_refused_with_what_would_be_right(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main(["replay", *words, "-o", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "the last step recorded is 23" in refused(str(run), "--at", "24")
    assert "did you mean 'dip'" in refused(str(run), "--at", "dp")
    assert "the run has no dip; " in refused(str(run), "--at", "dip")
    assert "--until 3 is not after step 5" in refused(str(run), "--at", "5", "--until", "3")
    assert "not a run folder, it has no config.yaml" in refused(str(tmp_path), "--at", "5")
    assert "no such folder, and no runs/nowhere" in refused("nowhere", "--at", "5")
    (run / "meta.json").unlink()
    assert "no run of `stabkit train`" in refused(str(run), "--at", "5")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_anything_is_left_alone(run: Path) -> None:
    with pytest.raises(ForeignFolderError, match="holds something already; name another"):
        replay(run, "5", run)


@pytest.mark.lengthy
def test_the_command_prints_the_proof_and_the_answers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["replay", "run", "--at", "14", "--until", "20"]) == 0
    said = capsys.readouterr().out
    assert "run: equal to the record bit for bit: rows of " in said
    for question in ("tensors: ", "samples of step ", "second moment: ", "attention: "):
        assert f"\n{question}" in said
    assert said.endswith("Next: stabkit branch run --at 14\n")
    assert (tmp_path / "replays/run-at-14/replay.png").read_bytes().startswith(b"\x89PNG")
    assert main(["replay", "run", "--at", "14"]) == 2, "the same folder again"
    assert "holds something already" in capsys.readouterr().err
