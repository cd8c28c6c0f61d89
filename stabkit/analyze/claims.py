"""Judge a claim of a paper by runs: it holds, fails or is undecided, always with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stabkit.analyze.intervals import share_test, student_test
from stabkit.detect.significance import holm

Outcome = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A claim, the measured effect in the claimed direction, and its 95 % interval."""

    text: str
    verdict: Outcome
    effect: float
    low: float
    high: float
    unit: str
    n: int
    p_value: float = math.nan  # two-sided, of no effect; NaN if n allows no test

    def __str__(self) -> str:
        found = f"{self.effect:+.2f} {self.unit}, 95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.verdict.upper():<10}{self.text}\n          {found}, n = {self.n}"


def mean_above_zero(text: str, differences: Sequence[float], unit: str) -> Claim:
    """Judge paired differences, which are positive if the claim is true, by `student_test`."""
    n, mean, (low, high), p_value = student_test(differences)
    if math.isnan(low):  # the scatter is unknown, so no effect is excluded
        low, high = -math.inf, math.inf
    return Claim(text, _outcome(low, high), mean, low, high, unit, n, p_value)


def more_events(text: str, claimed_more: int, claimed_less: int) -> Claim:
    """Judge the event counts of two arms that were watched for the same number of steps.

    The effect is the log2 ratio of the two rates. The interval is exact: given the total, the count
    of the first arm is binomial (Clopper-Pearson). It takes the events of a run as independent.
    Clustered events are not, so the true uncertainty is larger.
    """
    total = claimed_more + claimed_less
    (low_share, high_share), p_value = share_test(claimed_more, total)
    if not total:  # no event excludes no share
        low_share, high_share = 0.0, 1.0
    effect, low, high = (
        _log2_odds(share)
        for share in (claimed_more / total if total else 0.5, low_share, high_share)
    )
    unit = "(log2 ratio of rates)"
    return Claim(text, _outcome(low, high), effect, low, high, unit, total, p_value)


def together(claims: Sequence[Claim], alpha: float = 0.05) -> str:
    """Return the claims of one study as text, and which of them survive correction.

    Each interval errs in one case of twenty, so among many claims some are decided by chance alone.
    Holm's correction keeps the chance of any such error at `alpha` for all claims together.
    """
    tested = [claim for claim in claims if not math.isnan(claim.p_value)]
    corrected = holm([claim.p_value for claim in tested])
    decided = [(c, p) for c, p in zip(tested, corrected, strict=True) if c.verdict != "undecided"]
    fallen = [(c, p) for c, p in decided if p > alpha]
    lines = [str(claim) for claim in claims]
    if len(claims) > 1 and decided:
        stands = f"{len(decided) - len(fallen)} of {len(decided)} stand" if fallen else "all stand"
        lines.append(
            f"{len(tested)} claims were tested at once: of those decided above, {stands} after "
            "Holm's correction."
        )
        lines += [f"  undecided then: {c.text} (corrected p = {p:.2g})" for c, p in fallen]
    return "\n".join(lines)


def from_interval(text: str, effect: float, low: float, high: float, unit: str, n: int) -> Claim:
    """Return the claim for an effect, positive as claimed, with an interval from elsewhere."""
    return Claim(text, _outcome(low, high), effect, low, high, unit, n)


def _log2_odds(share: float) -> float:
    if share in (0.0, 1.0):
        return math.inf if share else -math.inf
    return math.log2(share / (1 - share))


def _outcome(low: float, high: float) -> Outcome:
    if low > 0:
        return "holds"
    return "fails" if high < 0 else "undecided"
