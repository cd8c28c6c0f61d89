"""Runs are paired where most of them have partners, and the text says what was done."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from stabkit.analyze.compare import compare_matched
from stabkit.analyze.matching import match_runs, pair_rows


def arm(seeds: Iterable[float], lrs: Iterable[float] = (1,), shift: float = 0.0) -> pd.DataFrame:
    rows = [
        {"seed": seed, "lr": lr, "level": 50 + 10 * lr + shift + math.sin(seed)}
        for lr in lrs
        for seed in seeds
    ]
    return pd.DataFrame(rows)


def test_one_common_seed_in_ten_makes_no_pairs() -> None:
    one, two = arm(range(10)), arm(range(9, 19), shift=3)
    found = match_runs(one, two, ["lr"])
    assert (found.keys, len(found.first), len(found.second)) == ([], 10, 10)
    assert found.words == (
        "Only 1 of 10 and 1 of 10 runs have a partner of the same seed and lr, too few for pairs: "
        "compared unpaired, with all runs."
    )
    compared = compare_matched(found)
    assert compared.n == (10, 10)
    low, high = compared.interval
    assert low < compared.effect < high


@pytest.mark.parametrize(("common", "paired"), [(5, False), (6, True), (10, True)])
def test_pairs_need_more_than_half_of_each_arm(common: int, paired: bool) -> None:
    one, two = arm(range(10)), arm(range(10 - common, 20 - common))
    found = match_runs(one, two, [])
    assert bool(found.keys) is paired
    assert found.whole is (common == 10)
    if paired:
        lost = 20 - 2 * common
        assert found.words == f"Paired over seed; {lost} runs without a partner left out."
    few = match_runs(one, arm(range(3)), [])  # all of one arm, but three of ten of the other
    assert not few.keys


def test_cells_are_paired_by_their_means_if_there_are_three() -> None:
    one, two = arm(range(3), (1, 2, 3)), arm(range(5, 8), (1, 2, 3), shift=2)
    found = match_runs(one, two, ["lr"])
    assert found.keys == ["lr"]
    assert "No run of one has a partner of the same seed and lr in the other" in found.words
    assert compare_matched(found).n == (3,)
    two_cells = match_runs(arm(range(3), (1, 2)), arm(range(5, 8), (1, 2)), ["lr"])
    assert (two_cells.keys, two_cells.within) == ([], ["lr"])


def test_runs_of_other_settings_are_compared_as_they_are() -> None:
    found = match_runs(arm(range(3), (1, 2)), arm(range(3), (5,)), ["lr"])
    assert (found.keys, found.within) == ([], [])


def test_rows_pair_by_seed_and_every_shared_setting() -> None:
    frame = pd.DataFrame(
        [
            {"seed": seed, "lr": lr, "frozen": frozen, "level": 10 * lr + seed + 5 * frozen}
            for seed in (0, 1, 2)
            for lr in (1, 2)
            for frozen in (False, True)
            if not (seed == 2 and lr == 2 and frozen)  # it failed
        ]
    ).sample(frac=1, random_state=0)
    learned, frozen = frame[~frame["frozen"]], frame[frame["frozen"]]
    pairs = pair_rows(learned, frozen, ["seed", "lr"])
    assert len(pairs) == 5
    assert (pairs["second"] - pairs["first"]).tolist() == [5] * 5
    found = match_runs(learned, frozen, ["lr"])
    assert (found.keys, len(found.first), len(found.second)) == (["seed", "lr"], 5, 5)
    assert pair_rows(learned, frozen.assign(seed=frozen["seed"] + 10), ["seed", "lr"]).empty


def test_runs_without_a_seed_have_no_partner_and_twice_the_same_is_one_pair() -> None:
    rows = pd.DataFrame({"seed": [0, 0, math.nan], "level": [1.0, 3.0, 9.0]})
    pairs = pair_rows(rows, rows, ["seed"])
    assert pairs["first"].tolist() == [2.0]
    assert len(match_runs(rows, rows, []).first) == 2
    nameless = rows.assign(seed=np.nan)
    assert match_runs(nameless, nameless, []).keys == []
