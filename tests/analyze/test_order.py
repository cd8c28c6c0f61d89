"""Sentences and claims about the order of layers, and about bursts before dips."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.order import (
    each_burst,
    herald,
    herald_words,
    later,
    lead_words,
    leads,
    order_words,
)
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.report.signs import signs_seen
from stabkit.analyze.summary import describe, run_table
from stabkit.detect import event_association, shallow_first
from stabkit.detect.association import EventTimes
from tests.analyze.conftest import diagnosed, plant_loop, plant_run

SPAN = (0, 999)
LAYERS = ["patch_embed", *(f"blocks.{i}" for i in range(9))]


def pairs(*lags: int) -> pd.DataFrame:
    rows = [
        {"run": "a", "burst": i, "layer": layer, "depth": depth, "onset": 100 * i + depth * lag}
        for i, lag in enumerate(lags)
        for depth, layer in enumerate(("patch_embed", "head"))
    ]
    table = pd.DataFrame(rows)
    first = table.groupby("burst")["onset"].transform("min")
    table["lag"] = table["onset"] - first
    tied = (table["lag"] == 0).groupby(table["burst"]).transform("sum")
    return table.assign(share=(table["lag"] == 0) / tied)


def test_the_words_tell_an_order_only_beyond_one_step() -> None:
    many_before = order_words(shallow_first(pairs(*[1] * 24, *[0] * 24, -1, -1)))
    assert many_before.startswith(
        "Which layer spikes first is not clear. The deepest layer spiked after"
    )
    assert (
        "in 24 bursts, before it in\n2, and in the same step in 24; median lag 0 steps"
        in many_before
    )
    assert order_words(shallow_first(pairs(*[4] * 8))).startswith("The shallowest layer spikes")
    assert order_words(shallow_first(pairs(*[-4] * 8))).startswith("The deepest layer spikes")
    assert "too few bursts for an interval" in order_words(shallow_first(pairs(4, 4)))


def test_a_few_bursts_are_told_one_by_one() -> None:
    assert each_burst(pairs(2, 0).astype({"onset": float})) == (
        "The burst at step 0 began in patch_embed; 1 other layer followed within 2 steps.\n"
        "The burst at step 100 began in patch_embed and head."
    )
    alone = pairs(1, 1)
    assert each_burst(alone[alone["depth"] == 0]) == "", "one layer has no order"
    assert lead_words(pairs(0, 3)).endswith("of 2 bursts\nof several layers")
    few = herald_words(event_association(associated(True, True), 30))
    assert few == "2 of 2 dips had a gradient burst in the 30 steps before."


def test_the_words_share_ties() -> None:
    assert lead_words(pairs(0, 0, 0, 3)) == (
        "the patch projection was among the first in 4 of 4 bursts\nof several layers "
        "(2.5 if layers that rise at once share the lead; chance gives 2)"
    )
    assert lead_words(pairs(0, 2, -3)).startswith("the patch projection was among the first in 2")
    alone = pairs(0)
    assert lead_words(alone[alone["depth"] == 0]) == "the patch projection spiked alone in 1"
    assert lead_words(alone[alone["depth"] == 1]) == ""


@pytest.mark.lengthy
def test_claims_of_planted_runs(tmp_path: Path) -> None:
    """In each run the patch projection spikes two steps before block 0."""
    for seed in range(8):
        plant_run(tmp_path / f"{seed}", f"optim.lr={seed + 1}e-3", spike=True, seed=seed)
    runs = diagnosed(tmp_path)
    first = leads("first", runs)
    assert (first.verdict, first.n) == ("holds", 8)
    assert first.p_value == pytest.approx(2 / 2**8)
    after = later("after", runs, "patch_embed", "blocks.0")
    assert (after.verdict, after.effect, after.low, after.high) == ("holds", 1, 1, 1)
    assert after.p_value == pytest.approx(2 / 2**8)
    assert leads("first", runs, "blocks.0").verdict == "fails"


def test_a_noisier_layer_is_no_leader() -> None:
    """It is the first of all more often than by chance, and the last."""
    rng = np.random.default_rng(0)
    bursts = []
    for i in range(60):
        onset = 100 * i + 50 + np.concatenate([rng.integers(-6, 7, 1), rng.integers(-1, 2, 9)])
        bursts.append({"burst": i, "layer": LAYERS, "depth": range(10), "onset": onset})
    table = pd.concat([pd.DataFrame(burst) for burst in bursts], ignore_index=True)
    lag = table["onset"] - table.groupby("burst")["onset"].transform("min")
    share = (lag == 0) / (lag == 0).groupby(table["burst"]).transform("sum")
    run = SimpleNamespace(
        name="a", gradients=SimpleNamespace(every=1, onsets=table.assign(lag=lag, share=share))
    )
    claim = leads("first", [cast("Diagnosis", run)])
    assert claim.low > 0, "the odds alone say so"
    assert claim.verdict == "undecided"
    assert claim.p_value > 0.05


def associated(*before: bool, schedule: str = "") -> list[EventTimes]:
    """One run an effect at step 500 and more, with a cause 10 steps before or after it."""
    return [
        EventTimes([500 + 40 * i + (-10 if early else 10)], [500 + 40 * i], SPAN, None, schedule)
        for i, early in enumerate(before)
    ]


def test_heralds_are_judged_before_against_after() -> None:
    found = event_association(associated(*[True] * 8), 30)
    claim = herald("herald", found)
    assert (claim.verdict, claim.effect, claim.n) == ("undecided", math.inf, 8)
    assert "no other seeds of a setting" in claim.note
    assert herald_words(found) == (
        "8 of 8 dips had a gradient burst in the 30 steps before.\n"
        "0 of the 16 stretches of the same length on either side of these had one.\n"
        "A burst on one side of the dip alone: before 8 dips, after 0.\n"
        "Bursts as likely around a dip as before it: p = 0.0039."
    )
    assert herald("herald", event_association(associated(*[False] * 8), 30)).verdict == "fails"
    even = event_association(associated(*[True, False] * 6), 30)
    assert herald("herald", even).verdict == "undecided"
    assert herald_words(event_association([EventTimes([1], [500], SPAN)], 30)) == ""


def test_what_other_seeds_do_as_well_is_no_herald() -> None:
    """All seeds have their bursts and dips at the same steps: the schedule alone explains them."""
    same = [EventTimes([490], [500], SPAN, None, "one")] * 8
    found = event_association(same, 30)
    assert (found.before, found.p_value < 0.01, found.other_runs_p) == (8, True, 1.0)
    assert herald("herald", found).verdict == "undecided"
    apart = event_association(associated(*[True] * 8, schedule="one"), 30)
    assert herald("herald", apart).verdict == "holds"
    assert "with the bursts of other seeds" in herald_words(apart)


@pytest.mark.parametrize("name", ["patch_embed", "conv_proj"])
def test_one_judge_tells_the_patch_projection(tmp_path: Path, name: str) -> None:
    """torchvision calls it `conv_proj`; the table, the sentence and the report agree on it."""
    plant_loop(tmp_path / "run", [name, "blocks.0", "blocks.1"], burst=name)
    runs = diagnosed(tmp_path)
    table = run_table(runs)
    assert table["patch_first"].tolist() == [1]
    assert "the patch projection was among the first in 1 of 1 burst" in describe(runs, table)
    assert signs_seen(runs, all_incidents(runs))["patch_first"] == 1
