"""What the studies cost: known passes and tests, and the page that holds the tables."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.lib.pages import filled
from benchmarks.study_cost import DOCS, detectable, forward_flops, page, run_flops
from stabkit.config import load_config


def test_a_forward_pass_of_vit_base_is_that_of_the_literature() -> None:
    """17.5 billion products and as many sums (MoCo v3), and the heads beside it."""
    config = load_config("imagenet")
    heads = 2 * (768 * 4096 + 4096**2 + 4096 * 256)
    assert forward_flops(config) - heads == pytest.approx(2 * 17.5e9, rel=0.01)


def test_a_run_is_its_steps_times_eight_passes_and_its_evaluations() -> None:
    config = load_config("imagenet")
    training = 31_200 * 4096 * 8 * forward_flops(config)
    assert 1 < run_flops(config) / training < 1.01


def test_a_detectable_difference_is_found_four_times_in_five() -> None:
    pairs, trials = 5, 4000
    differences = np.random.default_rng(0).normal(detectable(pairs), 1.0, (trials, pairs))
    found = ttest_rel(differences, np.zeros_like(differences), axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)


@pytest.mark.lengthy
def test_the_page_holds_what_the_command_prints() -> None:
    text = DOCS.read_text()
    assert text == filled(text, "cost", page(), DOCS), "python -m benchmarks.study_cost --write"
