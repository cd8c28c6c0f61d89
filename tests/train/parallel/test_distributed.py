"""A run of several processes equals the run of one up to rounding, and fails as one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import stabkit
from stabkit.cli import dispatch, main
from stabkit.config import ComputeConfig, RunConfig, RuntimeConfig, save_config
from stabkit.monitor.ranks import rank, world_size
from stabkit.rundir import RunDir
from stabkit.train import device, loop
from stabkit.train import heldout_knn as evaluate
from stabkit.train.data import batches
from stabkit.train.data.batches import Batch, make_batch, read_batch
from stabkit.train.data.load import load_data
from stabkit.train.parallel.agree import (
    PeerError,
    check_same_start,
    run_by_first,
    run_first_then_others,
    run_together,
)
from stabkit.train.parallel.reduce import (
    Agreement,
    average_gradients,
    gather,
    mean_of_processes,
    own_rows,
    process_group,
)
from stabkit.train.parallel.sync_batch_norm import synchronize_batch_norms
from stabkit.train.recording import Silent
from tests.conftest import SMALL, small_config
from tests.train.processes import PATIENCE, exit_codes, results, start
from tests.train.small import small_method, views
from tests.train.test_resume import assert_equal_trees, assert_same_run, at_call

pytestmark = pytest.mark.processes

CPU = torch.device("cpu")
BATCH = 12
SMALL_BUCKET = 2000 / 2**20  # MiB: several a network
FRAMEWORKS = {
    "moco": {"queue": 30},
    "simclr": {},
    "byol": {},
    "swav": {"freeze_prototypes_steps": 1},
    "supervised": {},
}
# BN of images, of tokens and of heads; neither bank (40) nor queries (20) divide by 3
WHOLE = small_config(
    "train.batch=12",
    "train.steps=12",
    "optim.skip_nonfinite=true",
    "optim.clip=global",
    "optim.clip_at=1.0",
    "method.queue=30",
    "model.stem=conv",
    "model.mlp_norm=batch",
)
THREES = small_config("train.batch=12", "train.steps=12")


def two_updates(name: str) -> dict[str, Any]:
    """Return loss, gradients and state of a framework after each of two steps."""
    found: dict[str, Any] = {}
    with process_group(cuda=False):
        method = small_method(name, **FRAMEWORKS[name]).double()
        if world_size() > 1:
            synchronize_batch_norms(method)
        first, second, labels = views(BATCH)
        own = own_rows(BATCH)
        network = average_gradients(method, SMALL_BUCKET)
        for step in range(2):
            method.zero_grad()
            loss, *_ = network(first[own], second[own], labels[own], 0.9, step)
            loss.backward()
            found[f"loss {step}"] = mean_of_processes(loss.detach())
            for key, parameter in method.online.named_parameters():
                if parameter.grad is not None:
                    found[f"gradient {step} {key}"] = parameter.grad.clone()
        return found | method.state_dict()


def of_all_frameworks() -> dict[str, dict[str, Any]]:
    return {name: two_updates(name) for name in FRAMEWORKS}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return of_all_frameworks()


@pytest.mark.parametrize("processes", [2, 3])
def test_every_framework_has_the_gradients_and_buffers_of_one_process(
    processes: int, alone: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    parts = results(processes, tmp_path, _each_framework)
    for part in parts[1:]:
        assert_equal_trees(part, parts[0])
    for name, expected in alone.items():
        assert parts[0][name].keys() == expected.keys()
        for key, value in expected.items():
            got = parts[0][name][key]
            torch.testing.assert_close(
                got, value, rtol=1e-9, atol=1e-11, msg=lambda m, k=f"{name} {key}": f"{k}: {m}"
            )


def _each_framework() -> dict[str, dict[str, Any]]:
    with process_group(cuda=False):  # one group for all: the ones inside find it
        return of_all_frameworks()


def by_both_reductions() -> dict[str, Any]:
    """Gradients of two steps and their strides: by the network of a step, and one by one.

    One network has a frozen patch projection; the other filters in channels-last, and parameters
    that have no gradient in its first step.
    """
    found: dict[str, Any] = {}
    with process_group(cuda=False):
        for name, settings in {"moco": {"freeze": True}, "swav": FRAMEWORKS["swav"]}.items():
            for how in ("buckets", "one by one"):
                method = small_method(name, **settings).double()
                if name == "swav":
                    method.to(memory_format=torch.channels_last)
                synchronize_batch_norms(method)
                first, second, labels = views(BATCH)
                own = own_rows(BATCH)
                in_buckets = how == "buckets"
                network = average_gradients(method, SMALL_BUCKET) if in_buckets else method
                for step in range(2):
                    method.zero_grad()
                    loss, *_ = network(first[own], second[own], labels[own], 0.9, step)
                    loss.backward()
                    for key, p in method.online.named_parameters():
                        if p.grad is not None and not in_buckets:
                            dist.all_reduce(p.grad)
                            p.grad /= world_size()
                        given = None if p.grad is None else (p.grad.clone(), p.grad.stride())
                        found[f"{how}: {name} {step} {key}"] = given
    return found


def counted() -> Counter[tuple[str, bool]]:
    """Count the calls of collectives from now on: (function, whether it is asynchronous)."""
    calls: Counter[tuple[str, bool]] = Counter()

    def counting(name: str) -> Any:
        original = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name, kwargs.get("async_op", False)] += 1
            return original(*args, **kwargs)

        return call

    for name in ("all_reduce", "all_gather"):
        setattr(dist, name, counting(name))
    return calls


def test_averaging_in_buckets_gives_the_bits_of_averaging_each_gradient(tmp_path: Path) -> None:
    for found in results(2, tmp_path, by_both_reductions):
        bucketed = {k: v for k, v in found.items() if k.startswith("buckets")}
        expected = {k: found[k.replace("buckets", "one by one")] for k in bucketed}
        assert_equal_trees(bucketed, expected)
        without = [key.split()[-1] for key, given in bucketed.items() if given is None]
        assert "backbone.patch_embed.proj.weight" in without
        assert without.count("prototypes.weight") == 1


def count_collectives() -> dict[str, tuple[int, int]]:
    """Return the number of reductions and gathers in a step without kNN, for each framework."""
    found = {}
    with process_group(cuda=False):
        calls = counted()
        for name in FRAMEWORKS:
            config = small_config("train.batch=12", f"method.name={name}")
            images, _ = load_data(config.data)
            built = loop.build_state(config, len(images), CPU, len(images.classes))
            built = replace(built, network=average_gradients(built.model))
            batch = make_batch(config, read_batch(config, images, 1), CPU)
            calls.clear()
            loop.train_step(config, built, Silent(), batch, 1, len(images.classes))
            found[name] = tuple(
                sum(calls[what, alone] for alone in (False, True))
                for what in ("all_reduce", "all_gather")
            )
    return found  # type: ignore[return-value]


def test_a_step_has_no_more_collectives_than_its_framework_needs(tmp_path: Path) -> None:
    """In each step: DDP's gradients, the mean loss and, for the bank, features. Beyond that:

    moco: statistics of 3 + 2 BN forward and backward, of the twin's 3 forward, two views each; keys
    simclr: statistics of 3 BN, views in one batch; embeddings, and their gradients
    byol: statistics of 2 + 1 BN and of the twin's 2, two views each
    swav: scores; its head has no BN
    """
    expected = {
        "moco": (1 + 2 * (5 + 5 + 3), 1 + 2),
        "simclr": (1 + 3 + 3 + 2, 1 + 2),
        "byol": (1 + 2 * (3 + 3 + 2), 1),
        "swav": (1, 1 + 2),
        "supervised": (1, 1),
    }
    for found in results(2, tmp_path, count_collectives):
        assert found == expected


def train_in_float64(folder: Path, config: RunConfig) -> None:
    """Train in float64; in float32 rounding makes runs drift apart, as between two machines."""
    build, view, plain = loop.build_state, batches.apply_view, evaluate.plain_view

    def build_state(*args: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        built = build(*args)
        torch.set_default_dtype(torch.float32)
        built.bank.features = built.bank.features.float()
        return built

    loop.build_state = build_state
    batches.apply_view = lambda *args: view(*args).double()
    evaluate.plain_view = lambda *args: plain(*args).double()
    loop.train(config, RunDir(folder))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("single")
    assert exit_codes(start(1, train_in_float64, folder, WHOLE)) == [0]
    return folder


@pytest.mark.parametrize("processes", [2, 3])
def test_a_whole_run_equals_that_of_one_process(
    processes: int, single: Path, tmp_path: Path
) -> None:
    assert exit_codes(start(processes, train_in_float64, tmp_path, WHOLE)) == [0] * processes
    one, many = stabkit.open_run(single), stabkit.open_run(tmp_path)
    signals = [run.signals() for run in (one, many)]
    assert len(signals[0]) == len(signals[1])
    for name in ("grad_norm", "grad_max", "param_norm"):  # stored in float32
        np.testing.assert_allclose(signals[1][name], signals[0][name], rtol=1e-6, err_msg=name)
    scalars = set(one.scalars()["name"].astype(str)) - {"images_per_s"}
    assert {"loss", "loss_relative", "feature_std", "effective_rank", "embedding_std"} < scalars
    for name in scalars:
        # the total of gradients is summed up from float32
        rtol = 1e-6 if name == "grad_norm_total" else 1e-8
        np.testing.assert_allclose(many.scalar(name), one.scalar(name), rtol=rtol, err_msg=name)
    for metric in ("knn_heldout", "knn_bank"):
        frames = [run.evals(metric) for run in (one, many)]
        assert frames[0]["value"].tolist() == frames[1]["value"].tolist()
        assert frames[0]["n"].tolist() == frames[1]["n"].tolist()
        np.testing.assert_array_equal(one.correct(metric), many.correct(metric))
    saved = [torch.load(f / "checkpoints/last.pt") for f in (single, tmp_path)]
    for part in ("model", "bank", "stabilizer"):
        assert saved[0][part].keys() == saved[1][part].keys()
        for key, value in saved[0][part].items():
            # the bank holds what was rounded to float32
            rtol, atol = (1e-6, 1e-7) if part == "bank" else (1e-8, 1e-10)
            torch.testing.assert_close(
                saved[1][part][key], value, rtol=rtol, atol=atol, msg=lambda m, k=key: f"{k}: {m}"
            )
    attempts = [RunDir(f).read_meta()["attempts"][0]["processes"] for f in (single, tmp_path)]
    assert attempts == [1, processes]
    assert len(RunDir(tmp_path).read_meta()["attempts"]) == 1
    kinds = [e["kind"] for e in RunDir(tmp_path).read_entries() if e["kind"] != "null_parameters"]
    assert kinds == ["start", "done"]


def train_until(folder: Path, config: RunConfig, step: int) -> None:
    """Train, and wait before that many steps are done, for the test to kill the process."""

    def wait(*_: Any) -> None:
        (folder / f"waits-{rank()}").touch()
        time.sleep(2 * PATIENCE)

    cut_small_buckets()
    loop.train_step = at_call(loop.train_step, step, wait)
    loop.train(config, RunDir(folder))


def cut_small_buckets() -> None:
    """Cut small buckets from now on; the networks here would fit into one of the usual size."""
    loop.average_gradients = partial(average_gradients, bucket_mb=SMALL_BUCKET)  # type: ignore[assignment]


def train_here(folder: Path, config: RunConfig) -> None:
    cut_small_buckets()
    loop.train(config, RunDir(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the unbroken run of three processes."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_codes(start(3, train_here, folder, THREES)) == [0, 0, 0]
    return folder


def signalled_alone(folder: Path, config: RunConfig, number: int) -> None:
    """Train; one of the processes is told to stop while it computes a step."""
    cut_small_buckets()
    step = loop.train_step

    def act(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        step(*args)

    if os.environ["RANK"] == "1":
        loop.train_step = at_call(step, number, act)
    loop.train(config, RunDir(folder))


def test_a_signal_to_one_process_stops_all_at_the_same_step(whole: Path, tmp_path: Path) -> None:
    """No process waits for the others' flags, so a flag counts one step later."""
    for number in (5, 3):
        assert exit_codes(start(3, signalled_alone, tmp_path, THREES, number)) == [0, 0, 0]
        status = RunDir(tmp_path).read_status()
        assert status is not None
        assert status.state == "preempted"
        assert status.reason == "stopped by a signal to another of its processes"
    assert exit_codes(start(3, train_here, tmp_path, THREES)) == [0, 0, 0]
    assert_same_run(tmp_path, whole)
    firsts = [attempt["first_step"] for attempt in RunDir(tmp_path).read_meta()["attempts"]]
    assert firsts == [0, 6, 10]


def test_three_killed_and_resumed_processes_equal_the_unbroken_three(
    whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    started = start(3, train_until, broken, THREES, 10)
    until = time.monotonic() + PATIENCE
    while len(list(broken.glob("waits-*"))) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    for process in started:
        process.kill()
    assert exit_codes(started) == [-signal.SIGKILL] * 3
    assert exit_codes(start(3, train_here, broken, THREES)) == [0, 0, 0]
    assert_same_run(broken, whole)
    attempts = RunDir(broken).read_meta()["attempts"]
    assert [attempt["first_step"] for attempt in attempts] == [0, 7]


def test_a_checkpoint_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    started = start(2, train_until, tmp_path, THREES, 10)
    while len(list(tmp_path.glob("waits-*"))) < 2 and all(p.is_alive() for p in started):
        time.sleep(0.02)
    for process in started:
        process.kill()
    exit_codes(started)
    with pytest.raises(ValueError, match="processes was 2, is 1"):
        loop.train(THREES, RunDir(tmp_path))
    status = loop.train(THREES, RunDir(tmp_path), allow_inexact=True)
    assert status.step == THREES.train.steps
    attempts = RunDir(tmp_path).read_meta()["attempts"]
    assert [(a["first_step"], a["processes"]) for a in attempts] == [(0, 2), (7, 1)]


def caught(folder: Path, config: RunConfig) -> str:
    """Train, and return what was raised."""
    try:
        loop.train(config, RunDir(folder))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failing_at(folder: Path, config: RunConfig, step: int) -> str:
    def fail(*_: Any) -> None:
        raise ValueError("image 5 is damaged")

    if os.environ["RANK"] == "1":
        loop.train_step = at_call(loop.train_step, step, fail)
    return caught(folder, config)


def test_an_error_in_one_process_ends_all_and_is_the_reason_of_the_failed_run(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    found = results(3, tmp_path / "results", failing_at, run, THREES, 5)
    told = "PeerError: process 1 of 3 failed: ValueError: image 5 is damaged"
    assert found == [told, "ValueError: image 5 is damaged", told]
    status = RunDir(run).read_status()
    assert status is not None
    assert (status.state, status.reason) == ("failed", told)


def failing_in_backward(folder: Path, config: RunConfig) -> str:
    """Fail in the second process, in its third step, while gradients are being reduced."""
    cut_small_buckets()
    build, calls = loop.build_state, []

    def fail(_: torch.Tensor) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise ValueError("no memory")

    def build_state(*args: Any) -> Any:
        built = build(*args)
        if os.environ["RANK"] == "1":
            first = next(p for p in built.model.online.parameters() if p.requires_grad)
            first.register_post_accumulate_grad_hook(fail)
        return built

    loop.build_state = build_state
    return caught(folder, config)


def test_an_error_while_gradients_are_reduced_ends_all(tmp_path: Path) -> None:
    found = results(3, tmp_path / "results", failing_in_backward, tmp_path / "run", THREES)
    told = "PeerError: process 1 of 3 failed: ValueError: no memory"
    assert found == [told, "ValueError: no memory", told]


def dying_at(folder: Path, config: RunConfig, step: int) -> None:
    if os.environ["RANK"] == "1":
        loop.train_step = at_call(
            loop.train_step, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        )
    loop.train(config, RunDir(folder))


def test_when_one_is_killed_the_others_end_too(tmp_path: Path) -> None:
    codes = exit_codes(start(3, dying_at, tmp_path, THREES, 5))
    assert codes == [1, -signal.SIGKILL, 1]
    status = RunDir(tmp_path).read_status()
    assert status is not None
    assert status.state == "failed"


def test_a_refusal_by_the_first_process_ends_all(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.lock():
        busy = results(2, tmp_path / "busy", caught, run.path, THREES)
    run.config_file.write_text(save_config(THREES), encoding="utf-8")
    run.checkpoint_file.parent.mkdir()
    run.checkpoint_file.write_bytes(b"no checkpoint")
    damaged = results(2, tmp_path / "damaged", caught, run.path, THREES)
    other = results(2, tmp_path / "other", caught, run.path, THREES.model_copy(update={"seed": 7}))
    for found, kind, message, told in (
        (busy, "RunBusyError", "another process is writing here", "PeerRefusedError"),
        (damaged, "ValueError", "last.pt: not a file of tensors", "PeerError"),
        (other, "ForeignFolderError", "seed: 0 there, 7 asked", "PeerRefusedError"),
    ):
        assert found[0].startswith(f"{kind}: ")
        assert message in found[0]
        assert found[1].startswith(f"{told}: process 0 of 2 failed: {kind}: ")
        assert message in found[1]


def test_a_batch_that_does_not_divide_is_refused_before_training(tmp_path: Path) -> None:
    config = small_config("train.batch=8")
    first, *_ = results(3, tmp_path / "results", caught, tmp_path / "run", config)
    assert "train.batch 8 is not divisible by the number of processes, 3" in first
    assert not (tmp_path / "run" / "config.yaml").exists()


def a_diverging_run(folder: Path) -> Any:
    config = small_config("train.batch=12", "optim.lr=1e30", "optim.warmup_steps=0")
    return vars(loop.train(config, RunDir(folder)))


def test_divergence_ends_all_at_the_same_step(tmp_path: Path) -> None:
    one, other = results(2, tmp_path / "results", a_diverging_run, tmp_path / "run")
    assert one["reason"] == "diverged: the features are no longer finite"
    assert [one[k] for k in ("state", "step", "knn")] == [
        other[k] for k in ("state", "step", "knn")
    ]


def with_a_nan(folder: Path, config: RunConfig) -> None:
    """Train; the second process gets an image of NaN in one step."""
    make = loop.make_batch

    def act(*args: Any) -> Batch:
        batch = make(*args)
        batch.view1[0] = float("nan")
        return batch

    if os.environ["RANK"] == "1":
        loop.make_batch = at_call(make, 4, act)
    loop.train(config, RunDir(folder))


def test_all_skip_a_step_that_is_not_finite_in_one(tmp_path: Path) -> None:
    # no BN and no gathered keys: the NaN reaches the other by the gradients or not at all
    words = ["train.batch=12", "train.steps=8", "method.name=byol", "method.head_norm=none"]
    config = small_config(*words, "optim.skip_nonfinite=true")
    assert exit_codes(start(2, with_a_nan, tmp_path, config)) == [0, 0]
    assert stabkit.open_run(tmp_path).scalar("skipped").tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    saved = torch.load(tmp_path / "checkpoints/last.pt")
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert saved["bank"]["added"] == 7 * 12


def talk() -> list[Any]:
    """Return what the functions of `agree` give a process."""
    found: list[Any] = []
    with process_group(cuda=False):
        found.append(run_by_first(lambda: f"from {rank()}"))
        order: list[float] = []

        def act() -> int:
            order.append(time.monotonic())
            return rank()

        found.append(run_first_then_others(act))
        found.append(order[0])

        def fail() -> None:
            if rank() > 0:
                raise OSError(f"no disk on {rank()}")

        try:
            run_together(fail)
        except (OSError, PeerError) as error:
            found.append(f"{type(error).__name__}: {error}")
        model = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(model.weight, 1.0 if rank() < 2 else 1.001)
        for weights_of_own in (True, False):
            if not weights_of_own:
                torch.nn.init.constant_(model.weight, 1.0)
            try:
                check_same_start(model, 7)
                found.append("same")
            except ValueError as error:
                found.append(str(error))
    return found


def test_processes_agree_on_results_and_errors(tmp_path: Path) -> None:
    found = results(3, tmp_path, talk)
    assert [f[0] for f in found] == ["from 0"] * 3
    assert [f[1] for f in found] == [0, 1, 2]
    assert found[0][2] < min(found[1][2], found[2][2])
    peer = "PeerError: process 1 of 3 failed: OSError: no disk on 1"
    assert [f[3] for f in found] == [peer, "OSError: no disk on 1", peer]
    assert all("process 2 of 3 starts from another weight than process 0" in f[4] for f in found)
    assert [f[5] for f in found] == ["same"] * 3


FLAGS = np.random.default_rng(0).random((3, 40)) < 0.15


def ask_all() -> list[bool]:
    with process_group(cuda=False):
        agreement = Agreement()
        found = []
        for flag in FLAGS[rank()]:
            found.append(agreement.ask(bool(flag)))
            gather(torch.zeros(2, 1))  # other reductions between, as in a step
            mean_of_processes(torch.zeros(3))
    return found


def test_an_agreement_is_the_same_in_all_and_one_call_late(tmp_path: Path) -> None:
    expected = [False, *FLAGS.any(axis=0).tolist()[:-1]]
    assert 5 < sum(expected) < 35
    assert results(3, tmp_path, ask_all) == [expected] * 3
    assert [Agreement().ask(flag) for flag in (False, True, False)] == [False, True, False]


def test_a_single_process_has_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in (None, "1"):
        if setting:
            monkeypatch.setenv("WORLD_SIZE", setting)
        with process_group(cuda=False):
            assert not torch.distributed.is_initialized()
            assert (rank(), world_size(), own_rows(7)) == (0, 1, slice(0, 7))
            loss = torch.ones((), requires_grad=True)
            assert mean_of_processes(loss) is loss


def test_an_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(ValueError, match=r"WORLD_SIZE=2 .* MASTER_ADDR, MASTER_PORT are not set"),
        process_group(cuda=False),
    ):
        pass


def test_processes_of_a_node_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(device, "world_size", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda _: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setenv("LOCAL_RANK", "5")
    found = device.prepare_device(RuntimeConfig(device="cuda"), ComputeConfig())
    assert found == torch.device("cuda:1")
    assert chosen == [found]
    assert device.prepare_device(RuntimeConfig(device="cpu"), ComputeConfig()) == torch.device(
        "cpu"
    )


def test_torchrun_starts_it_and_only_the_first_prints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "stabkit", "train", "tiny", *SMALL, "train.steps=5", "--run-dir", str(run)]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{run}: training 5 steps"
    assert re.fullmatch(r".*: done at step 5 of 5, held-out kNN \d+\.\d %", lines[1])
    assert lines[2:] == [f"Next: stabkit analyze {run}"]
    assert RunDir(run).read_meta()["attempts"][0]["processes"] == 2


def command_line(folder: Path, words: list[str]) -> None:
    with (folder / f"{os.environ['RANK']}.txt").open("w") as file:
        sys.stdout = sys.stderr = file
        dispatch.PATIENCE_S = 0.0  # nothing ends the other process here, as torchrun does
        code = main(words)
    os._exit(code)


@pytest.mark.parametrize(
    ("wrong", "message", "of_the_other"),
    [
        ("train.batch=9", "train.batch 9 is not divisible", ""),  # what they agree on is said once
        ("optim.lrr=1", "did you mean 'optim.lr'", "stabkit: process 1: tiny:"),
    ],
)
def test_an_error_sets_every_exit_code_and_says_which_process_has_it(
    wrong: str, message: str, of_the_other: str, tmp_path: Path
) -> None:
    words = ["train", "tiny", *SMALL, wrong, "--run-dir", str(tmp_path / "run")]
    assert exit_codes(start(2, command_line, tmp_path, words)) == [2, 2]
    assert message in (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text().partition("\n")[0] == of_the_other
