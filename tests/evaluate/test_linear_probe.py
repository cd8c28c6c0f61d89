import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.evaluate.config import LinearConfig
from stabkit.evaluate.features import encode_set
from stabkit.evaluate.linear_probe import fit_heads, linear_probe, standardization, table
from stabkit.train.data.load import batch_index, load_data
from stabkit.train.data.views import plain_view
from stabkit.train.state import build_state
from tests.conftest import small_config

CPU = torch.device("cpu")
CONFIG = LinearConfig(lr=(0.02, 0.3, 2.0), epochs=6, batch=32)


def clusters(n: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return features [n, 9] of 5 classes with very unequal scales and offsets."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (n,), generator=generator)
    centers = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, 9, generator=generator)
    scale, offset = torch.logspace(-3, 3, 9), torch.linspace(-50, 50, 9)
    return (centers[labels] + spread * noise) * scale + offset * scale, labels


def ordinary_loop(features: Tensor, labels: Tensor, lr: float, config: LinearConfig) -> nn.Linear:
    """Train one rate the usual way: BN without parameters, nn.Linear, SGD, cosine; in float64."""
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    head = nn.Linear(x.shape[1], 5).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD(head.parameters(), lr=lr * config.batch / 256, momentum=0.9)
    steps = config.epochs * (len(x) // config.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    for step in range(steps):
        index = torch.from_numpy(batch_index(3, step, len(x), config.batch)[1])
        sgd.zero_grad()
        F.cross_entropy(head(x[index]), labels[index]).backward()
        sgd.step()
        schedule.step()
    return head


def test_training_all_rates_at_once_equals_an_ordinary_loop_for_each() -> None:
    features, labels = clusters(150, 1)  # 4 batches of 32 an epoch, 22 images left out
    heads = fit_heads(features, labels, 5, CONFIG, seed=3)
    predicted = heads.predict(features)
    for i, lr in enumerate(CONFIG.lr):
        expected = ordinary_loop(features, labels, lr, CONFIG)
        # Each of 24 steps in float32 is off by a few 1e-7, magnified by the largest rate.
        torch.testing.assert_close(heads.weight[i].double(), expected.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias[i].double(), expected.bias, rtol=1e-4, atol=1e-5)
        x = features.double()
        logits = expected((x - x.mean(0)) / x.std(0, correction=0))
        assert predicted[i].equal(logits.argmax(dim=1))


def test_standardization_undoes_scale_and_offset_and_survives_a_constant() -> None:
    features, _ = clusters(400, 2)
    features[:, 4] = 3.7
    mean, std = standardization(features)
    x = (features - mean) / std
    varying = [i for i in range(9) if i != 4]
    # Offsets are up to 50 deviations, so float32 is off by 50 · 6e-8.
    torch.testing.assert_close(x[:, varying].mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(x[:, varying].std(0, correction=0), torch.ones(8), rtol=1e-4, atol=0)
    assert x[:, 4].eq(0).all()


def test_the_probe_does_not_depend_on_the_gain_of_the_last_norm() -> None:
    """The gain made MoCo v3's probe sensitive to its learning rate (its repository, issue 20)."""
    features, labels = clusters(200, 4)
    heldout, answers = clusters(100, 5)
    plain = linear_probe(features, labels, heldout, answers, 5, CONFIG, 0)
    grown = linear_probe(64 * features, labels, 64 * heldout, answers, 5, CONFIG, 0)
    assert grown.heldout == plain.heldout  # equal to the last bit, since the gain is a power of two


def test_the_rate_is_chosen_without_the_held_out_images() -> None:
    features, labels = clusters(300, 6)
    heldout, answers = clusters(200, 7)
    probe = linear_probe(features, labels, heldout, answers, 5, CONFIG, 0)
    others = torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    scrambled = linear_probe(features, labels, heldout, others, 5, CONFIG, 0)
    assert (scrambled.best, scrambled.choosing) == (probe.best, probe.choosing)
    assert probe.choosing[probe.best] == max(probe.choosing)
    assert scrambled.heldout != probe.heldout
    assert probe.heldout[probe.best] == float((probe.predicted == answers).double().mean())
    # The images that choose the rate are not trained on. With random labels every rate is at
    # chance on them, 0.2; with 30 images the bound is 5 deviations above.
    torn = labels.clone()
    torn[:] = torch.randint(5, (300,), generator=torch.Generator().manual_seed(2))
    assert max(linear_probe(features, torn, heldout, answers, 5, CONFIG, 0).choosing) < 0.57


def test_a_head_that_is_not_finite_is_never_right() -> None:
    features, labels = clusters(64, 8)
    heads = fit_heads(features, labels, 5, CONFIG, 0)
    heads.weight[1, 2, 0] = float("nan")
    assert heads.predict(features)[1].eq(-1).all()
    assert heads.predict(features)[0].ge(0).all()


def test_the_table_names_the_chosen_rate() -> None:
    features, labels = clusters(100, 9)
    probe = linear_probe(features, labels, features, labels, 5, CONFIG, 0)
    lines = table(probe)
    assert [line.split()[0] for line in lines[1:]] == ["0.02", "0.3", "2"]
    assert [i for i, line in enumerate(lines[1:]) if line.endswith("chosen")] == [probe.best]


def test_a_backbone_is_probed_unchanged_and_from_the_seed() -> None:
    config = small_config()
    images, heldout = load_data(config.data)
    backbone = build_state(config, 1, CPU).model.online.backbone
    before = copy.deepcopy(backbone.state_dict())
    rng = torch.get_rng_state()
    probes = []
    for seed in (0, 0, 1):
        data = *encode_set(backbone, images, 16, CPU), *encode_set(backbone, heldout, 16, CPU)
        probes.append(linear_probe(*data, len(images.classes), CONFIG, seed))
    assert all(t.equal(before[name]) for name, t in backbone.state_dict().items())
    assert torch.get_rng_state().equal(rng)
    assert probes[0].predicted.equal(probes[1].predicted)
    assert probes[0].choosing == probes[1].choosing
    assert not (probes[0].choosing == probes[2].choosing and probes[0].heldout == probes[2].heldout)


def test_one_image_cannot_be_probed() -> None:
    with pytest.raises(ValueError, match="2 training images or more, not 1"):
        linear_probe(*clusters(1, 0), *clusters(5, 0), 5, CONFIG, 0)


def test_cached_features_give_the_heads_of_an_ordinary_loop_through_the_frozen_backbone() -> None:
    """Train the usual way: images through the backbone at every step, one rate, nn.Linear, SGD."""
    config = small_config()
    images, _ = load_data(config.data)
    backbone = build_state(config, 1, CPU).model.online.backbone
    before = copy.deepcopy(backbone.state_dict())
    settings = LinearConfig(lr=(0.3,), epochs=3, batch=16)
    features, labels = encode_set(backbone, images, 16, CPU)
    heads = fit_heads(features, labels, 10, settings, seed=3)

    backbone.eval()
    mean, std = features.mean(0), features.std(0, correction=0)
    head = nn.Linear(16, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD(head.parameters(), lr=0.3 * 16 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 12)
    for step in range(12):
        index = batch_index(3, step, len(images), 16)[1]
        with torch.no_grad():
            x = (backbone(plain_view(images.load(index), 16)) - mean) / std
        sgd.zero_grad()
        F.cross_entropy(head(x), labels[torch.from_numpy(index)]).backward()
        sgd.step()
        schedule.step()
    torch.testing.assert_close(heads.weight[0], head.weight.detach(), rtol=1e-3, atol=1e-5)
    assert all(t.equal(before[name]) for name, t in backbone.state_dict().items())


def test_the_prediction_is_that_of_heads_trained_on_all_images() -> None:
    features, labels = clusters(150, 1)
    heldout, held_labels = clusters(80, 2)
    probe = linear_probe(features, labels, heldout, held_labels, 5, CONFIG, seed=3)
    everything = fit_heads(features, labels, 5, CONFIG, seed=3).predict(heldout)
    assert probe.predicted.equal(everything[probe.best])
    assert probe.heldout == pytest.approx(
        [float((row == held_labels).double().mean()) for row in everything]
    )


def test_rates_that_all_diverge_raise_an_error() -> None:
    features, labels = clusters(150, 1)
    config = LinearConfig(lr=(1e38, 3e38), epochs=20, batch=128)
    with pytest.raises(ValueError, match=r"lower linear\.lr"):
        linear_probe(features, labels, features, labels, 5, config, seed=3)
