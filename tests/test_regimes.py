"""How near a scale is to the paper: known shares, and the page that holds the table."""

import pytest

from benchmarks.lib.pages import filled
from benchmarks.regimes import DOCS, is_near, page, ratios
from stabkit.config import load_config


def test_the_papers_shares_are_those_of_its_settings() -> None:
    """MoCo v3: 40 of 100 epochs of warm-up, Adam's .999, momentum .99, batch 4,096, decay .1."""
    found = list(ratios(load_config("imagenet")).values())
    peak, steps = 1e-4 * 4096 / 256, 31_200
    wanted = [0.4, 1000 / steps, 12.48, 100 / steps, peak / 2 * steps * 0.1, 4096 / 1_281_167]
    assert found[:6] == pytest.approx(wanted, rel=1e-3)


def test_cifar_is_in_the_papers_regime_but_for_its_batch() -> None:
    paper = ratios(load_config("imagenet"))
    cifar = ratios(load_config("cifar"))
    assert [name for name in paper if not is_near(name, cifar[name], paper[name])] == [
        "batch / training images"
    ]


def test_the_page_holds_what_the_command_prints() -> None:
    text = DOCS.read_text()
    assert text == filled(text, "regimes", page(), DOCS), "python -m benchmarks.regimes --write"
