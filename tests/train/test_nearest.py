"""The tiled selection beside a sort of whole rows: borders of tiles, ties, hidden entries."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.train import nearest as tiles
from stabkit.train.nearest import nearest

HIDDEN = -torch.inf


def cosines(query: Tensor, bank: Tensor) -> Tensor:
    return F.normalize(query.double(), dim=1) @ F.normalize(bank.double(), dim=1).T


def features(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "WHOLE", 64)
    monkeypatch.setattr(tiles, "BANK_TILE", 64)
    monkeypatch.setattr(tiles, "TILE", 64 * 32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("queries", "entries", "k"),
    [(1, 1, 1), (1, 700, 20), (97, 64, 7), (97, 65, 7), (33, 700, 20), (32, 640, 64), (40, 700, 90),
     (5, 130, 130), (70, 300, 299)],
)  # fmt: skip
def test_the_nearest_are_those_of_a_sort_in_float64(queries: int, entries: int, k: int) -> None:
    query, bank = features(queries, 9, 1), features(entries, 9, 2)
    exact = cosines(query, bank)
    cosine, index = nearest(query, bank, [k])
    expected = exact.numpy()[np.arange(queries)[:, None], np.argsort(-exact.numpy(), axis=1)[:, :k]]
    assert cosine.shape == index.shape == (queries, k)
    assert all(len(set(row)) == k for row in index.tolist())
    # of each rank the same cosine, and the places are where those cosines are
    torch.testing.assert_close(cosine.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, index), cosine.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.usefixtures("small_tiles")
def test_no_order_of_the_bank_is_a_bad_one(order: str) -> None:
    bank = features(700, 9, 3)
    near = cosines(bank[:1], bank)[0].argsort(descending=order == "descending")
    cosine, index = nearest(bank[:1].repeat(40, 1), bank[near], [30])
    expected = cosines(bank[:1], bank)[0].sort(descending=True).values[:30]
    torch.testing.assert_close(cosine[7].double(), expected, rtol=0, atol=1e-6)
    places = torch.arange(30) if order == "descending" else 699 - torch.arange(30)
    assert index[39].equal(places)


@pytest.mark.parametrize("kind", ["copies", "coarse", "collapsed", "nothing"])
def test_of_equals_those_are_taken_that_topk_takes(kind: str) -> None:
    query, bank = features(50, 5, 4), features(300, 5, 5)
    if kind == "copies":
        bank = bank[torch.arange(300) % 40]
    elif kind == "coarse":
        query, bank = query.round(), bank.round()
    elif kind == "collapsed":
        query, bank = 1 + 1e-6 * query, 1 + 1e-6 * bank
    else:
        bank = torch.zeros_like(bank)
    whole = (F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T).topk(60, dim=1)
    assert (whole.values[:, 9] == whole.values[:, 10]).any(), "no tie: the case shows nothing"
    cosine, index = nearest(query, bank, [10, 60])
    assert cosine.equal(whole.values)
    for k in (10, 60):  # within equals the order is free: the sets are not
        assert index[:, :k].sort().values.equal(whole.indices[:, :k].sort().values)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("images", [2, 50])
def test_an_entry_of_the_own_id_is_infinitely_far(images: int) -> None:
    """With two images half of the bank is hidden: fewer are left than are asked for."""
    query, bank, k = features(40, 9, 6), features(300, 9, 7), 180
    ids = torch.arange(40) % images, torch.arange(300) % images
    hidden = ids[0][:, None] == ids[1]
    exact = cosines(query, bank).masked_fill(hidden, HIDDEN)
    cosine, index = nearest(query, bank, [k], ids)
    expected = exact.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(cosine.double(), expected, rtol=0, atol=1e-6)
    assert (cosine == HIDDEN).any() == (images == 2)
    assert hidden.gather(1, index).equal(cosine == HIDDEN)
    assert all(len(set(row)) == k for row in index.tolist())


def test_strides_types_and_gradients_do_not_matter() -> None:
    query, bank = features(40, 9, 8), features(300, 9, 9)
    expected = nearest(query, bank, [20])
    strided = features(9, 40, 0).T.copy_(query), torch.zeros(300, 18)[:, ::2].copy_(bank)
    assert not any(tensor.is_contiguous() for tensor in strided)
    for found in (nearest(*strided, [20]), nearest(query.requires_grad_(), bank.double(), [20])):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
        assert found[1].equal(expected[1])


def test_a_feature_that_is_not_a_number_is_left_to_topk() -> None:
    query, bank = features(40, 9, 10), features(300, 9, 11)
    for broken in (query, bank):
        whole_bank, whole_query = bank.clone(), query.clone()
        (whole_query if broken is query else whole_bank)[5, 2] = torch.nan
        similarity = F.normalize(whole_query, dim=1) @ F.normalize(whole_bank, dim=1).T
        expected = similarity.topk(20, dim=1)
        cosine, index = nearest(whole_query, whole_bank, [20])
        assert torch.allclose(cosine, expected.values, rtol=0, atol=0, equal_nan=True)
        assert index.equal(expected.indices)


def test_no_more_cosines_are_held_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    plain = torch.mm

    def mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        held.append(out.untyped_storage().nbytes())
        return plain(a, b, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(tiles, "TILE", 2**16)
    nearest(features(500, 4, 12), features(20_000, 4, 13), [50])
    assert len(held) > 100
    assert max(held) <= 4 * 2**16 * 1.1
