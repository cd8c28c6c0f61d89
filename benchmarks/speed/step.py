"""Compare the training step with a hand-written loop; time its stages and switches.

    python -m benchmarks.speed.step                     # two minutes on one CPU core
    python -m benchmarks.speed.step --quick             # some seconds; fewer pairs, no switches
    python -m benchmarks.speed.step --device cuda       # preset `cifar` (ViT-Ti/4, batch 512)

Both sides compute the same loss from the same weights and views; this is checked first. Ours is
the whole `train_step`: schedules, all signals of the Monitor at every step, and the free kNN bank.
The hand-written loops log nothing and save nothing.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.lib.handwritten import Handwritten
from benchmarks.lib.results import Row, paired, parser, publish
from benchmarks.speed.stages import stages
from stabkit.config import RunConfig, load_config
from stabkit.monitor.monitor import Monitor
from stabkit.train.data.batches import make_batch, read_batch
from stabkit.train.data.load import load_data
from stabkit.train.device import prepare_device
from stabkit.train.loop import train_step
from stabkit.train.state import TrainState, build_state

BATCHES = 4
SPAWN = multiprocessing.get_context("spawn")
VIT_224 = ("model.name=vit", "model.patch_size=16", "model.depth=12", "train.steps=31200")
SIZES = {  # preset, settings; at 224 pixels the batch leaves room for two processes on a GPU
    "tiny": ("tiny", "data.num_train=1024"),
    "cifar": ("cifar", "data.num_train=2048"),
    "vits": (
        "imagenet", *VIT_224, "model.width=384", "model.heads=6", "train.batch=128",
        "data.num_train=512",
    ),
    "vitb": (
        "imagenet", *VIT_224, "model.width=768", "model.heads=12", "train.batch=64",
        "data.num_train=256",
    ),
}  # fmt: skip
SWITCHES = (
    "compute.precision=tf32",
    "compute.precision=bf16",
    "compute.precision=fp16",
    "compute.compile=true",
    "compute.channels_last=true",
    "compute.fused_optimizer=true",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--no-switches", action="store_true", help="only the step and its stages")
    options.add_argument("--size", choices=SIZES, help="default: tiny on a CPU, cifar on a GPU")
    given = options.parse_args()
    given.words = ()
    given.size = given.size or ("cifar" if given.device.startswith("cuda") else "tiny")
    torch.set_num_threads(given.threads)
    rows = against_handwritten(given)
    found, share = stages(config_for(given), 20 if given.quick else 60)
    rows.append(share)
    if not (given.quick or given.no_switches):
        rows += switches(given)
        rows += followings(given)
    publish(rows, given, notes=[found, *NOTES])


NOTES = [
    '"tuned" is the hand-written loop with what was chosen here by measurement: attention as plain '
    "products on a CPU, AdamW and the momentum encoder by `torch._foreach_*`. What is left between "
    "it and ours is the Monitor and the kNN bank.",
    "Switches are compared with the default step (float32, eager). Each keeps a resumed run equal "
    "to the unbroken one bit for bit (`tests/train/test_compute.py`); the foreach momentum encoder "
    "gives the bits of the loop over tensors and therefore needs no switch.",
]


def config_for(given: argparse.Namespace, *words: str) -> RunConfig:
    """Return a config of a size of SIZES on procedural textures with few images."""
    preset, *settings = SIZES[given.size]
    few = ["data.path=null", "data.name=synthetic", "data.num_heldout=1000"]
    device = f"runtime.device={given.device}"
    return load_config(preset, [*few, *settings, device, *given.words, *words])


class Ours:
    """`train_step` as the loop calls it, on views made beforehand."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.device = prepare_device(config.runtime, config.compute)
        images, _ = load_data(config.data)
        self.state: TrainState = build_state(config, len(images), self.device, len(images.classes))
        self.classes = len(images.classes)
        self.batches = [
            make_batch(config, read_batch(config, images, step), self.device)
            for step in range(BATCHES)
        ]
        model, optimizer, scaler = self.state.model, self.state.optimizer, self.state.scaler
        self.monitor = Monitor(model.online, optimizer, folder, scaler=scaler)
        self.step = 0

    def __call__(self) -> None:
        batch = self.batches[self.step % BATCHES]
        train_step(self.config, self.state, self.monitor, batch, self.step, self.classes)
        self.step += 1


def against_handwritten(given: argparse.Namespace) -> list[Row]:
    """Time each side in its own process, since ours also changes how freed memory is kept."""
    rows, config = [], config_for(given)
    pairs, steps = (6, 3) if given.quick else (12, 6)
    size = "" if given.size == "tiny" else f"{given.size}, "
    what = f"training step, {size}{given.device}, batch {config.train.batch}"
    for peer, tuned in (("hand-written loop", False), ("the same, tuned", True)):
        with apart(make_ours, given) as ours, apart(make_handwritten, given, tuned) as hand:
            times = paired(partial(ours, steps), partial(hand, steps), pairs)
        rows.append(times.row(what, peer, "at least", 1.0, items=steps, unit="steps/s"))
    return rows


Subject = tuple[Callable[[], None], torch.device]


@contextmanager
def make_ours(given: argparse.Namespace) -> Iterator[Subject]:
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(config_for(given), Path(folder))
        yield ours, ours.device
        ours.monitor.close()


@contextmanager
def make_handwritten(given: argparse.Namespace, tuned: bool) -> Iterator[Subject]:
    config, device = config_for(given), torch.device(given.device)
    images, _ = load_data(config.data)
    state = build_state(config, len(images), device, len(images.classes))
    views = [make_batch(config, read_batch(config, images, i), device) for i in range(BATCHES)]
    hand = Handwritten(config, state, views, tuned)
    hand.check_same_loss(state)
    yield hand, device


@contextmanager
def apart(
    make: Callable[..., AbstractContextManager[Subject]],
    given: argparse.Namespace,
    *options: bool,
) -> Iterator[Callable[[int], None]]:
    """Run `make` in another process. Yield a function that calls its subject a number of times."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=_serve, args=(there, make, given, options))
    process.start()
    there.close()
    assert here.recv() == "ready"

    def call(times: int) -> None:
        here.send(times)
        here.recv()

    yield call
    here.send(0)
    process.join()


def _serve(
    pipe: Connection,
    make: Callable[..., AbstractContextManager[Subject]],
    given: argparse.Namespace,
    options: tuple[bool, ...],
) -> None:
    torch.set_num_threads(given.threads)
    with make(given, *options) as (subject, device):
        pipe.send("ready")
        while times := pipe.recv():
            for _ in range(times):
                subject()
            if device.type == "cuda":
                torch.cuda.synchronize()
            pipe.send("done")


def switches(given: argparse.Namespace) -> list[Row]:
    rows = []
    for word in SWITCHES:
        if "tf32" in word and given.device == "cpu":
            continue
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            plain, switched = (
                Ours(config_for(given), Path(a)),
                Ours(config_for(given, word), Path(b)),
            )
            slow = given.device == "cpu" and word.endswith(("bf16", "fp16"))  # most CPUs emulate it
            pairs, calls = (2, 1) if slow else (6, 3)
            times = paired(switched, plain, pairs, calls=calls, device=plain.device)
            for side in (plain, switched):
                side.monitor.close()
        rows.append(times.row(word, "default step", "at most"))
    return rows


def followings(given: argparse.Namespace) -> list[Row]:
    """Time the update of the momentum encoder over all tensors at once, beside a loop."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(config_for(given), Path(folder))
        ours.monitor.close()
    online, target = ours.state.model.online, ours.state.model.target
    slow = list(target.parameters())
    fast = [*online.backbone.parameters(), *online.projector.parameters()]
    together = torch.no_grad()(partial(torch._foreach_lerp_, slow, fast, 0.01))
    loop = partial(_follow_by_loop, slow, fast, 0.01)
    times = paired(together, loop, 15, calls=20, device=ours.device)
    same = [tensor.clone() for tensor in slow]
    target.follow(online, 0.5)
    _follow_by_loop(same, fast, 0.5)
    assert all(one.equal(other) for one, other in zip(slow, same, strict=True))
    return [times.row("momentum encoder, foreach", "loop over tensors, same bits", "at most")]


@torch.no_grad()
def _follow_by_loop(slow: list, fast: list, weight: float) -> None:
    for one, other in zip(slow, fast, strict=True):
        one.lerp_(other, weight)


if __name__ == "__main__":
    main()
