import itertools
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from stabkit.train import randomness
from stabkit.train.randomness import permutation, uniforms

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
# Chance that one healthy statistic fails. The seeds are fixed, so a test that passes stays passed.
ALPHA = 1e-4

GOLDEN_UNIFORMS = [
    [0.47141042966848024, 0.7247520786262142],
    [0.17732475569272, 0.24491793717085653],
]
GOLDEN_ORDER = [3, 1, 5, 9, 2, 4, 6, 7, 0, 8]


def finalize(word: int) -> int:
    """Return splitmix64's finalizer of a Python integer."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def grid(axis: str, length: int, count: int) -> NDArray[np.float64]:
    """Return [length, count] uniforms of neighboring values of one coordinate, the others fixed."""
    fixed = {"seed": 3, "epoch": 5, "stream": 1, "sample": 11}
    if axis == "sample":
        return uniforms(3, 5, np.arange(length), 1, count)
    rows = []
    for value in range(length):
        at = fixed | {axis: value}
        rows.append(uniforms(at["seed"], at["epoch"], np.array([11]), at["stream"], count)[0])
    return np.array(rows)


def test_sequence_matches_published_splitmix64_outputs() -> None:
    # First outputs for seed 1234567 as published for the reference implementation.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    steps = np.arange(1, 4, dtype=np.uint64) * np.uint64(GAMMA)
    assert randomness._mix(np.uint64(1234567) + steps).tolist() == published


def test_uniforms_match_python_integers() -> None:
    words = [7, 2, 1, 123456789]
    state = 0
    for word in words:
        state = finalize(((state ^ word) + GAMMA) & MASK)
    expected = [finalize((state + k * GAMMA) & MASK) >> 11 for k in range(1, 6)]
    drawn = uniforms(7, 2, np.array([123456789]), 1, 5)
    assert (drawn[0] * 2.0**53).tolist() == expected


def test_golden_values() -> None:
    # A change here changes every experiment: old runs could no longer be resumed or reproduced.
    assert uniforms(0, 0, np.arange(2), 0, 2).tolist() == GOLDEN_UNIFORMS
    assert permutation(0, 0, 10).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("axis", ["sample", "seed", "epoch", "stream"])
def test_uniform_along_every_coordinate(axis: str) -> None:
    drawn = grid(axis, 2000, 20)
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > ALPHA
    # Along the coordinate alone, at one column: what a batch or a run actually sees.
    assert stats.kstest(drawn[:, 0], "uniform").pvalue > ALPHA


@pytest.mark.parametrize("axis", ["sample", "seed", "epoch", "stream"])
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbors_are_independent(axis: str, lag: int) -> None:
    drawn = grid(axis, 2000, 20)
    check_independent(drawn[:-lag].ravel(), drawn[lag:].ravel())


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_columns_are_independent(lag: int) -> None:
    drawn = uniforms(3, 5, np.arange(2000), 1, 36)
    check_independent(drawn[:, :-lag].ravel(), drawn[:, lag:].ravel())


def check_independent(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    bound = stats.norm.isf(ALPHA / 2) / np.sqrt(len(x))
    assert abs(np.corrcoef(x, y)[0, 1]) < bound
    # A table of counts also sees dependence that leaves the correlation at 0.
    table, _, _ = np.histogram2d(x, y, bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(table.ravel()).pvalue > ALPHA


@pytest.mark.parametrize("word", ["seed", "epoch", "sample", "stream"])
def test_one_flipped_input_bit_flips_half_of_the_output_bits(word: str) -> None:
    flipped = []
    for bit, start in itertools.product(range(0, 63, 3), range(40)):
        at = {"seed": start, "epoch": 2 * start, "sample": 3 * start, "stream": 1}
        flipped.append(hashed(at) ^ hashed(at | {word: at[word] ^ (1 << bit)}))
    bits = np.array([[value >> k & 1 for k in range(64)] for value in flipped])
    # 840 trials a bit: 5.5 standard errors, a chance below 3e-6 for all 64 bits.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5.5 * 0.5 / np.sqrt(len(bits))


def hashed(at: dict[str, int]) -> int:
    sample = np.array([at["sample"]])
    return int(randomness._hashes(at["seed"], at["epoch"], sample, at["stream"], 1)[0, 0])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    sample = np.array([5, 0, 2**40, 17, 5])
    drawn = uniforms(1, 2, sample, 3, 8)
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_array_equal(uniforms(1, 2, sample[order], 3, 8), drawn[order])
    np.testing.assert_array_equal(uniforms(1, 2, sample[2:3], 3, 8), drawn[2:3])
    np.testing.assert_array_equal(drawn[0], drawn[4])


def test_fewer_columns_are_a_prefix_of_more() -> None:
    sample = np.arange(6)
    np.testing.assert_array_equal(uniforms(1, 2, sample, 3, 4), uniforms(1, 2, sample, 3, 9)[:, :4])


def test_coordinates_do_not_stand_in_for_each_other() -> None:
    drawn = [
        uniforms(seed, epoch, np.array([sample]), stream, 1)[0, 0]
        for seed, epoch, sample, stream in itertools.product(range(6), repeat=4)
    ]
    assert len(set(drawn)) == 6**4


def test_range_and_shape() -> None:
    drawn = uniforms(0, 0, np.arange(50_000), 0, 20)
    assert drawn.shape == (50_000, 20)
    assert drawn.dtype == np.float64
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    assert uniforms(0, 0, np.zeros(0, dtype=np.int64), 0, 3).shape == (0, 3)
    assert uniforms(0, 0, np.arange(3), 0, 0).shape == (3, 0)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_sample_once(n: int) -> None:
    order = permutation(4, 7, n)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.lengthy
def test_permutation_positions_are_uniform() -> None:
    orders = np.array([permutation(1, epoch, 8) for epoch in range(8000)])
    table = np.array([np.bincount(column, minlength=8) for column in orders.T])
    # Rows and columns of the table have fixed sums: 7 * 7 degrees of freedom. The positions of one
    # order exclude each other, which scales the statistic by 7 / 8.
    statistic = ((table - 1000.0) ** 2 / 1000.0).sum() * 7 / 8
    assert stats.chi2.sf(statistic, 49) > ALPHA
    assert stats.chi2.cdf(statistic, 49) > ALPHA


def test_orders_of_epochs_and_seeds_are_unrelated() -> None:
    n = 5000
    bound = stats.norm.isf(ALPHA / 2) / np.sqrt(n)
    for other in (permutation(0, 1, n), permutation(1, 0, n)):
        assert abs(np.corrcoef(permutation(0, 0, n), other)[0, 1]) < bound


def test_global_generators_are_left_alone() -> None:
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    uniforms(0, 0, np.arange(4), 0, 4)
    permutation(0, 0, 9)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert before == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, np.arange(2), 0, 1), "seed must be an integer from 0"),
        ((2**63, 0, np.arange(2), 0, 1), "seed must be an integer from 0"),
        ((0, -1, np.arange(2), 0, 1), "epoch must be an integer from 0"),
        ((0, 0, np.arange(2), -1, 1), "stream must be an integer from 0"),
        ((0, 0, np.arange(2), 0, -1), "count must be an integer from 0"),
        ((0, 0, np.array([3, -2]), 0, 1), "indices of 0 or more, got -2"),
        ((0, 0, np.zeros((2, 2), dtype=np.int64), 0, 1), r"shape \(2, 2\)"),
        ((0, 0, np.zeros(2), 0, 1), "got float64 of shape"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniforms(*arguments)  # type: ignore[arg-type]


def test_bad_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be an integer from 0"):
        permutation(0, 0, -1)
