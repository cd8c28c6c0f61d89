"""The sum of the weights' bits: exact, and changed by any one bit."""

from pathlib import Path

import pytest
import torch

import stabkit
from stabkit.rundir import RunDir
from stabkit.train.loop import train
from stabkit.train.weights_bits import MODULUS, SMALL, weights_bits
from tests.conftest import small_config


def test_it_is_the_sum_of_the_bits_as_whole_numbers() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(SMALL + 2), torch.randn(5, 7), torch.randn(SMALL + 1)]
    numbers = [b"".join(t.numpy().tobytes() for t in some) for some in (tensors[:1], tensors[1:])]
    padded = [raw + bytes(-len(raw) % 8) for raw in numbers]
    words = [
        int.from_bytes(raw[i : i + 8], "little") for raw in padded for i in range(0, len(raw), 8)
    ]
    total = (sum(words) + 2**63) % 2**64 - 2**63  # as a sum of 64 bits with a sign
    assert int(weights_bits(tensors)) == total % MODULUS


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1), (2, -1)])
def test_one_ulp_or_a_sign_changes_it_and_back_it_is_as_before(place: tuple[int, int]) -> None:
    tensors = [torch.ones(SMALL + 2), torch.ones(4), torch.ones(SMALL + 1)]
    before = weights_bits(tensors)
    flat, at = tensors[place[0]], place[1]
    flat[at] = torch.nextafter(flat[at], torch.tensor(torch.inf))
    assert weights_bits(tensors) != before
    flat[at] = -1.0
    assert weights_bits(tensors) != before
    flat[at] = 1.0
    assert weights_bits(tensors) == before


@pytest.mark.lengthy
def test_a_run_that_keeps_states_records_it_at_every_step_and_others_do_not(
    tmp_path: Path,
) -> None:
    kept, plain = RunDir(tmp_path / "kept"), RunDir(tmp_path / "plain")
    train(small_config("runtime.keep_states=2", "train.steps=6"), kept)
    train(small_config("train.steps=6"), plain)
    one, other = (stabkit.open_run(rundir.path) for rundir in (kept, plain))
    bits = one.scalar("weights_bits")
    assert bits.index.tolist() == list(range(6))
    assert bits.nunique() == 6
    assert "weights_bits" not in set(other.scalars()["name"])
    assert one.scalar("loss").equals(other.scalar("loss"))
