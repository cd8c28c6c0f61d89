"""Judge a claim of a paper by runs: it holds, fails or is undecided, always by a test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stabkit.analyze.compare import Comparison, compare_pairs
from stabkit.analyze.counts import ALPHA, Counts, rates_test
from stabkit.analyze.intervals import TESTED, TOO_FEW, share_test
from stabkit.detect.significance import holm

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A claim and the measured effect in the claimed direction.

    low, high: its 95 % interval; NaN if so few runs give none.
    p_value: two-sided, of no effect; NaN if the runs allow no test. Only a claim that has one is
    decided, so that every decided claim takes part in the correction for their number.
    note: what else to know about the test.
    """

    text: str
    verdict: Outcome
    effect: float
    low: float
    high: float
    unit: str
    n: int
    p_value: float
    note: str = ""

    def __str__(self) -> str:
        found = []
        has_interval = not math.isnan(self.low)
        # a ratio to no event is infinite, that of none to none unknown: the note has the counts
        if has_interval or math.isfinite(self.effect):
            found.append(f"{self.effect:+.2f} {self.unit}")
        if has_interval:
            found.append(f"95 % interval {self.low:+.2f} to {self.high:+.2f}")
        if not math.isnan(self.p_value):
            found.append(f"p = {self.p_value:.2g}")
        said = ", ".join([*found, f"n = {self.n}"])
        note = f"; {self.note}" if self.note else ""
        return f"{self.verdict.upper():<10}{self.text}\n          {said}{note}"


def mean_above_zero(text: str, differences: Sequence[float], unit: str) -> Claim:
    """Judge paired differences, which are positive if the claim is true, by `paired_test`."""
    return from_comparison(text, compare_pairs(np.zeros(len(differences)), differences), unit)


def from_comparison(text: str, found: Comparison, unit: str, note: str = "") -> Claim:
    """Return the claim that the second arm of a comparison has more."""
    notes = [note, f"unpaired: {found.n[0]} and {found.n[-1]} runs" if not found.paired else ""]
    if min(found.n) < TESTED:
        notes.append("too few runs for a test")
    elif math.isnan(found.p_value):
        notes.append("no spread, so no test")
    elif math.isnan(found.interval[0]):
        notes.append(TOO_FEW)
    said = "; ".join(part for part in notes if part)
    verdict = _outcome(found.effect, found.p_value)
    return Claim(
        text, verdict, found.effect, *found.interval, unit, min(found.n), found.p_value, said
    )


def more_events(text: str, claimed_more: Counts, claimed_less: Counts) -> Claim:
    """Judge the event counts of the runs of two arms by `rates_test`, which exchanges whole runs.

    The effect is the log2 ratio of the two rates. It has no interval: events cluster in runs, and a
    few runs do not tell how much.
    """
    test = rates_test(claimed_less, claimed_more)
    more, less = (int(np.sum(arm.events)) for arm in (claimed_more, claimed_less))
    rates = [_rate(arm) for arm in (claimed_more, claimed_less)]
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = float(np.log2(rates[0]) - np.log2(rates[1]))
    tested = test.p_value if not test.too_few else math.nan
    note = f"{more} to {less} events in {test.runs[1]} and {test.runs[0]} runs"
    if test.too_few and not math.isnan(test.p_value):
        note += f"; {test.too_few_words()}"
    unit = "(log2 ratio of rates)"
    verdict = _outcome(test.excess, tested)
    return Claim(text, verdict, effect, math.nan, math.nan, unit, sum(test.runs), tested, note)


def more_often(text: str, claimed: int, others: int) -> Claim:
    """Judge events that are of one of two kinds, which chance makes equally likely.

    For example, bursts that a layer begins or ends. The effect is the log2 ratio of the two counts;
    interval and test are exact (binomial). They take events as independent, so this is no
    comparison of arms: that is `more_events`.
    """
    total = claimed + others
    shares, p_value = share_test(claimed, total)
    low, high = (_log2_odds(share) for share in shares)
    effect, unit = _log2_odds(claimed / total if total else math.nan), "(log2 ratio of counts)"
    return from_interval(text, effect, low, high, unit, total, p_value)


def _log2_odds(share: float) -> float:
    if share in (0.0, 1.0):
        return math.inf if share else -math.inf
    return math.log2(share / (1 - share))


def _rate(arm: Counts) -> float:
    """Return events per exposure; infinite if events left no exposure, NaN without either."""
    exposure = np.size(arm.events) if arm.exposure is None else np.sum(arm.exposure)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(np.sum(arm.events)) / np.float64(exposure))


def from_interval(
    text: str, effect: float, low: float, high: float, unit: str, n: int, p_value: float
) -> Claim:
    """Return the claim for an effect, positive as claimed, with interval and test from elsewhere.

    It is decided if the interval excludes 0 and `p_value` (two-sided, of no effect) is at most .05.
    """
    apart = low > 0 or high < 0
    verdict = _outcome(effect, p_value) if apart else "undecided"
    note = "" if not math.isnan(p_value) else "no test, so not decided"
    return Claim(text, verdict, effect, low, high, unit, n, p_value, note)


def together(claims: Sequence[Claim]) -> str:
    """Return the claims of one study as text, and which of them survive correction.

    Each test errs in one case of twenty, so among many claims some are decided by chance alone.
    Holm's correction keeps the chance of any such error at `ALPHA` for all claims together.
    """
    tested = [claim for claim in claims if not math.isnan(claim.p_value)]
    corrected = holm([claim.p_value for claim in tested])
    decided = [(c, p) for c, p in zip(tested, corrected, strict=True) if c.verdict != "undecided"]
    fallen = [(c, p) for c, p in decided if p > ALPHA]
    lines = [str(claim) for claim in claims]
    if len(tested) > 1 and decided:
        stands = f"{len(decided) - len(fallen)} of {len(decided)} stand" if fallen else "all stand"
        rest = len(claims) - len(tested)
        untested = f" ({rest} could not be tested)" if rest else ""
        lines.append(
            f"{len(tested)} claims were tested at once{untested}: of the {len(decided)} decided "
            f"above, {stands} after Holm's correction."
        )
        lines += [f"  undecided then: {c.text} (corrected p = {p:.2g})" for c, p in fallen]
    return "\n".join(lines)


def _outcome(effect: float, p_value: float) -> Outcome:
    if not p_value <= ALPHA or not effect:
        return "undecided"
    return "holds" if effect > 0 else "fails"
