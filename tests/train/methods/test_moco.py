import copy
import math

import pytest
import torch
from torch import Tensor

from stabkit.config import MethodConfig
from stabkit.config.schedule import momentum_at
from stabkit.train.methods.moco import KeyQueue, MoCo, chance_nats, info_nce
from tests.train.small import (
    FROZEN,
    kinds,
    loss_and_gradients,
    on_two_processes,
    random_pair,
    small,
    views,
    without_gradient,
)


def moved(moco: MoCo) -> MoCo:
    """Shift the twin, so that its moves show."""
    with torch.no_grad():
        for p in moco.target.parameters():
            p.add_(0.1)
    return moco


def brute_force(
    query: Tensor, key: Tensor, temperature: float, past: Tensor | None = None
) -> float:
    """Return the mean of -log softmax, one logit at a time; `past` keys come last."""
    total = 0.0
    everyone = key if past is None else torch.cat([key, past])
    for i in range(len(query)):
        logits = [
            float(torch.dot(query[i], k) / (query[i].norm() * k.norm())) / temperature
            for k in everyone
        ]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[i]
    return total / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_equals_the_sum_over_every_pair(temperature: float) -> None:
    query, key = random_pair(7, 5)
    expected = brute_force(query, key, temperature)
    scaled = float(info_nce(query, key, temperature))
    assert scaled == pytest.approx(2 * temperature * expected, rel=1e-12)
    plain = float(info_nce(query, key, temperature, scale_loss=False))
    assert plain == pytest.approx(expected, rel=1e-12)


def test_chance_is_four_tau_ln_n_and_one_in_relative_terms() -> None:
    """Compare with the published reference value: 6.65 at N = 4096 and τ = 0.2."""
    assert 4 * 0.2 * chance_nats(4096) == pytest.approx(6.65, abs=0.005)
    same = torch.ones(64, 5)  # a collapsed network, for which all keys are equally near
    for scale in (True, False):
        loss = info_nce(same, same, 0.2, scale) * 2
        scalars = small(MoCo, scale_loss=scale).loss_scalars(loss, 64)
        assert float(scalars["loss_nats"]) == pytest.approx(math.log(64), rel=1e-6)
        assert float(scalars["loss_relative"]) == pytest.approx(1, rel=1e-6)


def test_a_step_by_hand_gives_the_same_loss() -> None:
    """Write out Algorithm 1: queries, then the momentum move, then keys, in both directions."""
    moco = moved(small(MoCo))
    view1, view2, labels = views()
    by_hand = copy.deepcopy(moco)
    loss, feature, _ = moco(view1, view2, labels, 0.9, 0)

    online, target = by_hand.online, by_hand.target
    feature1 = online.backbone(view1)
    query1 = online.predictor(online.projector(feature1))
    query2 = online.predictor(online.projector(online.backbone(view2)))
    slow = dict(target.named_parameters())
    for name, p in online.named_parameters():
        if name in slow:
            slow[name].data = 0.9 * slow[name] + 0.1 * p.data
    with torch.no_grad():
        key1 = target.projector(target.backbone(view1))
        key2 = target.projector(target.backbone(view2))
    expected = info_nce(query1, key2, 0.2) + info_nce(query2, key1, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(feature, feature1.detach())
    for name, p in moco.target.named_parameters():
        torch.testing.assert_close(p, slow[name])


def test_gradient_reaches_the_online_network_and_nothing_else() -> None:
    moco = small(MoCo, freeze=True)
    loss, feature, _ = moco(*views(), 0.99, 0)
    loss.backward()
    assert not feature.requires_grad
    assert without_gradient(moco) == FROZEN
    assert all(p.grad is None for p in moco.target.parameters())


def test_heads_have_the_published_shape() -> None:
    """No biases in linear layers, BN after each, ReLU between, last BN without scale and shift."""
    moco = small(MoCo)
    layer = ["Linear", "BatchNorm1d", "ReLU"]
    projector, predictor = moco.online.projector, moco.online.predictor
    assert kinds(projector) == [*layer, *layer, *layer[:2]]
    assert kinds(predictor) == [*layer, *layer[:2]]
    for head in (projector, predictor):
        assert all(m.bias is None for m in head.children() if isinstance(m, torch.nn.Linear))
        assert list(head.children())[-1].weight is None
        assert list(head.children())[-1].bias is None
    assert not hasattr(moco.target, "predictor")


def test_heads_follow_their_switches() -> None:
    none = small(MoCo, head_norm="none")
    assert kinds(none.target.projector) == kinds(none.online.projector)
    layer = ["Linear", "BatchNorm1d", "ReLU"]
    resnet = small(MoCo, projector_layers=2, predictor_norm="hidden")  # the paper's for ResNet
    assert kinds(resnet.online.projector) == [*layer, *layer[:2]]
    assert kinds(resnet.online.predictor) == [*layer, "Linear"]


def test_without_a_predictor_queries_are_projections() -> None:
    moco = small(MoCo, predictor=False)
    assert not any("predictor" in name for name, _ in moco.named_parameters())
    view1, view2, labels = views()
    loss, *_ = moco(view1, view2, labels, 0.0, 0)
    first, second = (moco.online.projector(moco.online.backbone(v)) for v in (view1, view2))
    torch.testing.assert_close(loss, info_nce(first, second, 0.2) + info_nce(second, first, 0.2))


def test_momentum_moves_parameters_but_not_batch_statistics() -> None:
    moco = moved(small(MoCo))
    with torch.no_grad():
        moco.online.projector[1].running_mean += 5
    before = moco.target.projector[1].running_mean.clone()
    moco.target.follow(moco.online, 0.0)
    assert moco.target.projector[1].running_mean.equal(before)
    online = dict(moco.online.named_parameters())
    for name, p in moco.target.named_parameters():
        assert p.equal(online[name]), f"{name}: momentum 0 is a copy to the last bit"


def test_momentum_0_stays_0_under_the_cosine_too() -> None:
    config = MethodConfig(momentum=0)
    assert {momentum_at(step, 100, config) for step in range(101)} == {0}


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999])
def test_the_twin_is_the_weighted_mean_of_all_past_weights(momentum: float) -> None:
    """Compare with θ_T = m^T θ_0 + (1-m) Σ m^(T-t) w_t, for weights that move every step."""
    moco = moved(small(MoCo))
    slow = moco.target.projector[0].weight
    fast = moco.online.projector[0].weight
    expected, seen = momentum**5 * slow.detach().clone(), []
    for _ in range(5):
        with torch.no_grad():
            fast.add_(0.3)
        seen.append(fast.detach().clone())
        moco.target.follow(moco.online, momentum)
    for age, weight in enumerate(reversed(seen)):
        expected += (1 - momentum) * momentum**age * weight
    torch.testing.assert_close(slow.detach(), expected)


def test_queue_is_first_in_first_out_and_of_unit_keys() -> None:
    queue = KeyQueue(5, 4).double()
    keys = torch.nn.functional.normalize(random_pair(12, 4)[0], dim=1)
    queue.add(3 * keys[:3])
    assert queue.similarity(keys[:2]).isinf().tolist() == [[False] * 3 + [True] * 2] * 2
    queue.add(keys[3:6])
    torch.testing.assert_close(queue.keys, keys[[5, 1, 2, 3, 4]])
    queue.add(keys[5:12])  # more than it holds
    assert sorted(queue.keys[:, 0].tolist()) == pytest.approx(sorted(keys[7:, 0].tolist()))
    assert int(queue.added) == 13


def test_queued_keys_are_negatives_of_the_next_steps() -> None:
    """Compute the steps by hand: the first sees an empty queue, the second the first's 12 keys."""
    moco = small(MoCo, queue=20, momentum=0.5)
    view1, view2, labels = views()
    losses, expected = [], []
    past = torch.zeros(0, 8, dtype=torch.float64)
    for step, shift in enumerate((0.0, 0.1, 0.2)):
        loss, *_ = moco(view1 + shift, view2 - shift, labels, 0.5, step)
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            queries = [moco.online(v)[2] for v in (view1 + shift, view2 - shift)]
            keys = [moco.target(v) for v in (view1 + shift, view2 - shift)]
        pairs = zip(queries, reversed(keys), strict=True)
        expected.append(sum(0.4 * brute_force(q, k, 0.2, past) for q, k in pairs))
        held = len(past)
        past = torch.cat([past, *keys])[-20:]
        relative = moco.loss_scalars(loss.detach(), 6)["loss_relative"]
        nats = losses[-1] / (4 * 0.2)
        assert float(relative) == pytest.approx(nats / math.log(6 + held), rel=1e-6)
    assert losses == pytest.approx(expected, rel=1e-12)


def test_queue_has_no_gradient_and_is_in_the_checkpoint() -> None:
    moco = small(MoCo, queue=20)
    assert {"queue.keys", "queue.added"} <= moco.state_dict().keys()
    for step in range(2):
        moco(*views(), 0.9, step)[0].backward()
    assert moco.queue is not None
    assert not moco.queue.keys.requires_grad
    assert not list(moco.queue.parameters())
    assert not any(name.startswith("queue") for name in small(MoCo).state_dict())


def test_keys_gathered_from_two_processes_give_the_single_process_loss(tmp_path) -> None:
    query, key = random_pair(6, 4, seed=3)

    def loss_of(query: Tensor, key: Tensor) -> Tensor:
        return info_nce(query, key, 0.2)

    loss, grads = loss_and_gradients(loss_of, query, key)
    assert grads[1].abs().max() == 0, "keys get no gradient"
    torch.testing.assert_close(on_two_processes(loss_of, query, key, tmp_path), (loss, grads))
