"""Choose the word for an intervention, and say in a sentence why it is this one."""

import math
from collections.abc import Mapping
from typing import Any

from stabkit.branch.judge.exact_tests import Share, fewer, fewer_of_few

ALPHA = 0.05  # after Holm's correction for the number of interventions
OWN_ALPHA = 0.05  # against the shams of its own family, of which there are three or four
SPARED = 1 / 5  # of the replicates may have the event, at most, for a change that prevents it
PRICE = 1.0  # points at the horizon; less is no price
MOST = 40  # replicates or shams; more are not asked for
VERDICTS = (
    *("prevented", "prevented, at a price", "postponed", "no different from a nudge"),
    *("worse than a nudge", "undecided", "not attributable"),
)


def tell_verdict(row: Mapping[str, Any], tests: int) -> tuple[str, str]:
    """Return the verdict on one of `tests` interventions, and why: see `judge_branches`."""
    these, placebos = Share(row["events"], row["n"]), Share(row["placebo_events"], row["placebos"])
    shams, own = Share(row["sham_events"], row["shams"]), Share(row["own_events"], row["own_shams"])
    counts = (
        f"{these.words()} repeat the event, {placebos.words()} placebos, {shams.words()} shams "
        f"({own.words()} of its family)"
    )
    counts = f"{counts}; corrected p = {row['p']:.2g}, in its family {row['p_own']:.2g}"
    if row["p"] <= ALPHA and row["p_own"] <= OWN_ALPHA and these.value <= SPARED:
        word, more = _without_event(row)
        return word, f"{counts}{more}."
    price = _price(row)
    word = "worse than a nudge" if price else "no different from a nudge"
    counts += price
    if 2 * these.events > these.of:
        return word, f"{counts}."
    if 2 * own.events < own.of or 2 * shams.events < shams.of:
        return word, f"{counts}: most shams prevent it as well."
    return f"undecided ({_needs(these, placebos, shams, own, tests)})", f"{counts}."


def falls_less(row: Mapping[str, Any]) -> bool:
    """Return whether the area below the level is smaller than in the shams, event or not."""
    return bool(row["p_area"] <= ALPHA and row["p_area_own"] <= OWN_ALPHA)


def _without_event(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict where the event stays away when it is due."""
    n, moved = row["n"], row["moved"]
    elsewhere = f"; in {moved} of {n} at another time" if moved else ""
    if 2 * moved > n and moved * row["placebos"] > row["placebos_moved"] * n:
        return "postponed", elsewhere
    if price := _price(row):
        return "prevented, at a price", f"{elsewhere}{price}"
    unknown = "; its price is not known without evaluations" if math.isnan(row["gain"]) else ""
    return "prevented", f"{elsewhere}{unknown}"


def _price(row: Mapping[str, Any]) -> str:
    """Say how far below the placebos the branches end; empty if that is not shown."""
    if row["p_price"] <= ALPHA and row["gain"] <= -PRICE:
        price = f"{-row['gain']:.1f} points below the placebos at the horizon"
        return f"; {price}, p = {row['p_price']:.2g}"
    return ""


def _needs(these: Share, placebos: Share, shams: Share, own: Share, tests: int) -> str:
    """Say how many replicates or shams would decide, if more of them turn out as those seen.

    Every intervention gets the full correction, as the first one does in Holm's method.
    """
    for n in range(these.of + 1, MOST + 1):
        more = Share(_as_seen(these, n), n)
        if _decides(more, placebos, shams, own, tests):
            return f"needs {n} replicates"
    if not own.of:
        return "needs shams of its family"
    for n in range(own.of + 1, MOST + 1):
        grown = Share(_as_seen(own, n), n)
        pool = Share(shams.events + grown.events - own.events, shams.of + n - own.of)
        if _decides(these, placebos, pool, grown, tests):
            return f"needs {n} shams of its family"
    return "needs more shams and replicates"


def _as_seen(share: Share, n: int) -> int:
    return share.events + round((n - share.of) * share.value)


def _decides(these: Share, placebos: Share, shams: Share, own: Share, tests: int) -> bool:
    others = Share(placebos.events + shams.events, placebos.of + shams.of)
    shown = tests * fewer(these, others) <= ALPHA and fewer_of_few(these, own) <= OWN_ALPHA
    return shown and these.value <= SPARED
