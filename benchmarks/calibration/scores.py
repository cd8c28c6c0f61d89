"""Match what was found with what was planted; intervals; tables."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Bars of every detector are set on seeds from TUNING up, tables are made of seeds from TESTING up.
TUNING, TESTING = 0, 1_000_000
SILENT = 0.01  # the share of healthy runs that may alarm
Each = Callable[..., list[Any]]  # each(function, count, first seed): a function of seeds, applied
Spans = list[tuple[int, int]]  # first and last index of what was found or planted


def merged(flags: Iterable[tuple[int, int]], gap: int = 2) -> Spans:
    """Join spans that are at most `gap` apart."""
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
    """Return a share with its exact 95 % interval, in percent."""
    found = stats.binomtest(int(hits), runs).proportion_ci(0.95)
    return f"{100 * hits / runs:.2f} % ({100 * found.low:.2f} to {100 * found.high:.2f})"


def percent(hits: float, runs: int) -> str:
    return f"{100 * hits / runs:.0f} %" if runs else "-"


def delay_cells(late: NDArray[np.float64]) -> list[str]:
    """Return for each column of delays how many are known, and their median with 10 to 90 %."""
    cells = []
    for column in late.T:
        seen = column[np.isfinite(column)]
        low, mid, high = np.quantile(seen, [0.1, 0.5, 0.9]) if seen.size else [np.nan] * 3
        cells.append(percent(seen.size, len(column)))
        cells.append(f"{mid:.0f} ({low:.0f} to {high:.0f})" if seen.size else "-")
    return cells


def per_steps(events: int, steps: int) -> str:
    """Return events in 10^5 steps with the exact 95 % interval of a Poisson rate."""
    low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0.0
    high = stats.chi2.ppf(0.975, 2 * events + 2) / 2
    scale = 1e5 / steps
    return f"{events * scale:.1f} ({low * scale:.1f} to {high * scale:.1f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def made(each: Each, tables: Sequence[tuple[str, Callable[[], str]]]) -> str:
    """Return tables under their headings; they are made at the same time, one in each process."""
    texts = each(partial(_nth, [make for _, make in tables]), len(tables), 0)
    return "\n".join(
        f"### {title}\n\n{text}\n" for (title, _), text in zip(tables, texts, strict=True)
    )


def _nth(makers: Sequence[Callable[[], str]], i: int) -> str:
    return makers[i]()
