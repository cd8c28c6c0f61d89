import pytest
import torch

from stabkit.evaluate.features import encode_set
from stabkit.train.data.load import load_data
from stabkit.train.data.views import plain_view
from stabkit.train.state import build_state
from tests.conftest import small_config

CPU = torch.device("cpu")


def test_features_are_those_of_the_plain_view_in_the_order_of_the_set() -> None:
    config = small_config("data.num_train=600")  # three chunks
    images, _ = load_data(config.data)
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
        # For one image instead of a chunk, products are summed in another order.
        torch.testing.assert_close(features[i], backbone(view)[0], rtol=1e-4, atol=1e-5)


def test_features_that_are_not_finite_are_refused() -> None:
    config = small_config()
    images, _ = load_data(config.data)
    backbone = build_state(config, 1, CPU).model.online.backbone
    backbone.norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        encode_set(backbone, images, 16, CPU)
