"""How likely noise alone brings a dip, judged by the largest falls outside of dips.

Noise may have heavy tails, or fall further than it rises. Its standard deviation does not show
that, but the evaluations outside of dips do.
"""

from collections.abc import Sequence

import numpy as np

from stabkit.detect.dip_search import Span
from stabkit.detect.robust import FloatArray, two_sided_residual

SHARE, FEWEST = 0.15, 3  # the lowest evaluations tell the tail: this share, at least so many
# Mean by which normal noise exceeds the value that 15 % of it exceed, in standard deviations, and
# the number of evaluations that it counts for beside the lowest ones.
NORMAL_EXCESS, NORMAL_COUNTS = 0.5, 5
MOST_EXPECTED = 0.1  # such falls by chance in all windows of a series, for it to be a dip
FEWEST_USUAL = 5  # evaluations outside of dips; fewer tell no tail


def dips_that_stand_out(
    spans: Sequence[Span], acc: FloatArray, noise: FloatArray, ar: float, windows: int
) -> list[bool]:
    """Return for each span whether at most `MOST_EXPECTED` come by chance in so many windows."""
    kept: list[bool] = (windows * chances(spans, acc, noise, ar) <= MOST_EXPECTED).tolist()
    return kept


def chances(spans: Sequence[Span], acc: FloatArray, noise: FloatArray, ar: float) -> FloatArray:
    """Return for each span how likely noise falls as far by chance in one window.

    The residuals outside of all spans tell how often an evaluation lies so far below the trend. The
    tail beyond the lowest of them is taken as exponential. Inside a span, only that part of an
    evaluation counts that AR(1) noise does not carry over from the one before. Fisher's method
    joins the chances of the first two, three and so on: -2 sum ln p has a chi-squared law with 2
    degrees of freedom for each. The smallest result counts, since each is a window of its own.
    """
    from scipy.stats import chi2  # slow to import, and not needed before the first dip

    usual = np.ones(acc.size, dtype=bool)
    for span in spans:
        usual[span.onset + 1 : span.recovery] = False
    residual = two_sided_residual(acc[usual])
    if residual.size < FEWEST_USUAL:
        return np.zeros(len(spans))
    below = _new((np.median(residual) - residual) / noise[usual][1:-1], ar)
    found = []
    for span in spans:
        new = _new(((span.line - acc) / noise)[span.onset : span.recovery], ar)
        joined = chi2.sf(-2 * np.cumsum(_log_share(new, below)), 2 * np.arange(1, new.size + 1))
        found.append(joined[1:].min(initial=joined[-1]))
    return np.array(found)


def _new(values: FloatArray, ar: float) -> FloatArray:
    """Return what AR(1) noise does not carry over from each value to the next, scaled as noise."""
    new: FloatArray = (values[1:] - ar * values[:-1]) / np.sqrt(1 - ar**2)
    return new


def _log_share(values: FloatArray, usual: FloatArray) -> FloatArray:
    """Return the log of the share of usual values that reach each of `values`."""
    ordered = np.sort(usual)
    count = max(FEWEST, round(SHARE * usual.size))
    start = max(float(ordered[-count - 1]), 0.0)
    # Without the largest, which may be an outlier: of `count` exponential values it is on average
    # the sum of 1 / k times their mean.
    largest = np.sum(1 / np.arange(1, count + 1))
    excess = np.maximum(ordered[-count:-1] - start, 0.0).sum() / (count - largest)
    excess = np.average([excess, NORMAL_EXCESS], weights=[count, NORMAL_COUNTS])
    beyond = np.log(count / usual.size) + (start - values) / excess
    reached = usual.size - np.searchsorted(ordered, values)
    inside = np.log((reached + 1) / (usual.size + 1))
    log_share: FloatArray = np.where(values > start, beyond, inside)
    return log_share
