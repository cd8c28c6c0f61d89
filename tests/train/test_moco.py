import copy
import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from stabkit.config import MethodConfig, ModelConfig
from stabkit.train.moco import MoCo, chance_nats, info_nce, loss_nats
from stabkit.train.vit import build_vit

CONFIG = MethodConfig(hidden=16, out=8)


def small_moco(freeze: bool = False) -> MoCo:
    torch.manual_seed(0)
    shape = ModelConfig(patch_size=8, width=16, depth=1, heads=2, freeze_patch_embed=freeze)
    return MoCo(build_vit(shape, 16, fused_attention=False), 16, CONFIG)


def views(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(2, count, 3, 16, 16, generator=generator)
    return pair[0], pair[1]


def brute_force(query: Tensor, key: Tensor, temperature: float) -> float:
    """2τ times the mean of -log softmax, one logit at a time in Python floats."""
    total = 0.0
    for i in range(len(query)):
        logits = [
            float(torch.dot(query[i], key[j]) / (query[i].norm() * key[j].norm())) / temperature
            for j in range(len(key))
        ]
        total += math.log(sum(math.exp(x) for x in logits)) - logits[i]
    return 2 * temperature * total / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_loss_equals_the_sum_over_every_pair(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)
    expected = brute_force(query, key, temperature)
    assert float(info_nce(query, key, temperature)) == pytest.approx(expected, rel=1e-12)


def test_chance_is_four_tau_ln_n_and_one_in_relative_terms() -> None:
    """Published reference value: 6.65 at N = 4096 and τ = 0.2."""
    assert 4 * 0.2 * chance_nats(4096) == pytest.approx(6.65, abs=0.005)
    same = torch.ones(64, 5)  # a collapsed network: every key equally near
    loss = info_nce(same, same, 0.2) * 2
    assert float(loss_nats(loss, 0.2)) / chance_nats(64) == pytest.approx(1, rel=1e-6)


def test_a_step_by_hand_gives_the_same_loss() -> None:
    """Algorithm 1 written out: queries, then the momentum move, then keys, both directions."""
    moco = small_moco().double()
    view1, view2 = (view.double() for view in views())
    by_hand = copy.deepcopy(moco)
    with torch.no_grad():  # make the twin differ, so that the order of the move shows
        for p in moco.target.parameters():
            p.add_(0.1)
        by_hand.load_state_dict(moco.state_dict())
    loss, feature = moco(view1, view2, momentum=0.9)

    online, target = by_hand.online, by_hand.target
    feature1 = online.backbone(view1)
    query1 = online.predictor(online.projector(feature1))
    query2 = online.predictor(online.projector(online.backbone(view2)))
    slow = dict(target.named_parameters())
    for name, p in online.named_parameters():
        if name in slow:
            slow[name].data = 0.9 * slow[name] + 0.1 * p.data
    with torch.no_grad():
        key1 = target["projector"](target["backbone"](view1))
        key2 = target["projector"](target["backbone"](view2))
    expected = info_nce(query1, key2, 0.2) + info_nce(query2, key1, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(feature, feature1.detach())
    for name, p in moco.target.named_parameters():
        torch.testing.assert_close(p, slow[name])


def test_gradient_reaches_the_online_network_and_nothing_else() -> None:
    moco, (view1, view2) = small_moco(freeze=True), views()
    loss, feature = moco(view1, view2, 0.99)
    loss.backward()
    assert not feature.requires_grad
    without = {n for n, p in moco.online.named_parameters() if p.grad is None}
    assert without == {
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "backbone.patch_embed.proj.bias",
    }
    assert all(p.grad is None for p in moco.target.parameters())


def test_heads_have_the_published_shape() -> None:
    """No biases in linear layers, BN after each, ReLU between, last BN without scale and shift."""
    moco = small_moco()
    kinds = ["Linear", "BatchNorm1d", "ReLU"]
    projector, predictor = moco.online.projector, moco.online.predictor
    assert [type(m).__name__ for m in projector] == [*kinds, *kinds, *kinds[:2]]
    assert [type(m).__name__ for m in predictor] == [*kinds, *kinds[:2]]
    for head in (projector, predictor):
        assert all(m.bias is None for m in head if isinstance(m, torch.nn.Linear))
        assert head[-1].weight is None
        assert head[-1].bias is None
    assert "predictor" not in moco.target


def test_momentum_moves_parameters_but_not_batch_statistics() -> None:
    moco = small_moco()
    with torch.no_grad():
        moco.online.projector[1].running_mean += 5
    before = moco.target["projector"][1].running_mean.clone()
    moco.move_target(0.0)
    torch.testing.assert_close(moco.target["projector"][1].running_mean, before)
    for name, p in moco.target.named_parameters():
        torch.testing.assert_close(p, dict(moco.online.named_parameters())[name])


def _rank_loss(rank: int, path: str, query: Tensor, key: Tensor, result: Tensor) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    own = slice(3 * rank, 3 * rank + 3)
    leaf = query[own].clone().requires_grad_()
    loss = info_nce(leaf, key[own], 0.2)
    loss.backward()
    assert leaf.grad is not None
    result[own, 0] = loss.detach()
    result[own, 1:] = leaf.grad
    torch.distributed.destroy_process_group()


def test_keys_gathered_from_two_processes_give_the_single_process_loss(tmp_path) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(2, 6, 4, generator=generator)
    result = torch.zeros(6, 5).share_memory_()
    mp.start_processes(
        _rank_loss, (str(tmp_path / "store"), query, key, result), nprocs=2, start_method="fork"
    )
    leaf = query.clone().requires_grad_()
    loss = info_nce(leaf, key, 0.2)
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(result[[0, 3], 0].mean(), loss.detach())
    torch.testing.assert_close(result[:, 1:] / 2, leaf.grad)  # DDP averages over the processes
