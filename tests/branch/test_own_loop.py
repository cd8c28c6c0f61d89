"""Branches of a loop of one's own: the true cure is told, and nothing of the run is changed."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import stabkit
from stabkit.branch import own_loop
from stabkit.branch.judge.attribution import Attribution
from stabkit.branch.judge.branch_table import branch_table
from stabkit.config import read_mapping
from tests.conftest import tree
from tests.docs.test_blocks import blocks
from tests.train.processes import exit_codes, start

BROKEN, STEPS = 60, 80


class Loop:
    """A small regression; the batch of step BROKEN is a hundred times as large as the others."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.run, self.study = folder / "runs" / "mine", folder / "branches" / "mine"
        self.ring = stabkit.StateRing(self.model, self.optimizer, self.run, every=20)
        self.skipped: set[int] = set()
        self.called: list[str] = []
        self.begun: dict[str, torch.Tensor] = {}  # the weights with which each branch begins
        self.noise = torch.Generator().manual_seed(0)
        self.noisy = False

    def batch(self, step: int) -> torch.Tensor:
        generator = self.noise if self.noisy else torch.Generator().manual_seed(step)
        x = torch.randn(32, 8, generator=generator)
        return 100 * x if step == BROKEN else x

    def train(self, folder: Path, first: int, end: int) -> None:
        self.called.append(folder.name)
        self.begun[folder.name] = torch.nn.utils.parameters_to_vector(
            self.model.parameters()
        ).detach()
        with stabkit.Monitor(self.model, self.optimizer, folder, first_step=first) as monitor:
            monitor.on("spike", lambda event: self.ring.pin(event.step))
            for step in range(first, end):
                self.ring.keep(step)
                x = self.batch(step)
                loss = (self.model(x) - x[:, :4]).square().mean()
                self.optimizer.zero_grad()
                if step not in self.skipped:
                    loss.backward()
                self.optimizer.step()
                monitor.log(loss=loss.detach())

    def skip(self) -> Any:
        self.skipped.add(BROKEN)
        return self.skipped.clear

    def halve(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] /= 2

    def branch(self, at: str = "burst", **more: Any) -> Attribution:
        changes = {"half the rate": self.halve, "skip the batch": self.skip}
        return stabkit.branch_loop(self.ring, self.train, self.run, at, changes, self.study, **more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    loop = Loop(folder)
    loop.train(loop.run, 0, STEPS)
    loop.ring.wait()
    yield folder
    torch.set_num_threads(before)


@pytest.fixture
def loop(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(own_loop, "SHAMS", 4)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Loop(tmp_path)


@pytest.mark.lengthy
def test_the_broken_batch_is_the_cause_and_the_rate_is_not(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    before = tree(loop.run)
    with caplog.at_level(logging.WARNING, "stabkit"):
        found = loop.branch()
    assert not caplog.records, "the control is the run bit for bit"
    verdicts = found.interventions.set_index("change")["verdict"]
    assert verdicts.to_dict() == {
        "half the rate": "no different from a nudge", "skip the batch": "prevented",
    }  # fmt: skip
    assert "its price is not known without evaluations" in found.text()
    assert "nan" not in found.text()
    assert tree(loop.run) == before, "branches keep and pin no states"
    assert loop.skipped == set(), "a change is taken back"
    table = branch_table(loop.study)
    assert table["kind"].value_counts().to_dict() == {
        "placebo": 8, "intervention": 6, "sham": 4, "control": 1,
    }  # fmt: skip
    control = loop.begun["control"]
    matrices = sum(p.numel() for p in loop.model.parameters() if p.ndim > 1)
    for i in range(8):
        ulps = loop.begun[f"placebo-{i}"].view(torch.int32) - control.view(torch.int32)
        assert ulps.abs().max() == 1
        assert ulps.count_nonzero() == matrices
    kicks = [(loop.begun[f"sham-{i}"] - control).norm().item() for i in range(4)]
    assert kicks == pytest.approx([kicks[0]] * 4, rel=1e-3)
    kicked = [tuple(loop.begun[f"sham-{i}"].tolist()) for i in range(4)]
    assert len(set(kicked)) == 4

    loop.called.clear()
    (loop.study / "placebo-3" / "status.json").unlink()
    again = loop.branch()
    assert loop.called == ["placebo-3"], "what has ended is not trained again"
    assert again.text() == found.text()
    with pytest.raises(ValueError, match="holds another study, other in horizon"):
        loop.branch(end=70)


@pytest.mark.lengthy
def test_a_spike_of_the_loss_stays_where_the_batch_is_skipped_and_its_loss_logged(
    loop: Loop,
) -> None:
    found = loop.branch("loss_spike")
    assert set(found.interventions["verdict"]) == {"no different from a nudge"}


def test_a_loop_that_does_not_repeat_itself_is_told(
    loop: Loop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_loop, "PLACEBOS", 1)
    monkeypatch.setattr(own_loop, "REPLICATES", 1)
    monkeypatch.setattr(own_loop, "SHAMS", 1)
    loop.noisy = True
    loop.branch()
    [record] = caplog.records
    assert "differs from the record from step 40 on: " in record.getMessage()
    assert "counts as another placebo" in record.getMessage()


def test_a_wrong_request_is_refused_before_anything_trains(loop: Loop) -> None:
    def refused(words: str, at: str = "burst", **more: Any) -> None:
        with pytest.raises((ValueError, stabkit.ConfigError), match=words):
            loop.branch(at, **more)

    refused("no state at step 50, before the burst at step 60; there are 0, 20, 40, 60", begin=50)
    refused("the run has no dip; events of the run: burst:1 at step 60", "dip")
    refused("no branch of a run without evaluations is judged by a step; by burst", "70")
    refused("end 60: should be a step after the onset, 61 to 80", end=60)
    with pytest.raises(ValueError, match="none is given"):
        stabkit.branch_loop(loop.ring, loop.train, loop.run, "burst", {}, loop.study)
    twins = {"half lr": loop.halve, "half-lr": loop.halve}
    with pytest.raises(ValueError, match="half lr, half-lr: two of the names give the same folder"):
        stabkit.branch_loop(loop.ring, loop.train, loop.run, "burst", twins, loop.study)
    loop.study.mkdir(parents=True)
    (loop.study / "notes.txt").touch()
    refused("holds something already, and no study")
    assert loop.called == []


def test_frozen_weights_are_neither_kicked_nor_moved(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("PLACEBOS", 4), ("REPLICATES", 1), ("SHAMS", 1)):
        monkeypatch.setattr(own_loop, name, count)
    loop.model[0].requires_grad_(False)
    loop.branch()
    frozen = sum(p.numel() for p in loop.model[0].parameters())
    starts = torch.stack([loop.begun[name][:frozen] for name in loop.begun])
    assert (starts == starts[0]).all()
    assert not torch.equal(loop.begun["sham-0"], loop.begun["control"])


def test_a_loop_that_leaves_no_run_is_told(loop: Loop) -> None:
    def forgetful(folder: Path, first: int, end: int) -> None:
        loop.train(loop.study / "elsewhere" / folder.name, first, end)

    changes = {"half the rate": loop.halve}
    with pytest.raises(ValueError, match="control: train left no run there that ended; give its"):
        stabkit.branch_loop(loop.ring, forgetful, loop.run, "burst", changes, loop.study)


@pytest.mark.lengthy
def test_the_block_on_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    [block] = blocks("branches.md")
    exec(block, {})
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "skip the batch: prevented." in said
    assert "half the rate: no different from a nudge." in said
    assert read_mapping(tmp_path / "branches/mine/branches.yaml")["made_in"] == "../.."


def refused_among_two(folder: Path) -> None:
    dist.init_process_group("gloo")
    dist.barrier()  # both are connected before one of them ends
    loop = Loop(folder)
    with pytest.raises(ValueError, match="is for one process, this is one of 2"):
        loop.branch()
    dist.destroy_process_group()


@pytest.mark.processes
def test_several_processes_are_refused(tmp_path: Path) -> None:
    assert exit_codes(start(2, refused_among_two, tmp_path)) == [0, 0]
