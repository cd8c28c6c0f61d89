"""Tell by its name whether a series is a score, and propose the scale to judge it on."""

import math

import numpy as np

from stabkit.convert.series import Series
from stabkit.store.names import words

RISING = {
    *("psnr", "ssim", "bleu", "sacrebleu", "rouge", "meteor", "cider", "chrf", "elo", "mcc", "mrr"),
    *("reward", "rewards", "rew", "return", "returns", "winrate", "ndcg", "spearman", "pearson"),
}  # fmt: skip
FALLING = {"fid", "kid", "fvd", "lpips", "wer", "cer", "eer"}
ROUNDED = 20  # parts of the range; the proposed ends are whole multiples of such a part


def proposed_target(name: str, series: Series) -> str | None:
    """Return `score:NAME:WORST:BEST` for a series that is a score by its name, else None.

    WORST and BEST enclose the finite values, rounded outward.
    """
    found, values = words(name), series.values[np.isfinite(series.values)]
    if not found & (RISING | FALLING) or not values.size or values.min() == values.max():
        return None
    part = 10.0 ** math.floor(math.log10((values.max() - values.min()) / ROUNDED))
    ends = [math.floor(values.min() / part) * part, math.ceil(values.max() / part) * part]
    worst, best = reversed(ends) if found & FALLING else ends
    return f"score:{name}:{worst:.6g}:{best:.6g}"
