"""The training loop on a GPU: `make test-gpu`."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
import stabkit.train.loop as loop
from stabkit.config import RunConfig
from stabkit.rundir import RunDir
from stabkit.train.data.load import load_data
from stabkit.train.data.views import two_views
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.gpu import DEVICE, ON_CUDA, needs_gpu
from tests.train.processes import CONTEXT, exit_codes, start
from tests.train.test_compute import train_broken_and_whole
from tests.train.test_resume import assert_equal_trees, assert_same_run

pytestmark = needs_gpu
two_devices = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices: NCCL takes one a process"
)

SWITCHES = [
    "compute.precision=fp32",
    "compute.precision=bf16",
    "compute.precision=fp16",
    "compute.channels_last=true",
    "compute.fused_optimizer=true",
    *(["compute.precision=tf32", "compute.compile=true"] if ON_CUDA else []),
]


def device_config(*words: str) -> RunConfig:
    return small_config(f"runtime.device={DEVICE}", *words)


@pytest.mark.parametrize("word", SWITCHES)
def test_the_same_training_twice_gives_the_same_bits(word: str, tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        train(device_config(word), RunDir(tmp_path / name))
        states.append(torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True))
    assert_equal_trees(*states)


@pytest.mark.parametrize("word", SWITCHES)
def test_a_resumed_run_equals_the_unbroken_run(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = device_config(word, "train.steps=10", "runtime.checkpoint_every=4")
    train_broken_and_whole(config, tmp_path, monkeypatch, at=7)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("method", ["moco", "simclr", "byol", "swav", "supervised"])
def test_the_first_loss_equals_that_on_the_cpu(method: str, tmp_path: Path) -> None:
    words = (f"method.name={method}", "method.prototypes=12", "train.steps=2")
    train(device_config(*words), RunDir(tmp_path / "device"))
    train(small_config("runtime.device=cpu", *words), RunDir(tmp_path / "cpu"))
    device, cpu = (stabkit.open_run(tmp_path / name).scalar("loss") for name in ("device", "cpu"))
    assert device.iloc[0] == pytest.approx(cpu.iloc[0], rel=1e-3)


def test_a_run_with_skipped_fp16_steps_is_repeatable(tmp_path: Path) -> None:
    """A rate that overflows fp16 makes the scaler skip steps; twice the same run all the same."""
    words = ("compute.precision=fp16", "optim.skip_nonfinite=true", "train.steps=10")
    for name in ("a", "b"):
        train(device_config(*words), RunDir(tmp_path / name))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert stabkit.open_run(tmp_path / "a").scalar("skipped").iloc[0] == 1  # of the first scale


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    words = ("optim.lr=1e30", "optim.warmup_steps=0", "train.steps=12")
    status = train(device_config(*words), RunDir(tmp_path))
    assert status.state == "done"
    assert "diverged" in str(status.reason)


@pytest.mark.parametrize("size", [32, 224])
def test_views_on_the_device_equal_those_on_the_cpu(size: int) -> None:
    """Up to rounding, which moves few pixels across solarization's threshold."""
    config = small_config(f"data.image_size={size}", "data.num_train=32")
    images, _ = load_data(config.data)
    index = np.arange(16)
    pixels = images.read(index)
    on_cpu = two_views(pixels, 0, 0, index, size)
    moved = pixels.to(DEVICE) if torch.is_tensor(pixels) else [p.to(DEVICE) for p in pixels]
    on_device = two_views(moved, 0, 0, index, size)
    for one, other in zip(on_cpu, on_device, strict=True):
        far = (one - other.cpu()).abs() > 1e-3
        assert far.float().mean() < 1e-3


def test_two_runs_at_once_on_one_device_equal_those_alone(tmp_path: Path) -> None:
    config = device_config("train.steps=8")
    both = [CONTEXT.Process(target=train_in, args=(tmp_path / name, config)) for name in "ab"]
    for process in both:
        process.start()
    assert exit_codes(both) == [0, 0]
    train(config, RunDir(tmp_path / "alone"))
    for name in "ab":
        assert_same_run(tmp_path / "alone", tmp_path / name)


@two_devices
@pytest.mark.parametrize("number", range(2, max(3, torch.cuda.device_count() + 1)))
def test_several_devices_give_the_same_bits_twice(number: int, tmp_path: Path) -> None:
    config = device_config(f"train.batch={4 * number}", "train.steps=8", "model.mlp_norm=batch")
    for name in "ab":
        assert exit_codes(start(number, train_in, tmp_path / name, config)) == [0] * number
    assert_same_run(tmp_path / "a", tmp_path / "b")
    (attempt,) = RunDir(tmp_path / "a").read_meta()["attempts"]
    assert attempt["topology"] == f"1 x {number}"
    assert attempt["nccl"].startswith("NCCL_ALGO=Ring, NCCL_PROTO=Simple, NCCL_NVLS_ENABLE=0")


@two_devices
def test_two_devices_that_go_on_equal_the_unbroken_two(tmp_path: Path) -> None:
    """And with another algorithm of NCCL they do not go on at all."""
    config = device_config("train.batch=12", "train.steps=8", "runtime.checkpoint_every=1")
    assert exit_codes(start(2, train_in, tmp_path / "whole", config)) == [0, 0]
    assert exit_codes(start(2, stop_in, tmp_path / "broken", config, 3)) == [0, 0]
    assert 1 in exit_codes(start(2, train_with_trees, tmp_path / "broken", config))
    assert len(RunDir(tmp_path / "broken").read_meta()["attempts"]) == 1
    assert exit_codes(start(2, train_in, tmp_path / "broken", config)) == [0, 0]
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@two_devices
def test_two_devices_train_the_run_of_one_device(tmp_path: Path) -> None:
    """In float32 the two drift apart by rounding: the first steps are compared."""
    config = device_config("train.batch=12", "train.steps=4")
    train(config, RunDir(tmp_path / "one"))
    assert exit_codes(start(2, train_in, tmp_path / "two", config)) == [0, 0]
    one, two = (stabkit.open_run(tmp_path / name).scalar("loss") for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4)


def stop_in(folder: Path, config: RunConfig, at: int) -> None:
    step = loop.train_step

    def act(*given: Any) -> None:
        if given[4] == at:
            os.kill(os.getpid(), signal.SIGTERM)
        step(*given)

    loop.train_step = act  # type: ignore[assignment]
    assert train(config, RunDir(folder)).state == "preempted"


def train_with_trees(folder: Path, config: RunConfig) -> None:
    os.environ["NCCL_ALGO"] = "Tree"
    train(config, RunDir(folder))


def train_in(folder: Path, config: RunConfig) -> None:
    train(config, RunDir(folder))
