import math

import pytest
import torch
from torch import Tensor

from stabkit.train import knn, nearest
from stabkit.train.knn import KnnBank, knn_predict, knn_predict_each


def data(seed: int, queries: int = 23, bank: int = 57) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (bank,), generator=generator)
    centres = torch.randn(5, 6, generator=generator)
    features = centres[labels] + 1.5 * torch.randn(bank, 6, generator=generator)
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
    monkeypatch.setattr(knn, "VOTES", 4 * 10)
    monkeypatch.setattr(nearest, "SIMILARITIES", 4 * 57 + 1)  # 4 queries
    assert knn_predict(query * 100, bank * 0.01, labels, 5, 10, 0.07).equal(whole)
    monkeypatch.setattr(nearest, "NUMPY_THREADS", 0)  # by topk
    assert knn_predict(query * 100, bank * 0.01, labels, 5, 10, 0.07).equal(whole)
    monkeypatch.setattr(nearest, "NORMALISED", 25)
    assert knn_predict(query * 100, bank * 0.01, labels, 5, 10, 0.07).equal(whole)


def test_an_extreme_temperature_does_not_overflow() -> None:
    query, bank, labels = data(4)
    nearest = knn_predict(query, bank, labels, 5, 10, 1e-4)
    assert nearest.equal(knn_predict(query, bank, labels, 5, 1, 0.07))


def test_the_bank_holds_the_newest_and_never_votes_on_the_same_image() -> None:
    query, features, labels = data(5, queries=6, bank=40)
    bank = KnnBank(16, 6, torch.device("cpu"))
    ids = torch.arange(40) % 9  # every image is there several times
    for start in range(0, 40, 7):
        bank.add(features[start : start + 7], labels[start : start + 7], ids[start : start + 7])
    assert len(bank) == 16
    newest = slice(40 - 16, 40)
    query_ids = torch.arange(6)
    predicted = bank.predict(query, query_ids, 5, 4, 0.07)
    expected = []
    for q, own in zip(query, query_ids.tolist(), strict=True):
        skip = {j for j in range(16) if int(ids[newest][j]) == own}
        expected.append(oracle(q, features[newest], labels[newest], 4, 0.07, skip))
    assert predicted.tolist() == expected


def test_a_batch_larger_than_the_bank_leaves_its_last_entries() -> None:
    _, features, labels = data(6, bank=40)
    bank = KnnBank(16, 6, torch.device("cpu"))
    bank.add(features[:3], labels[:3], torch.arange(3))
    bank.add(features, labels, torch.arange(40))
    assert sorted(bank.ids.tolist()) == list(range(24, 40))


def test_a_restored_bank_goes_on_as_if_never_interrupted() -> None:
    _, features, labels = data(7, bank=40)
    first, second = (KnnBank(16, 6, torch.device("cpu")) for _ in range(2))
    first.add(features[:20], labels[:20], torch.arange(20))
    second.load_state_dict({k: v for k, v in first.state_dict().items()})
    for bank in (first, second):
        bank.add(features[20:27], labels[20:27], torch.arange(20, 27))
    assert first.features.equal(second.features)
    assert first.ids.equal(second.ids)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_one_search_gives_what_each_k_gives_on_its_own(temperature: float) -> None:
    query, bank, labels = data(1, bank=300)
    found = knn_predict_each(query, bank, labels, 5, (200, 10, 100, 20, 999), temperature)
    assert list(found) == [10, 20, 100, 200, 300]
    for k, predicted in found.items():
        expected = [oracle(q, bank, labels, k, temperature, set()) for q in query]
        assert predicted.tolist() == expected, k
    assert not found[10].equal(found[200]), "the case cannot tell one k from another"
