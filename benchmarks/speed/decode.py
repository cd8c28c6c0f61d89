"""Time the decoding of a folder of photographs: python -m benchmarks.speed.decode

The folder holds JPEGs whose longer side has 500 pixels, of ten shapes, as ImageNet's mostly have.
It is made here, the same each time. A rate a core is images for each second of processor time, of
all processes that take part. Sides take turns. Peers: Pillow in threads of the training process,
which is what `ImageSet.load` did before; torchvision's ImageFolder in torch's DataLoader; and,
where they are installed, DALI on the CPU, and the decoders of TorchCodec and simplejpeg in threads
of this process.

The training step is a small MoCo v3 at 224 px, whose views take most of it.
"""

import io
import statistics
import tarfile
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from benchmarks.lib.results import Row, Times, parser, publish
from benchmarks.lib.timing import median_interval
from stabkit.config import RunConfig, validate
from stabkit.train.data import decoder
from stabkit.train.data.batches import ReadAhead, make_batch
from stabkit.train.data.image_set import Images, ImageSet, stacked
from stabkit.train.data.load import load_data
from stabkit.train.loop import train_step
from stabkit.train.recording import Silent
from stabkit.train.state import build_state

SHAPES = (
    (375, 500), (333, 500), (500, 375), (334, 500), (500, 333),
    (400, 500), (500, 500), (281, 500), (332, 500), (500, 400),
)  # fmt: skip
BATCH, STEP_BATCH = 32, 16
BEFORE = "threads of the training process (before)"
Load = Callable[[], Iterator[Images]]


def photograph(number: int) -> bytes:
    """Return a JPEG: blots and grain that take about 90 kB; an image of ImageNet takes 110."""
    height, width = SHAPES[number % len(SHAPES)]
    generator = np.random.default_rng(number)
    small = generator.integers(0, 256, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    blots = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    grain = generator.normal(0, 9, (height, width, 1))
    buffer = io.BytesIO()
    pixels = np.clip(blots + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_set(root: Path, count: int) -> list[Path]:
    """Write the images as a folder and as a tar shard; return the files of the training split."""
    files = []
    for split in ("train", "val"):
        (root / "folder" / split / "0").mkdir(parents=True)
        (root / "tar" / split).mkdir(parents=True)
        with tarfile.open(root / "tar" / split / "shard-000000.tar", "w") as tar:
            for i in range(count if split == "train" else BATCH):
                file = root / "folder" / split / "0" / f"{i:05}.jpg"
                file.write_bytes(photograph(i))
                tar.add(file, file.name)
                label = tarfile.TarInfo(f"{i:05}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0"))
                files += [file] if split == "train" else []
    return files


def config_of(root: Path, name: str) -> RunConfig:
    settings = {
        "data": {"name": name, "path": str(root), "image_size": 224},
        "model": {"patch_size": 32, "width": 64, "depth": 2, "heads": 2},
        "train": {"batch": STEP_BATCH, "steps": 1000},
    }
    return validate(RunConfig, settings, "benchmark")


def by_pillow(file: Path) -> Tensor:
    with file.open("rb") as content, Image.open(content) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def in_threads(images: ImageSet, files: Sequence[Path], pool: ThreadPoolExecutor) -> ImageSet:
    """Return the same set, decoded in threads of this process, as stabkit did before."""
    return replace(
        images, read=lambda index: stacked(list(pool.map(by_pillow, [files[i] for i in index])))
    )


def batches_of(images: ImageSet) -> Load:
    def load() -> Iterator[Images]:
        for start in range(0, len(images), BATCH):
            yield images.load(np.arange(start, min(start + BATCH, len(images))))

    return load


class Side:
    """One way to load all images, and the processes that take part beside this one."""

    def __init__(self, load: Load, helpers: Callable[[], Sequence[int]] = lambda: ()) -> None:
        self.load, self.helpers = load, helpers
        self.wall: list[float] = []
        self.used: list[float] = []

    def measure(self) -> None:
        began, used = time.perf_counter(), self._used()
        for images in self.load():
            for image in images:
                image.flatten()[::4096].sum()  # pages are mapped when they are read
        self.wall.append(time.perf_counter() - began)
        self.used.append(self._used() - used)

    def _used(self) -> float:
        # A process has a clock of its processor time, whose number follows from its id.
        clocks = [time.clock_gettime((~pid << 3) | 2) for pid in self.helpers()]
        return time.process_time() + sum(clocks)


def data_loader_side(root: Path, workers: int) -> Side:
    loader: Any = DataLoader(
        ImageFolder(str(root / "train"), transform=PILToTensor()),
        BATCH,
        num_workers=workers,
        collate_fn=lambda samples: [image for image, _ in samples],
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    next(iter(loader))
    return Side(lambda: iter(loader), lambda: [w.pid for w in loader._iterator._workers])


def decoder_pids() -> list[int]:
    return [decoder._running.popen.pid] if decoder._running else []


def other_decoders() -> dict[str, Callable[[Path], Tensor]]:
    """Return those that are installed; each gives pixels in the order of a tensor."""
    found: dict[str, Callable[[Path], Tensor]] = {}
    with suppress(ImportError):
        from torchcodec.decoders import decode_jpeg

        def by_torchcodec(file: Path) -> Tensor:
            content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
            image: Tensor = decode_jpeg(content)
            return image.contiguous()

        found["TorchCodec"] = by_torchcodec
    with suppress(ImportError):
        import simplejpeg

        def by_simplejpeg(file: Path) -> Tensor:
            pixels = torch.from_numpy(simplejpeg.decode_jpeg(file.read_bytes(), "RGB"))
            return pixels.permute(2, 0, 1).contiguous()

        found["simplejpeg"] = by_simplejpeg
    return found


def in_threads_of_this(
    one: Callable[[Path], Tensor], files: Sequence[Path], pool: ThreadPoolExecutor
) -> Side:
    def load() -> Iterator[Images]:
        for start in range(0, len(files), BATCH):
            yield list(pool.map(one, files[start : start + BATCH]))

    return Side(load)


def dali_side(files: Sequence[Path], workers: int) -> Side | None:
    """Return DALI's pipeline, whose threads are of this process; None if it is not installed."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError:
        return None

    # Synchronous, so that no image of the next side's turn is decoded meanwhile.
    how = {"exec_async": False, "exec_pipelined": False}

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, **how)
    def decoded() -> Any:
        content, _ = fn.readers.file(files=[str(file) for file in files])
        images = fn.decoders.image(content, device="cpu", output_type=types.RGB)
        return fn.transpose(images, perm=[2, 0, 1])

    pipe = decoded()
    pipe.build()

    def load() -> Iterator[Images]:
        for _ in range(0, len(files), BATCH):
            (batch,) = pipe.run()
            yield [torch.from_numpy(batch.at(i)) for i in range(len(batch))]

    return Side(load)


def decode_rows(
    given: Namespace, root: Path, files: list[Path], pool: ThreadPoolExecutor, workers: int
) -> tuple[list[Row], list[str]]:
    folder, _ = load_data(config_of(root / "folder", "imagefolder").data)
    shards, _ = load_data(config_of(root / "tar", "tar").data)
    before = in_threads(folder, files, pool)
    ours = Side(batches_of(folder), decoder_pids)
    sides = {
        BEFORE: Side(batches_of(before)),
        f"DataLoader, torchvision, {workers} workers": data_loader_side(root / "folder", workers),
        "our tar shards": Side(batches_of(shards), decoder_pids),
    }
    for name, one in other_decoders().items():
        sides[f"{name} in threads of this process"] = in_threads_of_this(one, files, pool)
    if (dali := dali_side(files, workers)) is not None:
        sides["DALI, on the CPU"] = dali
    everyone = [ours, *sides.values()]
    notes = [_same_bits(name, ours, side) for name, side in sides.items()]
    for turn in range(4 if given.quick else 9):
        for side in everyone[turn % len(everyone) :] + everyone[: turn % len(everyone)]:
            side.measure()
    rows = []
    goals = {BEFORE: 1.5}
    for name, side in sides.items():
        used, goal = Times(ours.used[1:], side.used[1:]), goals.get(name)
        row = used.row(
            "decode, rate a core", name, "at least", goal, items=len(files), unit="images/s"
        )
        rows.append(row)
    for name, side in sides.items():
        wall = Times(ours.wall[1:], side.wall[1:])
        what = f"decode, {workers} threads"
        rows.append(wall.row(what, name, "at least", items=len(files), unit="images/s"))
    return rows, notes


def _same_bits(name: str, ours: Side, peer: Side) -> str:
    batches = zip(ours.load(), peer.load(), strict=True)
    pairs = [pair for x, y in batches for pair in zip(x, y, strict=True)]
    differ = sum(not torch.equal(a, b) for a, b in pairs)
    largest = max(int((a.int() - b.int()).abs().max()) for a, b in pairs)
    return (
        f"Images whose pixels differ from ours, {name}: {differ} of {len(pairs)} (most: {largest})."
    )


def step_rows(
    given: Namespace, root: Path, files: list[Path], pool: ThreadPoolExecutor
) -> list[Row]:
    """Compare a step that reads ahead with the same step of images that are there already."""
    config = config_of(root / "folder", "imagefolder")
    folder, _ = load_data(config.data)
    held = folder.load(np.arange(len(folder)))
    there = replace(folder, read=lambda index: stacked([held[i] for i in index]))
    sides = {"ours": folder, "threads": in_threads(folder, files, pool), "there": there}
    state = build_state(config, len(folder), torch.device("cpu"), 1)
    used: dict[str, list[float]] = {name: [] for name in sides}
    waits, walls = list[float](), list[float]()
    for turn in range(3 if given.quick else 5):
        for name in sorted(sides, reverse=bool(turn % 2)):
            began, used_before = time.perf_counter(), time.thread_time()
            waited, steps = _steps(config, sides[name], state, 2 if given.quick else 3)
            if turn:
                used[name].append((time.thread_time() - used_before) / steps)
            if turn and name == "ours":
                waits.append(waited / steps)
                walls.append((time.perf_counter() - began) / steps)
    what = f"step of {STEP_BATCH} images, 224 px, processor time of its thread"
    share = [a / b for a, b in zip(waits, walls, strict=True)]
    ms = [1000 * statistics.median(times) for times in (waits, walls)]
    return [
        Times(used["ours"], used["there"]).row(what, "images in memory", "at most"),
        Times(used["threads"], used["there"]).row(
            f"{what}; {BEFORE}", "images in memory", "at most"
        ),
        Row("waiting for images", "whole step", *ms, "ms", median_interval(share), "at most", 0.01),
    ]


def _steps(config: RunConfig, images: ImageSet, state: Any, steps: int) -> tuple[float, int]:
    """Train, and return the seconds spent waiting and the number of steps."""
    waited = 0.0
    with ReadAhead(config, images) as ahead:
        for step in range(steps + 1):
            asked = time.perf_counter()
            read = ahead.take(step)
            if step:  # nothing was read ahead of the first step
                waited += time.perf_counter() - asked
            batch = make_batch(config, read, torch.device("cpu"))
            del read
            train_step(config, state, Silent(), batch, 1, 1)
    return waited, steps + 1


def launch_rows(given: Namespace, images: ImageSet, before: ImageSet) -> list[Row]:
    """Compare loops of small operations, as a training on a GPU launches them, beside decoding."""
    small, index = torch.zeros(8), np.arange(BATCH)
    times: dict[str, list[float]] = {"ours": [], "threads": [], "alone": []}
    sets = {"ours": images, "threads": before}

    def launch() -> float:
        began = time.perf_counter()
        for _ in range(20_000):
            small.add_(1.0)
        return time.perf_counter() - began

    for turn in range(4 if given.quick else 12):
        for name in sorted(times, reverse=bool(turn % 2)):
            stop = threading.Event()

            def decode(name: str = name, stop: threading.Event = stop) -> None:
                while name in sets and not stop.is_set():
                    sets[name].load(index)

            thread = threading.Thread(target=decode)
            thread.start()
            times[name].append(launch())
            stop.set()
            thread.join()
    what = "20,000 small operations beside decoding"
    return [
        Times(times["ours"], times["threads"]).row(what, BEFORE, "at most"),
        Times(times["ours"], times["alone"]).row(what, "no decoding", "at most"),
    ]


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    torch.set_num_threads(given.threads)
    workers = min(2, decoder.usable_cores())
    count = 64 if given.quick else 160
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        files = write_set(Path(folder), count)
        size = statistics.mean(file.stat().st_size for file in files) / 1000
        # DataLoader's processes are forked before torch has started threads of its own.
        rows, notes = decode_rows(given, Path(folder), files, pool, workers)
        images, _ = load_data(config_of(Path(folder) / "folder", "imagefolder").data)
        rows += launch_rows(given, images, in_threads(images, files, pool))
        rows += step_rows(given, Path(folder), files, pool)
    notes.insert(0, f"{count} images, {size:.0f} kB each on average, in the page cache.")
    publish(
        rows,
        given,
        peers=("pillow", "torchcodec", "simplejpeg", "nvidia-dali-cuda120"),
        notes=notes,
    )


if __name__ == "__main__":
    main()
