"""Settings in units of the run."""

import pytest

from stabkit.config import (
    ConfigError,
    OptimConfig,
    RunConfig,
    load_config,
    read_config,
    run_id,
    save_config,
)
from stabkit.yamlio import parse_yaml

PAPER = ["train.batch=4096", "train.steps=31200", "optim.lr=1e-4"]  # 100 epochs of ImageNet-1k


def test_shares_of_the_run_give_the_numbers_of_the_paper() -> None:
    shares = ["optim.warmup_share=0.4", f"optim.beta2_share={1000 / 31200}"]
    shares += [f"method.momentum_share={100 / 31200}", "optim.decay_total=2.496"]
    config = load_config("imagenet", [*PAPER, *shares])
    assert config.optim.warmup_steps == 12480
    assert (config.optim.beta2, config.method.momentum) == (0.999, 0.99)
    # Half of the peak on average over warm-up and cosine: 31,200 * (1e-4 * 16) / 2 * 0.1.
    assert config.optim.weight_decay == pytest.approx(0.1, rel=1e-4)


def test_a_share_and_its_number_are_one_run(tmp_path) -> None:
    by_share = load_config("tiny", ["optim.warmup_share=0.4", "method.momentum_share=0.02"])
    by_number = load_config("tiny", ["optim.warmup_steps=200", "method.momentum=0.9"])
    assert run_id(by_share) == run_id(by_number)
    path = tmp_path / "config.yaml"
    path.write_text(save_config(by_share))
    assert "share" not in path.read_text()
    assert read_config(path) == by_number
    # A number on top of a share replaces it, as one number replaces another.
    (tmp_path / "mine.yaml").write_text("optim: {warmup_share: 0.4}\n" + MINE)
    over = load_config(str(tmp_path / "mine.yaml"), ["optim.warmup_steps=7"])
    assert over.optim.warmup_steps == 7


MINE = """
data: {name: synthetic, num_train: 100, num_heldout: 100}
model: {patch_size: 8, width: 16, depth: 1, heads: 2}
train: {batch: 50, steps: 100}
knn: {k: 10, bank: 50, queries: 50}
"""


def test_shares_hold_for_sections_built_in_python() -> None:
    content = parse_yaml(MINE) | {"optim": OptimConfig(warmup_share=0.25, beta2_share=0.1)}
    config = RunConfig(**content)
    assert (config.optim.warmup_steps, config.optim.beta2) == (25, 0.9)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.warmup_share=0.4", "optim.warmup_steps=30"], "warmup_steps 30: give one of them"),
        (["optim.warmup_share=1.5"], "optim.warmup_share = 1.5: should be a number from 0 up to 1"),
        (["optim.beta2_share=0.002"], "memory of 1: should be more than one step, so above 0.002"),
        (["optim.decay_total=x"], "optim.decay_total = 'x': should be a number"),
        (["optim.name=sgd", "optim.beta2_share=0.1"], "beta2_share 0.1 has no meaning for sgd"),
        (["method.name=simclr", "method.momentum_share=.1"], "momentum_share 0.1 does nothing for"),
        (["optim.decay_total=1", "train.steps=1", "optim.warmup_steps=1"], "learning rate is 0 at"),
        (
            ["optim.beta2_share=0.1", "train.steps=0"],
            "train.steps = 0: should be a whole number above 0",
        ),
    ],
)
def test_a_share_that_gives_no_number_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("tiny", words)
    assert problem in str(error.value)
