"""Say and judge which layer comes first in bursts, and whether bursts come before dips."""

import math
import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from stabkit.analyze.across_runs import onsets, order_test, recorded_every
from stabkit.analyze.claims import Claim, Outcome, from_interval, more_often
from stabkit.analyze.counts import ALPHA
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.text import layers_called, listed
from stabkit.detect.association import Association
from stabkit.detect.onset_order import (
    OrderTest,
    burst_lags,
    first_in_bursts,
    median_p_value,
)
from stabkit.printing import counted

LEAD = 30  # steps before a dip within which a gradient burst counts as its herald
NO_OTHER_SEEDS = "no other seeds of a setting, whose bursts would show what chance brings"
FEWEST = 3  # bursts of several layers, or dips; fewer are told one by one, without a test
FIRST = "patch_embed"  # the layer in which the paper sees bursts begin, as our runs call it
PATCHES = re.compile(r"patch_?embed|conv_proj")  # others call it so: timm, torchvision
ORDERS = {
    "shallow first": "The shallowest layer spikes first",
    "deep first": "The deepest layer spikes first",
    "undecided": "Which layer spikes first is not clear",
}


def order_words(test: OrderTest) -> str:
    """Return the order that a test of shallowest before deepest tells, with its lag."""
    interval = f"95 % interval {test.low:g} to {test.high:g}"
    known = interval if math.isfinite(test.low) else "too few bursts for an interval"
    return (
        f"{ORDERS[test.order]}. The deepest layer spiked after the shallowest in "
        f"{counted(test.before, 'burst')}, before it in\n{test.after}, and in the same step in "
        f"{test.ties}; median lag {test.lag:g} steps ({known})."
    )


def each_burst(found: pd.DataFrame) -> str:
    """Say for each burst of several layers where it began, and how soon the others followed."""
    sentences = []
    for _, burst in found.groupby(["run", "burst"], sort=False):
        if len(burst) < 2:
            continue
        first = burst.loc[burst["lag"] == 0, "layer"].tolist()
        onset, where = int(burst["onset"].min()), layers_called(listed(first))
        others, within = len(burst) - len(first), counted(int(burst["lag"].max()), "step")
        then = f"; {counted(others, 'other layer')} followed within {within}" if others else ""
        sentences.append(f"The burst at step {onset:,} began in {where}{then}.")
    return "\n".join(sentences)


def patch_projection(run: Diagnosis) -> str | None:
    """Return the name of the layer that projects patches, if it is trained."""
    layers = run.gradients.layers.sort_values("depth")["layer"]
    return next((layer for layer in layers if PATCHES.search(layer)), None)


def onsets_from_patches(runs: Iterable[Diagnosis]) -> pd.DataFrame:
    """Return the `onsets` of runs. The patch projection is FIRST, whatever a run calls it."""
    items = list(runs)
    found, names = onsets(items), {patch_projection(run) for run in items}
    return found.assign(layer=found["layer"].astype(str).where(~found["layer"].isin(names), FIRST))


def lead_words(found: pd.DataFrame) -> str:
    """Say how often the patch projection led bursts, against chance; empty if it never spiked."""
    size = found.groupby(["run", "burst"])["layer"].transform("size")
    mine = found["layer"] == FIRST
    test = first_in_bursts(found, FIRST)
    parts = []
    if test.events:
        among = int((mine & (size > 1) & (found["lag"] == 0)).sum())
        chance = (
            f" ({test.first:.2g} if layers that rise at once share the lead; chance gives "
            f"{test.expected:.2g})"
        )
        parts.append(
            f"was among the first in {among} of {counted(test.events, 'burst')}\nof several layers"
            + (chance if test.events >= FEWEST else "")
        )
    if alone := int((mine & (size == 1)).sum()):
        parts.append(f"spiked alone in {alone}")
    return f"the patch projection {' and '.join(parts)}" if parts else ""


def herald_words(found: Association) -> str:
    """Say how many dips a burst preceded, and what chance would do. Empty if there is no case."""
    if not found.observed and not found.after:
        return ""
    text = (
        f"{found.observed} of {counted(found.effects, 'dip')} had a gradient burst in the {LEAD} "
        "steps before"
    )
    if found.effects < FEWEST:
        return f"{text}."
    cut = found.effects - found.inside
    left_out = f"; {counted(cut, 'dip')} too near to an end left out" if cut else ""
    text += (
        f".\n{found.beside} of the {2 * found.inside} stretches of the same length on "
        f"either side of these had one{left_out}.\nA burst on one side of the dip alone: before "
        f"{counted(found.before, 'dip')}, after {found.after}.\nBursts as likely around a dip as "
        f"before it: p = {found.p_value:.2g}"
    )
    if math.isfinite(found.other_runs_p):
        text += (
            f".\nBy chance, with the bursts of other seeds, {found.expected:.1f} would have one "
            f"before (p = {found.other_runs_p:.2g})"
        )
    return f"{text}."


def leads(text: str, runs: Iterable[Diagnosis], layer: str = FIRST) -> Claim:
    """Judge whether a layer leads more bursts than chance, ties shared (`first_in_bursts`).

    The claim holds only if the layer also comes more than one value before the others do.
    """
    items = list(runs)
    test = first_in_bursts(onsets(items), layer, recorded_every(items))
    with np.errstate(divide="ignore"):  # never first is odds of zero
        odds = np.log2([test.odds, test.low, test.high]).tolist()
    unit = "(log2 odds against chance)"
    claim = from_interval(text, odds[0], odds[1], odds[2], unit, test.events, test.p_value)
    return _held(claim, test.leads, test.lead_p)


def later(
    text: str, runs: Iterable[Diagnosis], shallow: str | None = None, deep: str | None = None
) -> Claim:
    """Judge whether the deeper layer spikes more than one value after the shallower.

    A lag of one value is within the error of an onset. So a rise of all layers at once refutes the
    claim. The effect is the median lag in steps beyond it.
    """
    items = list(runs)
    test, lags = order_test(items, shallow, deep), burst_lags(onsets(items), shallow, deep)
    lag, low, high = (value - test.every for value in (test.lag, test.low, test.high))
    unit, p_value = f"steps beyond {test.every} (median lag)", median_p_value(lags, test.every)
    return from_interval(text, lag, low, high, unit, test.events, p_value)


def herald(text: str, found: Association) -> Claim:
    """Judge whether bursts precede dips: dips with a burst only before against only after them.

    The claim holds only if bursts are also more frequent in the steps before dips than in those
    beside (`event_association`), and if the bursts of other seeds would not do as well. Without
    other seeds it is undecided: if bursts and dips both follow epochs or restarts of the learning
    rate, one comes before the other for no other reason.
    """
    claim = more_often(text, found.before, found.after)
    if math.isnan(found.other_runs_p):
        note = "; ".join(filter(None, [claim.note, NO_OTHER_SEEDS]))
        return replace(_held(claim, False, found.p_value), note=note)
    p_value = max(found.p_value, found.other_runs_p)
    return _held(claim, p_value <= ALPHA, p_value)


def _held(claim: Claim, also: bool, p_value: float) -> Claim:
    """Return a claim that holds only if a second test says so too; it has the larger p then."""
    if claim.verdict != "holds":
        return claim
    verdict: Outcome = "holds" if also else "undecided"
    return replace(claim, verdict=verdict, p_value=max(claim.p_value, p_value))
