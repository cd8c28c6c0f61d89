"""Match what was found with what was planted, and print the tables of it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from stabkit.detect.robust import FloatArray

TUNING, TESTING = 1_000_000, 2_000_000  # first seeds
Each = Callable[..., list[Any]]  # applies a function to seeds, in processes
Spans = list[tuple[int, int]]  # first and last index of what was found or planted


def rolling_sigma(values: FloatArray, k: float, window: int) -> Spans:
    """Flag values above mean + k std of the last `window` values, the value included."""
    flags = []
    for i in range(values.size):
        past = values[max(0, i - window + 1) : i + 1]
        if past.size >= window // 2 and values[i] > past.mean() + k * past.std():
            flags.append((i, i))
    return merged(flags)


def times_mean(values: FloatArray, k: float, window: int) -> Spans:
    """Flag values above k times the mean of the `window` values before."""
    flags = [
        (i, i)
        for i in range(window // 2, values.size)
        if values[i] > k * values[max(0, i - window) : i].mean()
    ]
    return merged(flags)


def merged(flags: Iterable[tuple[int, int]], gap: int = 2) -> Spans:
    out: Spans = []
    for a, b in sorted(flags):
        if out and a - out[-1][1] <= gap:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def matched(planted: Spans, found: Spans) -> tuple[int, int, int]:
    """Return hits, false alarms and misses; a hit is a pair of spans that overlap, one to one."""
    left, hits = list(found), 0
    for a, b in planted:
        near = [span for span in left if span[0] <= b and span[1] >= a]
        if near:
            hits += 1
            left.remove(max(near, key=lambda s: min(s[1], b) - max(s[0], a)))
    return hits, len(left), len(planted) - hits


def f1(scores: Iterable[tuple[int, int, int]]) -> float:
    hits, false, missed = np.sum(list(scores), axis=0)
    return float(2 * hits / max(1, 2 * hits + false + missed))


def interval(hits: int, runs: int) -> str:
    found = stats.binomtest(hits, runs).proportion_ci(0.95)
    return f"{hits / runs:.2%} ({found.low:.2%} to {found.high:.2%})"


def per_steps(events: int, steps: int) -> str:
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = stats.chi2.ppf(0.975, 2 * events + 2) / 2
    scale = 1e5 / steps
    return f"{events * scale:.2f} ({low * scale:.2f} to {high * scale:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)
    print(flush=True)
