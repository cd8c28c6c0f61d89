"""Compare a linear probe of 16 learning rates with one of a single rate.

It does what `stabkit evaluate --linear` does: encode every image once by the frozen backbone, then
train the heads on its features, first without the images that choose the rate and then on all.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.results import Row, Times, parser, publish
from stabkit.config import load_config
from stabkit.evaluate.config import LinearConfig
from stabkit.evaluate.features import encode_set
from stabkit.evaluate.linear_probe import fit_heads
from stabkit.train.data.image_set import ImageSet, from_array
from stabkit.train.data.load import load_data
from stabkit.train.state import build_state

MANY = 16

# preset of the backbone, training images, held-out images, classes
SIZES = (
    ("tiny", 5_000, 1_000, 10),
    ("tiny", 50_000, 10_000, 100),
    ("cifar", 50_000, 10_000, 10),
    ("cifar", 50_000, 10_000, 100),
)
IMAGES = 128  # encoded to time one of them
STEPS = 8  # of a head, made to time one of them


def timed(function: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rates(number: int) -> tuple[float, ...]:
    return tuple(float(rate) for rate in np.geomspace(0.001, 3, number))


def backbone_and_images(preset: str, device: torch.device) -> tuple[nn.Module, ImageSet, int]:
    sizes = ["data.num_train=1024", "data.num_heldout=16"]
    config = load_config(preset, ["data.name=synthetic", *sizes])
    size = config.data.image_size
    images, _ = load_data(config.data)
    few = np.arange(IMAGES)
    pixels = images.load(few)
    assert isinstance(pixels, Tensor)
    held = from_array(pixels.numpy(), images.labels[few], images.classes)
    state = build_state(config, len(images), device, len(images.classes))
    return state.model.online.backbone, held, size


def rows_of(
    preset: str, train: int, heldout: int, classes: int, rounds: int, device: torch.device
) -> list[Row]:
    """Return rows computed from the time of one image and one step, as thousands take the same."""
    backbone, images, size = backbone_and_images(preset, device)
    features, _ = encode_set(backbone, images, size, device)
    dim = features.shape[1]
    settings = LinearConfig()
    batch = settings.batch
    kept = round(settings.choose_on * train)
    steps = settings.epochs * (train // batch + (train - kept) // batch)
    x = torch.randn(batch * STEPS, dim, device=device)
    y = torch.randint(classes, (len(x),), device=device)

    def heads(number: int) -> Callable[[], object]:
        return lambda: fit_heads(x, y, classes, LinearConfig(lr=rates(number), epochs=1), 0)

    found: dict[int, list[float]] = {1: [], MANY: []}
    whole: dict[int, list[float]] = {1: [], MANY: []}
    for turn in range(rounds + 1):
        encoding = timed(lambda: encode_set(backbone, images, size, device), device) / IMAGES
        for number in sorted(found, reverse=turn % 2 == 0):
            step = timed(heads(number), device) / STEPS
            if turn:
                found[number].append(step)
                whole[number].append((train + heldout) * encoding + steps * step)
    shape = f"{preset}, {train + heldout:,} images, {dim} features, {classes} classes"
    return [
        Times(whole[MANY], whole[1]).row(
            f"{MANY} rates, encoding and heads: {shape}", "one rate", "at most", 1.3,
            note=f"{heads_share(found[MANY], whole[MANY], steps):.0%} of it heads",
        ),
        Times(found[MANY], found[1]).row(
            f"{MANY} rates, a step of the heads alone: {shape}", "one rate", "at most"
        ),
    ]  # fmt: skip


def heads_share(step: list[float], whole: list[float], steps: int) -> float:
    return float(np.median([steps * s / w for s, w in zip(step, whole, strict=True)]))


def main() -> None:
    given: argparse.Namespace = parser(__doc__ or "").parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    rows = []
    for size in SIZES[::3] if given.quick else SIZES:
        rows += rows_of(*size, 1 if given.quick else 4, device)
    note = (
        f"Whole probes from the time of an image (of {IMAGES}) and of a step (of {STEPS}, batch "
        f"{LinearConfig().batch}, {LinearConfig().epochs} epochs). The heads of {MANY} rates are "
        f"{MANY} times the arithmetic of one's; what they share is the encoding, the "
        "standardization, and the reading of a batch. With the images through the backbone in "
        "every epoch, as augmentation would have it, the encoding would be as many times more."
    )
    publish(rows, given, notes=[note])


if __name__ == "__main__":
    main()
