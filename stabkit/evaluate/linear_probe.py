"""Train a linear probe on cached features, all learning rates of the grid at once.

The backbone is frozen and sees the plain view, so its features are computed once. Augmentation is
therefore off; the official protocol has random crops and flips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabkit.config.schedule import warmup_cosine
from stabkit.evaluate.config import LinearConfig
from stabkit.train.data.load import batch_index
from stabkit.train.randomness import permutation

_CHOICE = 2**32  # an epoch that no training reaches: the split shares no order with a batch


@dataclass(frozen=True)
class Heads:
    """L linear classifiers on standardized features: logits = (x - mean) / std · weightᵀ + bias."""

    mean: Tensor  # [D]
    std: Tensor  # [D]
    weight: Tensor  # [L, C, D]
    bias: Tensor  # [L, C]

    def predict(self, features: Tensor) -> Tensor:
        """Return classes [L, N]; -1, which is never right, where a head's logits are not finite."""
        x = (features - self.mean) / self.std
        rows = []
        for weight, bias in zip(self.weight, self.bias, strict=True):
            logits = torch.addmm(bias, x, weight.T)
            rows.append(logits.argmax(dim=1).masked_fill(~logits.isfinite().all(dim=1), -1))
        return torch.stack(rows)


@dataclass(frozen=True)
class LinearProbe:
    """Accuracies of each rate, on the images that choose the rate and on the held-out images."""

    lrs: tuple[float, ...]
    choosing: tuple[float, ...]
    heldout: tuple[float, ...]
    best: int  # the place of the best rate by `choosing`, without the held-out images
    predicted: Tensor  # [held-out images], by the best rate


def linear_probe(
    features: Tensor,
    labels: Tensor,
    heldout: Tensor,
    heldout_labels: Tensor,
    num_classes: int,
    config: LinearConfig,
    seed: int,
) -> LinearProbe:
    """Choose the rate on a share of the training images, then train again on all of them.

    Raises ValueError for fewer than 2 images, and when no head stays finite.
    """
    n = len(features)
    order = torch.from_numpy(permutation(seed, _CHOICE, n)).to(features.device)
    kept_back = max(1, round(config.choose_on * n))
    if kept_back >= n:
        raise ValueError(f"a linear probe needs 2 training images or more, not {n}")
    choose, fit = order[:kept_back], order[kept_back:]
    trial = fit_heads(features[fit], labels[fit], num_classes, config, seed)
    choosing = _accuracies(trial.predict(features[choose]), labels[choose])
    best = choosing.index(max(choosing))  # the smallest of equally good rates: they are sorted
    predicted = fit_heads(features, labels, num_classes, config, seed).predict(heldout)
    if (predicted[best] < 0).any():
        raise ValueError(
            f"no linear probe stays finite, not even at lr {config.lr[best]:g}; lower linear.lr"
        )
    accuracies = _accuracies(predicted, heldout_labels)
    return LinearProbe(config.lr, tuple(choosing), tuple(accuracies), best, predicted[best])


@torch.no_grad()
def fit_heads(
    features: Tensor, labels: Tensor, num_classes: int, config: LinearConfig, seed: int
) -> Heads:
    """Train all heads by SGD with momentum, from zero weights and without weight decay.

    The rate falls from the start by half a cosine to 0. The problem is convex, so the starting
    point does not matter. The heads lie below one another in one matrix, [L·C, D], which makes the
    whole grid one product a step. Features are standardized by their own mean and deviation, which
    is BN without parameters: BN in the projector lets the gain of the last norm grow freely, and
    the right rate would depend on it.
    """
    mean, std = standardization(features)
    x = _with_ones(features, mean, std)
    (n, width), num_lrs = x.shape, len(config.lr)
    batch = min(config.batch, n)
    steps = config.epochs * (n // batch)
    peak = torch.tensor(config.lr, device=x.device) * batch / 256
    peak = peak.repeat_interleave(num_classes)[:, None]  # [L·C, 1]: a rate for each row of weights
    weight, velocity, gradient = (
        _aligned(num_lrs * num_classes, width, x.device) for _ in range(3)
    )
    batch_x = _aligned(batch, width, x.device)
    # Where the true class of each image stands in each head's part of a row of logits.
    answers = labels[:, None] + num_classes * torch.arange(num_lrs, device=x.device)
    minus_one = x.new_full((batch, num_lrs), -1.0)
    for step in range(steps):
        index = torch.from_numpy(batch_index(seed, step, n, batch)[1]).to(x.device)
        torch.index_select(x, 0, index, out=batch_x)
        logits = (batch_x @ weight.T).view(batch, num_lrs, num_classes)
        # The gradient of the mean cross-entropy in the logits is softmax minus one-hot, over batch.
        error = logits.softmax(dim=2).view(batch, -1)
        error.scatter_add_(1, answers[index], minus_one)
        torch.mm(error.T, batch_x, out=gradient).div_(batch)
        velocity.mul_(config.momentum).add_(gradient)
        weight.sub_(peak * warmup_cosine(step, steps, 0) * velocity)
    heads = weight.view(num_lrs, num_classes, -1)
    return Heads(mean, std, heads[..., :-1], heads[..., -1])


def _with_ones(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return standardized features [N, D + 1]; the last column is 1, and its weight is the bias."""
    n, width = features.shape
    x = _aligned(n, width + 1, features.device)
    torch.div(features - mean, std, out=x[:, :width])
    x[:, width] = 1
    return x


def _aligned(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return zeros whose rows begin at whole cache lines, where a product may be twice as fast."""
    return torch.zeros(rows, -(-columns // 16) * 16, device=device)[:, :columns]


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [D] of features [N, D]; a constant feature becomes 0.

    Deviations are not floored by BN's 1e-5 but where float32 has no digits left: features that
    hardly differ between images should not be scaled down further.
    """
    # Sum in float64, and copy only a part at a time to it.
    parts, n = torch.split(features, 2**16), len(features)
    mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / n
    squares = [(part.double() - mean).square().sum(dim=0) for part in parts]
    std = (torch.stack(squares).sum(dim=0) / n).sqrt()
    # A deviation below the rounding of the largest value is noise: an infinite one makes it 0.
    largest = torch.maximum(features.amax(dim=0), -features.amin(dim=0)).double()
    rounding = 1e-6 * largest.clamp(min=1e-30)
    return mean.float(), torch.where(std > rounding, std, torch.inf).float()


def _accuracies(predicted: Tensor, labels: Tensor) -> list[float]:
    return [float(a) for a in (predicted == labels).double().mean(dim=1)]


def table(probe: LinearProbe) -> Sequence[str]:
    """Return lines to print: each rate with its accuracy on the choosing and held-out images."""
    lines = [f"{'base lr':>10}{'choosing, %':>13}{'held-out, %':>13}"]
    for i, row in enumerate(zip(probe.lrs, probe.choosing, probe.heldout, strict=True)):
        mark = "  chosen" if i == probe.best else ""
        lines.append(f"{row[0]:>10g}{100 * row[1]:>13.1f}{100 * row[2]:>13.1f}{mark}")
    return lines
