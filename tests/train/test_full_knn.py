import pytest
import torch
from torch import Tensor

from stabkit.monitor.knn import knn_predict
from stabkit.train import full_knn as module
from stabkit.train.data import load_data
from stabkit.train.features import encode_set
from stabkit.train.full_knn import full_knn
from stabkit.train.state import build_state
from stabkit.train.views import plain_view
from tests.conftest import small_config

CPU = torch.device("cpu")


def data(seed: int, queries: int = 41, bank: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(7, (bank,), generator=generator)
    centres = torch.randn(7, 12, generator=generator)
    features = centres[labels] + 2 * torch.randn(bank, 12, generator=generator)
    return torch.randn(queries, 12, generator=generator), features, labels


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_one_search_gives_what_each_k_gives_on_its_own(temperature: float) -> None:
    query, bank, labels = data(1)
    found = full_knn(query, bank, labels, 7, (200, 10, 100, 20), temperature)
    assert list(found) == [10, 20, 100, 200]
    for k, predicted in found.items():
        assert predicted.equal(knn_predict(query, bank, labels, 7, k, temperature)), k
    assert not found[10].equal(found[200]), "the case cannot tell one k from another"


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, bank, labels = data(2)
    whole = full_knn(query, bank, labels, 7, (5, 50), 0.07)
    monkeypatch.setattr(module, "SIMILARITIES", 3 * len(bank) + 1)  # 3 queries
    parts = full_knn(query, bank, labels, 7, (5, 50), 0.07)
    assert all(parts[k].equal(whole[k]) for k in whole)


def test_k_is_capped_at_the_bank_and_given_once() -> None:
    query, bank, labels = data(3, bank=30)
    found = full_knn(query, bank, labels, 7, (10, 100, 200), 0.07)
    assert list(found) == [10, 30]
    assert found[30].equal(knn_predict(query, bank, labels, 7, 200, 0.07))


def test_features_are_those_of_the_plain_view_in_the_order_of_the_set() -> None:
    config = small_config("data.num_train=600")  # three chunks
    images, _ = load_data(config.data, 0)
    backbone = build_state(config, 1, CPU).model.online.backbone
    backbone.train()
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    features, labels = encode_set(backbone, images, 16, CPU)
    assert backbone.training
    assert labels.tolist() == images.labels.tolist()
    assert all(t.equal(before[name]) for name, t in backbone.state_dict().items())
    backbone.eval()
    for i in (0, 255, 256, 599):
        view = plain_view(images.read(labels.new_tensor([i]).numpy()), 16)
        # one image instead of a chunk: products are summed in another order
        torch.testing.assert_close(features[i], backbone(view)[0], rtol=1e-4, atol=1e-5)


def test_features_that_are_not_finite_are_refused() -> None:
    config = small_config()
    images, _ = load_data(config.data, 0)
    backbone = build_state(config, 1, CPU).model.online.backbone
    backbone.norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        encode_set(backbone, images, 16, CPU)
