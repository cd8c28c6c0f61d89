import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stabkit.monitor.knn import vote
from stabkit.monitor.knn.vote import knn_predict, knn_predict_each, nearest


def data(seed: int, queries: int = 23, bank: int = 57) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (bank,), generator=generator)
    centers = torch.randn(5, 6, generator=generator)
    features = centers[labels] + 1.5 * torch.randn(bank, 6, generator=generator)
    return torch.randn(queries, 6, generator=generator), features, labels


def oracle(query: Tensor, bank: Tensor, labels: Tensor, k: int, t: float, skip: set[int]) -> int:
    """One query, by the formula: sum of exp(cos/t) per class over the k most similar."""
    cosines = []
    for j in range(len(bank)):
        if j not in skip:
            cosines.append((torch.cosine_similarity(query, bank[j], dim=0).item(), int(labels[j])))
    votes: dict[int, float] = {}
    for cosine, label in sorted(cosines, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(cosine / t)
    return max(votes, key=lambda label: votes[label])


@pytest.mark.parametrize(("k", "t"), [(1, 0.07), (5, 0.07), (20, 0.1), (20, 1.0), (999, 0.5)])
def test_predictions_equal_the_formula(k: int, t: float) -> None:
    query, bank, labels = data(k)
    predicted = knn_predict(query, bank, labels, 5, k, t)
    assert predicted.tolist() == [oracle(q, bank, labels, k, t, set()) for q in query]


def test_chunks_and_scale_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank, labels = data(3)
    whole = knn_predict(query, bank, labels, 5, 10, 0.07)
    monkeypatch.setattr(vote, "VOTES", 4 * 10)
    monkeypatch.setattr(vote, "SIMILARITIES", 4 * 57 + 1)  # 4 queries
    assert knn_predict(query * 100, bank * 0.01, labels, 5, 10, 0.07).equal(whole)


def test_an_extreme_temperature_does_not_overflow() -> None:
    query, bank, labels = data(4)
    predicted = knn_predict(query, bank, labels, 5, 10, 1e-4)
    assert predicted.equal(knn_predict(query, bank, labels, 5, 1, 0.07))


@pytest.mark.lengthy
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_one_search_gives_the_classes_of_each_k(temperature: float) -> None:
    query, bank, labels = data(1, bank=300)
    found = knn_predict_each(query, bank, labels, 5, (200, 10, 100, 20, 999), temperature)
    assert list(found) == [10, 20, 100, 200, 300]
    for k, predicted in found.items():
        expected = [oracle(q, bank, labels, k, temperature, set()) for q in query]
        assert predicted.tolist() == expected, k
    assert not found[10].equal(found[200]), "the case cannot tell one k from another"


def features(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def cosines(query: Tensor, bank: Tensor) -> Tensor:
    return F.normalize(query.double(), dim=1) @ F.normalize(bank.double(), dim=1).T


@pytest.mark.parametrize(
    ("queries", "entries", "k"), [(1, 1, 1), (97, 65, 7), (33, 700, 20), (70, 300, 299)]
)
def test_the_nearest_are_those_of_a_sort_in_float64(
    queries: int, entries: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vote, "SIMILARITIES", 32 * 700)  # several chunks of queries
    query, bank = features(queries, 9, 1), features(entries, 9, 2)
    exact = cosines(query, bank)
    cosine, index = nearest(query, bank, k)
    expected = exact.numpy()[np.arange(queries)[:, None], np.argsort(-exact.numpy(), axis=1)[:, :k]]
    assert cosine.shape == index.shape == (queries, k)
    assert all(len(set(row)) == k for row in index.tolist())
    # at each rank the same cosine, and the places are where those cosines are
    torch.testing.assert_close(cosine.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, index), cosine.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["copies", "coarse", "collapsed", "nothing"])
def test_topk_of_whole_rows_decides_among_equals(kind: str) -> None:
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
    cosine, index = nearest(query, bank, 60)
    assert cosine.equal(whole.values)
    assert index.equal(whole.indices)


@pytest.mark.parametrize("images", [2, 50])
def test_an_entry_of_the_own_id_is_infinitely_far(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two images half of the bank is hidden: fewer entries are left than are asked for."""
    monkeypatch.setattr(vote, "SIMILARITIES", 32 * 300)
    query, bank, k = features(40, 9, 6), features(300, 9, 7), 180
    ids = torch.arange(40) % images, torch.arange(300) % images
    hidden = ids[0][:, None] == ids[1]
    exact = cosines(query, bank).masked_fill(hidden, -torch.inf)
    cosine, index = nearest(query, bank, k, ids)
    expected = exact.sort(dim=1, descending=True).values[:, :k]
    torch.testing.assert_close(cosine.double(), expected, rtol=0, atol=1e-6)
    assert (cosine == -torch.inf).any() == (images == 2)
    assert hidden.gather(1, index).equal(cosine == -torch.inf)
    assert all(len(set(row)) == k for row in index.tolist())


def test_strides_types_and_gradients_do_not_matter() -> None:
    query, bank = features(40, 9, 8), features(300, 9, 9)
    expected = nearest(query, bank, 20)
    strided = features(9, 40, 0).T.copy_(query), torch.zeros(300, 18)[:, ::2].copy_(bank)
    assert not any(tensor.is_contiguous() for tensor in strided)
    for found in (nearest(*strided, 20), nearest(query.requires_grad_(), bank.double(), 20)):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
        assert found[1].equal(expected[1])
        assert not found[0].requires_grad


def test_no_more_cosines_are_held_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    plain = torch.Tensor.topk

    def topk(similarity: Tensor, k: int, dim: int) -> Tensor:
        held.append(similarity.numel())
        return plain(similarity, k, dim)  # type: ignore[return-value]

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    monkeypatch.setattr(vote, "SIMILARITIES", 2**16)
    nearest(features(500, 4, 12), features(20_000, 4, 13), 50)
    assert len(held) > 100
    assert max(held) <= 2**16
