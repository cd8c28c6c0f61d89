"""What only a CUDA device can show: `make test-gpu`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit.config import RunConfig
from stabkit.rundir import RunDir
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.train.processes import exit_codes, start
from tests.train.test_resume import assert_equal_trees

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_the_monitor_never_makes_the_host_wait(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    monitor = stabkit.Monitor(model, optimizer, tmp_path, flush_every=1000)
    images = torch.randn(32, 64, device="cuda")
    for step in range(50):
        loss = model(images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step > 0:  # the first step allocates
            torch.cuda.set_sync_debug_mode("error")
        optimizer.step()
        monitor.log(loss=loss)
        torch.cuda.set_sync_debug_mode("default")
    monitor.close()
    assert len(stabkit.open_run(tmp_path).scalar("loss")) == 50


@pytest.mark.parametrize(
    "word",
    [
        "compute.precision=fp32",
        "compute.precision=tf32",
        "compute.precision=bf16",
        "compute.precision=fp16",
        "compute.compile=true",
        "compute.channels_last=true",
        "compute.fused_optimizer=true",
    ],
)
def test_the_same_training_twice_gives_the_same_bits(word: str, tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        train(small_config("runtime.device=cuda", word), RunDir(tmp_path / name))
        states.append(torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True))
    assert_equal_trees(*states)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_the_run_of_one(tmp_path: Path) -> None:
    """In float32 the two drift apart by rounding: the first steps are compared."""
    config = small_config("runtime.device=cuda", "train.batch=12", "train.steps=4")
    train(config, RunDir(tmp_path / "one"))
    assert exit_codes(start(2, train_on_cuda, tmp_path / "two", config)) == [0, 0]
    one, two = (stabkit.open_run(tmp_path / name).scalar("loss") for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4)


def train_on_cuda(folder: Path, config: RunConfig) -> None:
    train(config, RunDir(folder))
