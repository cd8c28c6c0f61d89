"""Tell from its name what a recorded series is: a loss, a gradient norm, a held-out accuracy.

Logs of other programs name the same thing in many ways: `loss`, `train/loss`, `lm loss`,
`trainLoss`. A name is divided into words, and the words decide.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stabkit.store.accuracies import is_accuracy
from stabkit.store.names import NO_LOSS, is_gradient_norm, words
from stabkit.store.schema import METRIC

HELD_OUT = {"val", "valid", "validation", "test", "eval", "evaluation", "dev", "heldout", "holdout"}
# words of what else a log holds and falls
OTHERS = {
    *("learning", "rate", "momentum", "decay", "wd", "temperature", "epsilon", "gnorm", "rank"),
    *("speed", "per", "sec", "seconds", "s", "ms", "throughput", "memory", "mem", "eta", "left"),
}  # fmt: skip
# losses of players against each other and of policies: they have no level to come back to
GAMES = {
    *("g", "d", "gen", "generator", "disc", "discriminator", "adv", "adversarial", "gan"),
    *("actor", "critic", "policy", "pg", "value", "vf", "q", "qf", "td", "entropy", "kl"),
}  # fmt: skip

TOTAL = {"loss", "total", "train", "training"}  # words of the sum of all losses


def may_be_loss(name: str) -> bool:
    """Return whether the name leaves open that the series is a loss: `objective`, `err`."""
    return not words(name) & (NO_LOSS | OTHERS) and not is_accuracy(name)


def has_level(name: str) -> bool:
    """Return whether a loss that rises and stays high is a fault of training.

    A held-out loss rises by overfitting as well. Losses of a game have no level of their own.
    """
    found = words(name)
    return not found & (HELD_OUT | GAMES | {"tel"}) and not any(
        word.endswith("loss") and word[:-4] in HELD_OUT for word in found
    )


def with_level(names: Sequence[str]) -> list[str]:
    """Return the losses of a run that have a level (`has_level`).

    A total beside losses of players or policies is a sum of them, and has none either.
    """
    played = any(words(name) & GAMES - {"entropy", "kl"} for name in names)
    return [name for name in names if has_level(name) and not (played and is_total(name))]


def without_parts(steps: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Return the losses that have a level (`with_level`), without the parts of a total beside them.

    A part may rise in a healthy run, as the KL term of a VAE does, for what the others gain. A
    total has values wherever its parts have. `steps`: of each loss.
    """
    level = with_level(list(steps))
    spans = [steps[name][[0, -1]] for name in level if is_total(name)]

    def is_part(name: str) -> bool:
        first, last = steps[name][[0, -1]]
        return not is_total(name) and any(a <= first and last <= b for a, b in spans)

    return [name for name in level if not is_part(name)]


def is_total(name: str) -> bool:
    """Return whether the name is that of the sum of all losses: `loss`, `train/total_loss`."""
    return words(name) <= TOTAL


def gradient_norms(names: Iterable[str]) -> list[str]:
    """Return the names of gradient norms, in their order: of the whole model, or of parts of it."""
    return [name for name in names if is_gradient_norm(name)]


def accuracy_words(name: str) -> str:
    """Return what to call an evaluation in a sentence: `held-out kNN accuracy`, `val_acc`."""
    return "held-out kNN accuracy" if name == METRIC else name
