"""Time two views of an image beside torchvision's PIL pipeline and kornia.

    python -m benchmarks.speed.views                  # about a minute on a CPU
    python -m benchmarks.speed.views --device cuda    # their share of a ViT-S/4 step

All make the seven operations of MoCo v3 with its probabilities and with separate parameters for
each image: crop, jitter, gray, blur, solarize, flip, normalize. All start from decoded 8-bit images
and end with two float batches. torchvision works on PIL images one by one, as MoCo v3's own loader
does. kornia works on the batch (`same_on_batch=False`), which it needs as float.

The cache is measured through `ImageSet.load`, which a training calls, on generated JPEG
photographs.
"""

import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as T

from benchmarks.lib.results import Row, paired, parser, publish
from stabkit.config import RunConfig, validate
from stabkit.cores import usable_cores
from stabkit.train.data.image_ops import IMAGENET_MEAN, IMAGENET_STD
from stabkit.train.data.load import ImageSet, load_data
from stabkit.train.data.views import two_views
from stabkit.train.loop import Batch, train_step
from stabkit.train.recording import Silent
from stabkit.train.state import build_state

PHOTOGRAPH = (375, 500)  # height, width: the most common of ImageNet
BLUR = {1: 1.0, 2: 0.1}
SOLARIZE = {1: 0.0, 2: 0.2}


def photographs(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return [count, height, width, 3]: blots, edges and grain that compress like a photo."""
    generator = np.random.default_rng(height)
    made = []
    for _ in range(count):
        small = generator.integers(0, 256, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
        blots = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
        grain = generator.normal(0, 6, (height, width, 1))
        made.append(np.clip(blots + grain, 0, 255).astype(np.uint8))
    return np.stack(made)


def pil_views(size: int) -> list[Callable[[Image.Image], Tensor]]:
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(np.random.uniform(0.1, 2.0)))

    def view(number: int) -> Callable[[Image.Image], Tensor]:
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=(0.08, 1.0)),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([blur], p=BLUR[number]),
                T.RandomApply([ImageOps.solarize], p=SOLARIZE[number]),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    return [view(1), view(2)]


def kornia_views(size: int, device: torch.device) -> list[torch.nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own deprecated parts
        import kornia.augmentation as K

    def view(number: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=BLUR[number]),
            K.RandomSolarize(0.0, 0.0, p=SOLARIZE[number]),  # at exactly one half
            K.RandomHorizontalFlip(),
            K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
        ).to(device)

    return [view(1), view(2)]


def view_rows(
    size: int,
    batch: int,
    source: tuple[int, int],
    goals: dict[str, float],
    given: Namespace,
    device: torch.device,
) -> list[Row]:
    pixels = photographs(batch, *source)
    held = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(device)
    sample = np.arange(batch)
    epoch = 0

    def ours() -> Any:
        nonlocal epoch
        epoch += 1  # new crops each time, as for the peers
        return two_views(held, 0, epoch, sample, size)

    pil = [Image.fromarray(image) for image in pixels]
    one_by_one, batched = pil_views(size), kornia_views(size, device)

    def by_torchvision() -> Any:
        return [torch.stack([view(image) for image in pil]) for view in one_by_one]

    @torch.no_grad()
    def by_kornia() -> Any:
        images = held.float().div_(255.0)
        return [view(images) for view in batched]

    peers = {"torchvision, PIL": by_torchvision, "kornia": by_kornia}
    if device.type == "cuda":
        del peers["torchvision, PIL"]
    pairs = 3 if given.quick else 7
    what = f"two views, {size} px" + (f" of {source[1]}x{source[0]}" if size > 32 else "")
    return [
        paired(ours, act, pairs, device=device).row(
            f"{what}, batch {batch}",
            peer,
            "at least",
            goals.get(peer),
            items=batch,
            unit="images/s",
        )
        for peer, act in peers.items()
    ]


def write_jpegs(root: Path, count: int) -> None:
    for split in ("train", "val"):
        (root / split / "one").mkdir(parents=True)
        for height, width in (PHOTOGRAPH, (333, 500)):  # images of one size would be held in memory
            for i, image in enumerate(photographs(count // 2, height, width)):
                file = root / split / "one" / f"{height}-{i:04}.jpg"
                Image.fromarray(image).save(file, quality=90)


def cache_rows(given: Namespace, folder: Path) -> list[Row]:
    count = 16 if given.quick else 64
    write_jpegs(folder / "jpegs", count)
    settings = {"name": "imagefolder", "path": str(folder / "jpegs"), "image_size": 224}
    config = SimpleNamespace(**settings, num_train=0, num_heldout=0)
    decoded, _ = load_data(config)  # type: ignore[arg-type]
    cached, _ = load_data(config, str(folder / "cache"))  # type: ignore[arg-type]
    assert all(map(torch.equal, cached.load(np.arange(4)), decoded.load(np.arange(4))))
    index = np.arange(count)[::-1].copy()
    threads = min(16, usable_cores())

    def one_by_one() -> None:
        for i in range(count):
            decoded.load(index[i : i + 1])

    def views_of(images: ImageSet) -> Callable[[], Any]:
        return lambda: two_views(images.load(index), 0, 0, index, 224)

    pairs = 3 if given.quick else 7
    loaded = paired(lambda: cached.load(index), lambda: decoded.load(index), pairs)
    threaded = paired(lambda: decoded.load(index), one_by_one, pairs)
    whole = paired(views_of(cached), views_of(decoded), pairs)
    every = {"items": count, "unit": "images/s"}
    by = f"JPEG, {threads} decoding threads"
    return [
        loaded.row("load, cache", by, "at least", **every),
        threaded.row(f"load, {by}", "one at a time", "at least", **every),
        whole.row("load and two views of 224 px, cache", by, "at least", **every),
    ]


def share_row(given: Namespace, device: torch.device) -> Row:
    """Compare the views of a batch with the rest of its step: ViT-S/4, 32 px, bfloat16."""
    batch = 512
    settings = {
        "data": {"num_train": batch, "num_heldout": 16, "image_size": 32},
        "model": {"patch_size": 4, "width": 384, "depth": 12, "heads": 6},
        "train": {"batch": batch, "steps": 1000},
    }
    config = validate(RunConfig, settings, "benchmark")
    images, _ = load_data(config.data)
    state = build_state(config, len(images), device, len(images.classes))
    sample = np.arange(batch)
    labels = torch.from_numpy(images.labels).to(device)
    ids = torch.from_numpy(sample).to(device)

    def views() -> tuple[Tensor, Tensor]:
        # from host memory, as in a step
        return two_views(images.load(sample).to(device), 0, 0, sample, 32)  # type: ignore[union-attr]

    made = Batch(*views(), labels, ids, slice(0, batch))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            train_step(config, state, Silent(), made, 1, len(images.classes))

    calls, pairs = (2, 3) if given.quick else (10, 7)
    times = paired(views, step, pairs, calls=calls, device=device)
    what = f"two views, 32 px, batch {batch}"
    return times.row(what, "step without them: MoCo v3, ViT-S/4, bfloat16", "at most", 0.05)


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    torch.manual_seed(0)
    np.random.seed(0)
    goals = {"torchvision, PIL": 5.0, "kornia": 1.5}
    if device.type == "cuda":
        rows = [share_row(given, device)]
        rows += view_rows(32, 512, (32, 32), {}, given, device)
        rows += view_rows(224, 128, PHOTOGRAPH, {}, given, device)
    else:
        rows = []
        for batch in (64,) if given.quick else (64, 256, 512):
            rows += view_rows(32, batch, (32, 32), goals, given, device)
        rows += view_rows(224, 8 if given.quick else 32, PHOTOGRAPH, {}, given, device)
        with tempfile.TemporaryDirectory() as folder:
            rows += cache_rows(given, Path(folder))
    notes = ["The cached images are in the page cache, as those of a set that fits the memory are."]
    publish(rows, given, peers=("kornia", "pillow"), notes=notes)


if __name__ == "__main__":
    main()
