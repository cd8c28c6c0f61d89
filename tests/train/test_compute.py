"""Precision, kernels and reading ahead: what each changes, and that none changes a resumed run."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import stabkit
from stabkit.config import ComputeConfig, ConfigError, RunConfig, RuntimeConfig
from stabkit.rundir import RunDir
from stabkit.train import loop
from stabkit.train.data import batches
from stabkit.train.data.batches import ReadAhead, read_batch
from stabkit.train.data.load import load_data
from stabkit.train.device import prepare_device
from stabkit.train.state import build_state
from tests.conftest import small_config
from tests.train.test_resume import assert_same_run, at_call

CPU = torch.device("cpu")
SWITCHES = [
    ["compute.precision=bf16"],
    ["compute.precision=fp16"],
    ["compute.channels_last=true"],
    ["compute.fused_optimizer=true"],
]


class Stopped(Exception):
    pass


def interrupted(*_: object) -> None:
    raise Stopped


def train_broken_and_whole(
    config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    loop.train(config, RunDir(folder / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", at_call(loop.train_step, at, interrupted))
        with pytest.raises(Stopped):
            loop.train(config, RunDir(folder / "broken"))
    loop.train(config, RunDir(folder / "broken"))


@pytest.mark.lengthy
@pytest.mark.parametrize("words", SWITCHES, ids=lambda words: words[0])
def test_a_resumed_run_equals_the_unbroken_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(*words, "train.steps=10", "runtime.checkpoint_every=4")
    train_broken_and_whole(config, tmp_path, monkeypatch, at=7)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert np.isfinite(stabkit.open_run(tmp_path / "whole").scalar("loss")).all()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here: apt-get install g++")
def test_a_compiled_resumed_run_equals_the_unbroken_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("compute.compile=true", "train.steps=10", "runtime.checkpoint_every=4")
    train_broken_and_whole(config, tmp_path, monkeypatch, at=7)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    loop.train(small_config("train.steps=10"), RunDir(tmp_path / "eager"))
    compiled, eager = (stabkit.open_run(tmp_path / n).scalar("loss") for n in ("whole", "eager"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)
    assert not compiled.equals(eager), "nothing was compiled"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("words", "drift"), [*zip(SWITCHES, (2e-2, 5e-3, 1e-5, 1e-5), strict=True)], ids=str
)
def test_the_first_loss_equals_that_of_float32_up_to_the_precision(
    words: list[str], drift: float, tmp_path: Path
) -> None:
    first = ["train.steps=1"]
    loop.train(small_config(*first), RunDir(tmp_path / "plain"))
    loop.train(small_config(*first, words[0]), RunDir(tmp_path / "switched"))
    plain, switched = (
        stabkit.open_run(tmp_path / name).scalar("loss").iloc[0] for name in ("plain", "switched")
    )
    assert switched == pytest.approx(plain, rel=drift)
    if "precision" in words[0]:
        assert switched != plain, "nothing was computed in half precision"


@pytest.mark.lengthy
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["simclr", "byol", "swav", "supervised"])
def test_every_framework_trains_in_half_precision(
    method: str, precision: str, tmp_path: Path
) -> None:
    words = [f"method.name={method}", f"compute.precision={precision}", "train.steps=6"]
    loop.train(small_config(*words, "method.prototypes=12"), RunDir(tmp_path))
    run = stabkit.open_run(tmp_path)
    assert np.isfinite(run.scalar("loss")).all()
    assert run.evals("knn_heldout")["value"].notna().all()


def test_weights_gradients_and_optimizer_stay_float32() -> None:
    config = small_config("compute.precision=fp16")
    state = build_state(config, 64, CPU)
    assert state.scaler.is_enabled()
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert not build_state(small_config("compute.precision=bf16"), 64, CPU).scaler.is_enabled()


def test_a_step_that_overflows_in_fp16_is_skipped_and_undone(
    tmp_path: Path,
) -> None:
    """The first scales are too large on purpose: those steps leave weights, twin and BN alone."""
    words = ["compute.precision=fp16", "optim.skip_nonfinite=true", "train.steps=8"]
    config = small_config(*words)

    def build(*args: object) -> object:
        state = build_state(*args)  # type: ignore[arg-type]
        state.scaler._init_scale = 2.0**60
        models.append(state.model)
        return state

    models: list[torch.nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_state", build)
        patch.setattr(loop, "train_step", at_call(loop.train_step, 4, interrupted))
        with pytest.raises(Stopped):
            loop.train(config, RunDir(tmp_path))
    run = stabkit.open_run(tmp_path)
    assert run.scalar("skipped").tolist() == [1, 1, 1]
    start = build_state(config, 64, CPU).model.state_dict()
    for name, tensor in models[0].state_dict().items():
        assert tensor.equal(start[name]), name
    scales = run.scalar("grad_scale")
    assert scales.iloc[-1] < scales.iloc[0]


def test_tf32_is_refused_before_anything_is_written_where_there_is_no_cuda(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compute.precision 'tf32'.*on cpu.*fp32, bf16 or fp16"):
        loop.train(small_config("compute.precision=tf32"), RunDir(tmp_path))
    assert not RunDir(tmp_path).config_file.exists()


def test_compiling_without_a_compiler_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"compute.compile needs a C\+\+ compiler.*install g\+\+"):
        prepare_device(RuntimeConfig(device="cpu"), ComputeConfig(compile=True))


@pytest.mark.parametrize("name", ["lars", "lamb", "stable_adamw"])
def test_a_fused_kernel_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"compute.fused_optimizer: {name}.*adamw and sgd"):
        small_config("compute.fused_optimizer=true", f"optim.name={name}")


def test_batches_read_ahead_equal_those_read_in_turn() -> None:
    config = small_config()
    images, _ = load_data(config.data)
    with ReadAhead(config, images) as ahead:
        for step in (0, 1, 2, 7, 8, 23):  # 7: nobody has read it ahead
            read, plain = ahead.take(step), read_batch(config, images, step)
            assert read.step == step
            for one, other in zip(
                batches.make_batch(config, read, CPU).__dict__.values(),
                batches.make_batch(config, plain, CPU).__dict__.values(),
                strict=True,
            ):
                assert one == other if isinstance(one, slice) else one.equal(other)


def test_the_next_batch_is_read_while_this_step_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config("train.steps=3")
    images, _ = load_data(config.data)
    begun = [threading.Event() for _ in range(4)]

    def read(config: RunConfig, images: object, step: int) -> int:
        begun[step].set()
        return step

    monkeypatch.setattr(batches, "read_batch", read)
    with ReadAhead(config, images) as ahead:
        assert ahead.take(0) == 0
        assert begun[1].wait(300), "step 1 was not begun to be read while step 0 is trained on"
        assert not begun[2].is_set()
        assert ahead.take(1) == 1
        assert ahead.take(2) == 2
    assert not begun[3].is_set(), "there is no step 3"


def test_an_unreadable_image_fails_the_step_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config("train.steps=3")
    images, _ = load_data(config.data)

    def read(config: RunConfig, images: object, step: int) -> int:
        if step == 1:
            raise ValueError("broken.jpg")
        return step

    monkeypatch.setattr(batches, "read_batch", read)
    with ReadAhead(config, images) as ahead:
        assert ahead.take(0) == 0
        with pytest.raises(ValueError, match=r"broken\.jpg"):
            ahead.take(1)
