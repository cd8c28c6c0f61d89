"""Tell from its name what a recorded series is: a loss, a gradient norm, a held-out accuracy.

Logs of other programs name the same thing in many ways: `loss`, `train/loss`, `lm loss`,
`trainLoss`. A name is divided into words, and the words decide.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from stabkit.store.accuracies import is_accuracy
from stabkit.store.names import NO_LOSS, is_gradient_norm, is_total, with_level, words
from stabkit.store.schema import METRIC

# words of what else a log holds and falls
OTHERS = {
    *("learning", "rate", "momentum", "decay", "wd", "temperature", "epsilon", "gnorm", "rank"),
    *("speed", "per", "sec", "seconds", "s", "ms", "throughput", "memory", "mem", "eta", "left"),
}  # fmt: skip


def may_be_loss(name: str) -> bool:
    """Return whether the name leaves open that the series is a loss: `objective`, `err`."""
    return not words(name) & (NO_LOSS | OTHERS) and not is_accuracy(name)


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


def gradient_norms(names: Iterable[str]) -> list[str]:
    """Return the names of gradient norms, in their order: of the whole model, or of parts of it."""
    return [name for name in names if is_gradient_norm(name)]


def accuracy_words(name: str) -> str:
    """Return what to call an evaluation in a sentence: `held-out kNN accuracy`, `val_acc`."""
    return "held-out kNN accuracy" if name == METRIC else name
