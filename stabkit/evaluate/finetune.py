"""Fine-tune a pre-trained backbone end to end, on its own data or on other data (transfer)."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stabkit.config.schedule import warmup_cosine
from stabkit.evaluate.config import FinetuneConfig
from stabkit.monitor.layers import group_layers
from stabkit.train.data.image_ops import image_sizes
from stabkit.train.data.image_set import moved
from stabkit.train.data.load import ImageSet, batch_index
from stabkit.train.data.view_params import sample_view_params
from stabkit.train.data.views import apply_view
from stabkit.train.randomness import uniforms

if TYPE_CHECKING:
    from timm.data.mixup import Mixup

_MIX_STREAM = 2**61  # views use small stream numbers, the order of the data set 2**62


def finetune(
    backbone: nn.Module,
    images: ImageSet,
    image_size: int,
    config: FinetuneConfig,
    seed: int,
    device: torch.device,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Sequential:
    """Train `backbone`, in place, and a new head; `report` gets each epoch and its mean loss.

    The result is a function of the seed: order, crops and mixing follow from the step, and no
    global generator moves. Everything trains, including what pre-training had frozen or fixed.
    Raises ValueError when the loss is no longer finite.
    """
    batch = min(config.batch, len(images)) // 2 * 2  # mixing pairs the images of a batch
    if not batch:
        raise ValueError(f"fine-tuning needs 2 training images or more, not {len(images)}")
    model = classifier(backbone, len(images.classes)).to(device)
    optimizer = build_optimizer(model, config)
    mixup = _mixup(config, len(images.classes))
    per_epoch = len(images) // batch
    model.train()
    for epoch in range(config.epochs):
        losses: list[Tensor] = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            _, index = batch_index(seed, step, len(images), batch)
            pixels = load_crops(images, index, seed, epoch, image_size, config.min_scale, device)
            target = torch.from_numpy(images.labels[index]).to(device)
            if mixup is not None:
                with numpy_seed(_mix_seed(seed, step)):
                    pixels, target = mixup(pixels, target)
            _set_rates(optimizer, config, batch, step, per_epoch)
            losses.append(_update(model, optimizer, pixels, target, config))
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            reason = f"fine-tuning diverged in epoch {epoch + 1}"
            raise ValueError(f"{reason}; lower finetune.lr {config.lr:g}")
        report(epoch, mean)
    return model


def _set_rates(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig, batch: int, step: int, per_epoch: int
) -> None:
    """Warm up, then follow a half cosine to 0; each group at its own share of the rate."""
    steps, warmup = config.epochs * per_epoch, config.warmup_epochs * per_epoch
    peak = config.lr * batch / 256
    for group in optimizer.param_groups:
        group["lr"] = peak * warmup_cosine(step, steps, warmup) * group["lr_scale"]


def _update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    target: Tensor,
    config: FinetuneConfig,
) -> Tensor:
    """Make one update and return the loss; `target` is labels [B] or, mixed, shares [B, C]."""
    # Mixing has smoothed its targets already.
    smoothing = config.label_smoothing if target.ndim == 1 else 0.0
    loss = F.cross_entropy(model(pixels), target, label_smoothing=smoothing)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def classifier(backbone: nn.Module, num_classes: int) -> nn.Sequential:
    """Return `backbone`, with all of it trainable, and a linear `head`.

    The head starts at zero, so that all classes are equally likely.
    """
    backbone.requires_grad_(True)
    # nn.Linear draws weights, which are thrown away; the user's generator must not move for them.
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def load_crops(
    images: ImageSet,
    index: NDArray[np.int64],
    seed: int,
    epoch: int,
    image_size: int,
    min_scale: float,
    device: torch.device,
) -> Tensor:
    """Return random resized crops, [B, 3, S, S], half of them flipped.

    They are a function of (seed, epoch, image).
    """
    pixels = moved(images.load(index), device)
    drawn = sample_view_params(seed, epoch, index, 1, image_sizes(pixels), min_scale)
    # Switch off every other augmentation of the first view.
    off = np.zeros(len(index), dtype=np.bool_)
    plain = replace(drawn, jitter=off, gray=off, solarize=off, blur_sigma=off.astype(np.float64))
    return apply_view(pixels, plain, image_size)


def layer_scales(parameters: list[str], decay: float) -> list[float]:
    """Return decay^(L + 1 - layer) of each parameter, for L blocks (Bao et al. 2021, BEiT).

    Layer 0 is all that comes before the first block (patch projection, class token, positions).
    Layers 1 to L are the blocks. Layer L + 1 is all that comes after the last block (final norm,
    head). A block is a numbered module.
    """
    layers, number = group_layers(parameters)
    blocks = [i for i, layer in enumerate(layers) if layer.rpartition(".")[2].isdigit()]
    last = blocks[-1] if blocks else len(layers) - 2  # without blocks only the head is after
    # Layers come in depth order: the place of a layer is the number of blocks up to it.
    place = [
        len(blocks) + 1 if i > last else sum(block <= i for block in blocks)
        for i in range(len(layers))
    ]
    return [decay ** (len(blocks) + 1 - place[i]) for i in number]


def build_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """Build AdamW with one group for each pair of rate and decay.

    Vectors, scalars, the class token and positions do not decay.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = layer_scales([name for name, _ in named], config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for (name, parameter), scale in zip(named, scales, strict=True):
        plain = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed"))
        decay = 0.0 if plain else config.weight_decay
        groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        lr=0.0,
        foreach=True,
    )


def _mixup(config: FinetuneConfig, num_classes: int) -> "Mixup | None":
    if not (config.mixup or config.cutmix):
        return None
    # Here, since timm takes seconds to import.
    from timm.data.mixup import Mixup

    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )


def _mix_seed(seed: int, step: int) -> int:
    return int(uniforms(seed, step, np.zeros(1, np.int64), _MIX_STREAM, 1)[0, 0] * 2**32)


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which timm's mixing draws from, and put it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
