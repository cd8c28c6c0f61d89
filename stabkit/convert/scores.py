"""Tell by its name whether a series is a score, and propose the scale to judge it on."""

import math
from collections.abc import Sequence

import numpy as np

from stabkit.convert.layers import NAME
from stabkit.convert.series import Series, tidy
from stabkit.store.names import words

RISING = {
    *("psnr", "ssim", "bleu", "sacrebleu", "rouge", "meteor", "cider", "chrf", "elo", "mcc", "mrr"),
    *("reward", "rewards", "rew", "return", "returns", "winrate", "ndcg", "spearman", "pearson"),
}  # fmt: skip
FALLING = {"fid", "kid", "fvd", "lpips", "wer", "cer", "eer"}
ROUNDED = 20  # parts of the range; the proposed ends are whole multiples of such a part


def is_score(name: str) -> bool:
    return bool(words(name) & (RISING | FALLING))


def proposed_target(name: str, series: Sequence[Series]) -> str | None:
    """Return `score:NAME:WORST:BEST` for a score, which each run has as one of `series`.

    WORST and BEST enclose the finite values, rounded outward. None if all values are equal.
    """
    values = np.concatenate([one.values for one in series])
    values = values[np.isfinite(values)]
    if not values.size or values.min() == values.max():
        return None
    part = 10.0 ** math.floor(math.log10((values.max() - values.min()) / ROUNDED))
    ends = [math.floor(values.min() / part) * part, math.ceil(values.max() / part) * part]
    worst, best = reversed(ends) if words(name) & FALLING else ends
    return f"score:{tidy(name, NAME)}:{worst:.12g}:{best:.12g}"
