"""Linear probe on cached features: every learning rate of the grid is trained at once.

The backbone is frozen and sees the plain view, so its features are computed once; augmentation is
therefore off, which the official protocol (random crops and flips) has on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabkit.evaluate.config import LinearConfig
from stabkit.train.data.load import batch_index
from stabkit.train.optim.build import warmup_cosine
from stabkit.train.randomness import permutation

_CHOICE = 2**32  # an epoch no training reaches: the split shares no order with a batch


@dataclass(frozen=True)
class Heads:
    """L linear classifiers on standardised features: logits = (x - mean) / std · weightᵀ + bias."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    weight: Tensor  # [L, C, D]
    bias: Tensor  # [L, C]

    def predict(self, features: Tensor) -> Tensor:
        """[L, N] classes; -1, which is never right, where a head's logits are not finite."""
        x = (features - self.mean) / self.std
        rows = []
        for weight, bias in zip(self.weight, self.bias, strict=True):
            logits = torch.addmm(bias, x, weight.T)
            rows.append(logits.argmax(dim=1).masked_fill(~logits.isfinite().all(dim=1), -1))
        return torch.stack(rows)


@dataclass(frozen=True)
class Probe:
    """Accuracies of each rate on the split that chooses, and on the held-out images."""

    lrs: tuple[float, ...]
    choosing: tuple[float, ...]
    heldout: tuple[float, ...]
    best: int  # chosen on `choosing`; the held-out images have no say
    predicted: Tensor  # [held-out images], by the best


def linear_probe(
    features: Tensor,
    labels: Tensor,
    heldout: Tensor,
    heldout_labels: Tensor,
    num_classes: int,
    config: LinearConfig,
    seed: int,
) -> Probe:
    """Choose the rate on a share of the training images, then train anew on all of them."""
    n = len(features)
    order = torch.from_numpy(permutation(seed, _CHOICE, n)).to(features.device)
    kept_back = max(1, round(config.choose_on * n))
    if kept_back >= n:
        raise ValueError(f"a linear probe needs 2 training images or more, not {n}")
    choose, fit = order[:kept_back], order[kept_back:]
    trial = fit_heads(features[fit], labels[fit], num_classes, config, seed)
    choosing = _accuracies(trial.predict(features[choose]), labels[choose])
    best = choosing.index(max(choosing))  # of equals the smallest rate, as they are in order
    predicted = fit_heads(features, labels, num_classes, config, seed).predict(heldout)
    if (predicted[best] < 0).any():
        raise ValueError(
            f"no linear probe stays finite, not even at lr {config.lr[best]:g}; lower linear.lr"
        )
    accuracies = _accuracies(predicted, heldout_labels)
    return Probe(config.lr, tuple(choosing), tuple(accuracies), best, predicted[best])


@torch.no_grad()
def fit_heads(
    features: Tensor, labels: Tensor, num_classes: int, config: LinearConfig, seed: int
) -> Heads:
    """SGD with momentum, no weight decay, half a cosine to 0 without warm-up, from zero weights.

    The problem is convex, so the start is no choice. The heads lie below one another in one
    matrix, [L·C, D], which makes the whole grid one product a step. Features are standardised by
    their own mean and deviation (BN without parameters): BN in the projector lets the last norm's
    gain grow freely, and the right rate would depend on it.
    """
    mean, std = standardisation(features)
    n, width = features.shape
    x = _aligned(n, width + 1, features.device)  # last column: 1, whose weight is the bias
    torch.div(features - mean, std, out=x[:, :width])
    x[:, width] = 1
    batch = min(config.batch, n)
    num_lrs, steps = len(config.lr), config.epochs * (n // batch)
    peak = torch.tensor(config.lr, device=x.device) * batch / 256
    peak = peak.repeat_interleave(num_classes)[:, None]
    weight, velocity, gradient = (
        _aligned(num_lrs * num_classes, width + 1, x.device) for _ in range(3)
    )
    batch_x = _aligned(batch, width + 1, x.device)
    answers = labels[:, None] + num_classes * torch.arange(num_lrs, device=x.device)
    minus_one = x.new_full((batch, num_lrs), -1.0)
    for step in range(steps):
        index = torch.from_numpy(batch_index(seed, step, n, batch)[1]).to(x.device)
        torch.index_select(x, 0, index, out=batch_x)
        logits = (batch_x @ weight.T).view(batch, num_lrs, num_classes)
        # gradient of the mean cross-entropy: softmax minus one-hot
        error = logits.softmax(dim=2).view(batch, -1)
        error.scatter_add_(1, answers[index], minus_one)
        torch.mm(error.T, batch_x, out=gradient).div_(batch)
        velocity.mul_(config.momentum).add_(gradient)
        weight.sub_(peak * warmup_cosine(step, steps, 0) * velocity)
    heads = weight.view(num_lrs, num_classes, -1)
    return Heads(mean, std, heads[..., :-1], heads[..., -1])


def _aligned(rows: int, columns: int, device: torch.device) -> Tensor:
    """Zeros whose rows begin at whole cache lines, where a product may be twice as fast."""
    return torch.zeros(rows, -(-columns // 16) * 16, device=device)[:, :columns]


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of features [N, D]; a constant feature stays at 0.

    Deviations are not floored by BN's 1e-5 but where float32 has no digits left: features that
    hardly differ between images should not be scaled down further.
    """
    parts, n = torch.split(features, 2**16), len(features)  # a copy in float64 of a part at a time
    mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / n
    squares = [(part.double() - mean).square().sum(dim=0) for part in parts]
    std = (torch.stack(squares).sum(dim=0) / n).sqrt()
    largest = torch.maximum(features.amax(dim=0), -features.amin(dim=0)).double()
    rounding = 1e-6 * largest.clamp(min=1e-30)
    return mean.float(), torch.where(std > rounding, std, torch.inf).float()


def _accuracies(predicted: Tensor, labels: Tensor) -> list[float]:
    return [float(a) for a in (predicted == labels).double().mean(dim=1)]


def table(probe: Probe) -> Sequence[str]:
    """Lines for people: a rate, its accuracy where the rate is chosen, its held-out accuracy."""
    lines = [f"{'base lr':>10}{'choosing':>10}{'held-out':>10}"]
    for i, row in enumerate(zip(probe.lrs, probe.choosing, probe.heldout, strict=True)):
        mark = "  chosen" if i == probe.best else ""
        lines.append(f"{row[0]:>10g}{row[1]:>10.3f}{row[2]:>10.3f}{mark}")
    return lines
