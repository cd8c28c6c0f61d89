"""Tell by its name and values whether a series is an accuracy of an evaluation."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stabkit.store.names import words
from stabkit.store.schema import EVALS, METRIC

_KNN = re.compile(r"(^|[^a-z])k-?nn([^a-z]|$)")
_ACCURACY = re.compile(  # prec@1: the share of right first guesses, in big_vision and older code
    r"(^|[^a-z])(acc|acc[@_-]?\d+|accuracy|top[@_-]?\d+|prec@\d+|k-?nn)([^a-z]|$)"
)
# Scores of detection and segmentation, which only an evaluation has: mAP, mAP50(B), mAP_0.5:0.95,
# bbox/AP, AP50, coco/bbox_mAP_50, mIoU, aAcc. A score of one class or size (AP-cat, APs) is none.
_SCORE = re.compile(
    r"(^|[/_. ])(m?ap([ _@-]?[.\d][.\d:-]*)?|m_?iou|[am]acc|pck)(\([a-z]\))?$"
)  # fmt: skip
# Scores that batches of training may have as well.
_OTHER_SCORE = re.compile(r"(^|[^a-z])(f1([_-]?score)?|auc|auroc|dice|iou)([^a-z]|$)")
_HELD_OUT = re.compile(
    r"(^|[^a-z])(val|valid|validation|test|eval|evaluation|dev|held_?out|hold_?out|k[-_]?nn|linear"
    r"|probe)([^a-z]|$)"
)
_TRAINING = re.compile(r"(^|[^a-z])(train|training|batch)([^a-z]|$)")
_NO_ACCURACY = re.compile(r"loss|time|sec|speed|lr|size|count|grad|norm|err")
FLOAT = 1e-6  # a mean in float32 may end just above 1


def is_knn(name: str) -> bool:
    return bool(_KNN.search(name.lower())) and is_accuracy(name)


def is_accuracy(name: str) -> bool:
    """Return whether the name is of an accuracy, or of a score that is one in 0..1 or percent."""
    named = is_score(name) or any(
        pattern.search(text)
        for pattern in (_ACCURACY, _OTHER_SCORE)
        for text in (name.lower(), _divided(name))
    )
    return named and not _NO_ACCURACY.search(name.lower())


def is_score(name: str) -> bool:
    """Return whether the name is of a score of detection or segmentation, which is held out."""
    return bool(_SCORE.search(name.lower()))


def is_held_out(name: str) -> bool:
    return bool(_HELD_OUT.search(_divided(name))) or is_score(name)


def is_training(name: str) -> bool:
    return bool(_TRAINING.search(_divided(name)))


def _divided(name: str) -> str:
    """Return the name in lower case, its words divided: `valAcc` -> `val_acc`."""
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])", "_", name).lower()


def judged_metric(counts: Mapping[str, int], needed: int) -> str:
    """Return the evaluation that is searched for dips. `counts`: evaluations of each name.

    Held-out accuracies come before those on training data, names with `needed` evaluations before
    others, `knn_heldout` before other kNN, kNN before others; the first by name of those that are
    left. METRIC without any evaluation.
    """
    if not counts:
        return METRIC
    return min(
        counts, key=lambda name: (_rank(name) == LAST, counts[name] < needed, _rank(name), name)
    )


LAST = 4


def _rank(name: str) -> int:
    if name == METRIC:
        return 0
    if on_training_data(name):
        return LAST
    if is_knn(name):
        return 1
    return 2 if is_held_out(name) else 3


def on_training_data(name: str) -> bool:
    """Return whether the name says that the accuracy is one on training data."""
    return is_training(name) or "bank" in words(name)


def without_held_out(name: str) -> str:
    """Return the name without the word for held-out data: `val_accuracy` -> `accuracy`."""
    return re.sub(r"[^a-z0-9@]", "", _HELD_OUT.sub(" ", _divided(name)))


def has_held_out_twin(name: str, others: list[str]) -> bool:
    """Return whether another series is the same but held out: `accuracy` beside `val_accuracy`."""
    return any(is_held_out(o) and without_held_out(o) == without_held_out(name) for o in others)


def scale_of(values: NDArray[np.float64]) -> float | None:
    """Return the divisor that brings the values into 0..1: 1, or 100 for percent; else None."""
    values = values[~np.isnan(values)]
    top = values.max(initial=0.0)
    if values.min(initial=0.0) < 0 or top > 100:
        return None
    return 1.0 if top <= 1 + FLOAT else 100.0


def logged_accuracies(scalars: pd.DataFrame) -> pd.DataFrame:
    """Return the scalars that are accuracies of an evaluation, as rows of `evals`.

    Such a scalar is named like an accuracy that is not of training, and was logged at half of the
    steps or fewer. One that is logged at every step is of training batches, or repeats the last
    evaluation. Values above 1 are percent. `n`, `chance` and the rest are not known.
    """
    counts = scalars["name"].astype(str).value_counts()
    names = [str(name) for name in counts.index]
    longest = counts.max() if len(counts) else 0
    found = []
    for name in sorted(names):
        others = [other for other in names if other != name]
        if not is_accuracy(name) or is_training(name) or 2 * counts[name] > longest:
            continue
        rows = scalars[scalars["name"] == name]
        scale = scale_of(rows["value"].to_numpy())
        if scale is not None and (is_held_out(name) or not has_held_out_twin(name, others)):
            shares = np.minimum(rows["value"] / scale, 1.0)
            found.append(pd.DataFrame({"step": rows["step"], "metric": name, "value": shares}))
    return _as_evals(pd.concat(found)) if found else _NO_EVALS.copy()


def _as_evals(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values(["step", "metric"], ignore_index=True).astype({"metric": "category"})
    rows = rows.assign(chance=np.nan, n=0, k=0, temperature=np.nan, correct=None)
    return rows[EVALS.names]


_NO_EVALS = _as_evals(pd.DataFrame({"step": [], "metric": [], "value": []}))
