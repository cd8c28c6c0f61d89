"""Evaluations of the model, as a Monitor is told of them."""

import math
import operator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stabkit.store.writer import Writer

ROUNDING = 1e-6  # of a share that was computed in 32 bits
LAST_STEP = 2**62  # of a table's 64 bits
MOST_SAMPLES = 2**31 - 1  # of an evaluation: the table has 32 bits


class Evaluation(NamedTuple):
    """An accuracy after `step` updates.

    - `correct`: for each of n samples whether it was right, [n], in an order that never changes;
      None where only the accuracy is known.
    - `n`: 0 if it is not known. `chance`: the accuracy of guessing, NaN if it is not known.
    - `k`, `temperature`: of a kNN; otherwise 0 and NaN.
    """

    step: int
    metric: str
    value: float
    n: int
    correct: NDArray[np.bool_] | None = None
    chance: float = math.nan
    k: int = 0
    temperature: float = math.nan

    def add_to(self, writer: Writer) -> None:
        """Give the evaluation to the writer of the folder's tables."""
        facts = self.k, self.temperature
        if self.correct is not None:
            writer.add_eval(self.step, self.metric, self.value, self.chance, *facts, self.correct)
        else:
            at, value = np.array([self.step]), np.array([self.value])
            writer.add_accuracies(at, self.metric, value, self.chance, self.n, *facts)


def of_bits(
    step: int,
    metric: str,
    correct: NDArray[np.bool_],
    chance: float,
    k: int = 0,
    temperature: float = math.nan,
) -> Evaluation:
    """Return the evaluation of which each sample is known."""
    value = float(correct.mean())
    return Evaluation(step, metric, value, len(correct), correct, chance, k, temperature)


def correct_bits(predicted: Any, labels: Any) -> NDArray[np.bool_]:
    """Return for each of n samples whether its predicted class is right, [n].

    Takes whatever holds classes: tensors, arrays, lists. Raises TypeError for what holds none, and
    ValueError for shapes that differ.
    """
    predicted, labels = _classes("predicted", predicted), _classes("labels", labels)
    if predicted.shape != labels.shape or not predicted.numel():
        raise ValueError(
            f"log_eval: predicted {list(predicted.shape)} and labels {list(labels.shape)} must be "
            "the classes of the same samples, one or more"
        )
    bits: NDArray[np.bool_] = (predicted == labels.to(predicted.device)).flatten().cpu().numpy()
    return bits


def _classes(name: str, given: Any) -> torch.Tensor:
    try:
        classes = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"log_eval: {name} must hold the class of each sample as a number, got "
            f"{type(given).__name__} ({error})"
        ) from None
    if not classes.ndim:
        raise TypeError(
            f"log_eval: {name} must hold the class of each sample, in one dimension or more, got "
            f"the number {classes.item():g}; an accuracy goes to log_accuracy(metric, share, n=...)"
        )
    return classes


def checked_count(call: str, name: str, value: Any) -> int:
    """Return a number of samples as an int. Raises TypeError or ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or number < 0:
        raise TypeError(f"{call}: {name} must be a whole number, got {value!r}")
    if not 1 <= number <= MOST_SAMPLES:
        raise ValueError(f"{call}: {name} must be from 1 to {MOST_SAMPLES:,}, got {number}")
    return number


def checked_step(call: str, metric: Any, step: Any) -> int:
    """Return the step of an evaluation as an int. Raises TypeError or ValueError."""
    if not isinstance(metric, str):
        raise TypeError(
            f"{call}: the metric must be a name such as 'val_acc', got {type(metric).__name__}"
        )
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"{call}: step must be a whole number, got {step!r}") from None
    if not 0 <= number <= LAST_STEP:
        raise ValueError(f"{call}: step must be from 0 to {LAST_STEP:,}, got {number}")
    return number


def checked_share(call: str, name: str, value: float | None) -> float:
    """Return a share of the samples; NaN for None.

    Raises TypeError for what is no number, and ValueError for one outside of 0 to 1.

    A mean of float32 numbers may lie above 1 by its rounding: it counts as 1.
    """
    if value is None:
        return math.nan
    try:
        share = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{call}: {name} must be a share from 0 to 1, got {value!r}") from None
    if 1 < share <= 1 + ROUNDING:
        share = 1.0
    if not 0 <= share <= 1:
        hint = f"; {share:g} % is {share / 100:g}" if 1 < share <= 100 else ""
        raise ValueError(f"{call}: {name} must be a share from 0 to 1, got {share:g}{hint}")
    return share
