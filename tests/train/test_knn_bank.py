import torch

from stabkit.train.knn_bank import KnnBank
from tests.monitor.knn.test_vote import data, oracle


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


def test_a_restored_bank_goes_on_like_the_first() -> None:
    _, features, labels = data(7, bank=40)
    first, second = (KnnBank(16, 6, torch.device("cpu")) for _ in range(2))
    first.add(features[:20], labels[:20], torch.arange(20))
    second.load_state_dict({k: v for k, v in first.state_dict().items()})
    for bank in (first, second):
        bank.add(features[20:27], labels[20:27], torch.arange(20, 27))
    assert first.features.equal(second.features)
    assert first.ids.equal(second.ids)
