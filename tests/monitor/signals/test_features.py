import math
import statistics
from typing import Any

import pytest
import timm
import torch
from torch import nn

from stabkit.monitor.layers import layer_of
from stabkit.monitor.probe.probe import Probe, ProbePass, looking
from stabkit.monitor.signals.distances import OutputGradNorm, TargetDistance
from stabkit.monitor.signals.features import (
    Alignment,
    ProbeFeatureStd,
    ProbeRank,
    TargetCosine,
    Uniformity,
    alignment,
    effective_rank,
    feature_std,
    mean_cosine,
    uniformity,
)


def gaussian(images: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(images, dim, generator=generator)


def test_spread_out_features_have_std_one_over_root_d() -> None:
    """4000 images: the standard deviation is known to about 1/√(2·4000), 1%."""
    assert float(feature_std(gaussian(4000, 64))) == pytest.approx(1 / math.sqrt(64), rel=0.01)
    assert float(feature_std(torch.ones(8, 1) * gaussian(1, 64))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_rank_is_the_entropy_of_the_singular_values(shape: tuple[int, int]) -> None:
    feature = gaussian(*shape)
    singular = torch.linalg.svdvals(feature.double())
    share = (singular / singular.sum()).tolist()
    expected = math.exp(-sum(p * math.log(p) for p in share))
    assert float(effective_rank(feature)) == pytest.approx(expected, rel=1e-9)
    assert 1 < expected < 6


def test_rank_counts_directions_in_use() -> None:
    eye = torch.eye(16, 8)
    assert float(effective_rank(eye)) == pytest.approx(8)
    eye[:, 3:] = 0
    assert float(effective_rank(eye)) == pytest.approx(3)
    # rounding of the Gram matrix leaves singular values of about 1e-8 of the largest
    assert float(effective_rank(gaussian(1, 8).repeat(20, 1))) == pytest.approx(1, abs=1e-5)
    assert float(effective_rank(torch.zeros(8, 4))) == 1


def test_features_that_are_not_finite_have_no_rank_but_stop_nothing() -> None:
    feature = gaussian(8, 4)
    feature[2, 1] = float("nan")
    assert effective_rank(feature).isnan()
    assert feature_std(feature).isnan()


def unit(feature: torch.Tensor) -> list[list[float]]:
    rows = feature.tolist()
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def squared(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def test_std_alignment_uniformity_and_cosine_equal_loops_over_samples() -> None:
    one, other = gaussian(7, 5), gaussian(14, 5)[7:]
    a, b = unit(one), unit(other)
    stds = [statistics.stdev(row[d] for row in a) for d in range(5)]
    assert float(feature_std(one)) == pytest.approx(sum(stds) / 5, rel=1e-6)
    expected = sum(squared(x, y) for x, y in zip(a, b, strict=True)) / 7
    assert float(alignment(one, other)) == pytest.approx(expected, rel=1e-6)
    kernels = [math.exp(-2 * squared(a[i], a[j])) for i in range(7) for j in range(7) if i != j]
    assert float(uniformity(one)) == pytest.approx(math.log(sum(kernels) / 42), rel=1e-6)
    cosines = [sum(x * y for x, y in zip(r, s, strict=True)) for r, s in zip(a, b, strict=True)]
    assert float(mean_cosine(one, other)) == pytest.approx(sum(cosines) / 7, rel=1e-6)


def test_bounds_of_alignment_and_uniformity() -> None:
    one = gaussian(6, 3)
    assert float(alignment(one, -5 * one)) == pytest.approx(4)
    assert float(uniformity(torch.ones(4, 1) * one[:1])) == pytest.approx(0, abs=1e-12)
    assert float(uniformity(torch.stack([one[0], -one[0]]))) == pytest.approx(-8)


def small_vit(seed: int) -> Any:
    torch.manual_seed(seed)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **size, num_classes=0)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def see(model: nn.Module, **parts: Any) -> ProbePass:
    return ProbePass(model, Probe(IMAGES, **parts), layer_of, [])


def test_signals_of_the_run_are_the_formulas_on_the_probes_features() -> None:
    model, target = small_vit(0), small_vit(1).train()
    second = IMAGES.flip(3)
    with looking(model):
        seen = see(model, view2=second, target=target)
        found = {
            signal.name: signal().measure(seen)
            for signal in (ProbeFeatureStd, ProbeRank, Alignment, Uniformity, TargetCosine)
        }
    assert target.training
    with torch.no_grad():
        one, two, other = model.eval()(IMAGES), model(second), target.eval()(IMAGES)
    assert found == {
        "probe_feature_std": feature_std(one),
        "probe_rank": effective_rank(one),
        "alignment": alignment(one, two),
        "uniformity": uniformity(one),
        "target_cosine": mean_cosine(one, other),
    }
    assert float(found["alignment"]) > 0
    assert float(found["target_cosine"]) < 0.9


def test_target_distance_of_each_layer() -> None:
    model, target = small_vit(0), small_vit(1)
    target.norm = nn.Identity()
    wrapped = torch.optim.swa_utils.AveragedModel(target)
    found = TargetDistance().measure(see(nn.ModuleDict({"backbone": model}), target=wrapped))
    assert "norm" not in found
    assert set(found) == {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1"}
    of_target = dict(target.named_parameters())
    for layer, distance in found.items():
        apart = size = 0.0
        for name, p in model.named_parameters():
            if layer_of(name) == layer:
                values = p.flatten().tolist(), of_target[name].flatten().tolist()
                apart += sum((x - y) ** 2 for x, y in zip(*values, strict=True))
                size += sum(x * x for x in values[0])
        # float32 sums of up to 2,000 squares
        assert float(distance) == pytest.approx(math.sqrt(apart / size), rel=1e-5)
        assert float(distance) > 0.05


def test_a_target_of_another_network_is_refused() -> None:
    other = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"no parameter of the model's names.*cls_token.*weight"):
        TargetDistance().measure(see(small_vit(0), target=other))
    narrow = small_vit(1)
    narrow.norm = nn.LayerNorm(8)
    with pytest.raises(ValueError, match=r"norm\.weight of shape \(8,\), the model of \(16,\)"):
        TargetDistance().measure(see(small_vit(0), target=narrow))


def loss_of(model: nn.Module) -> torch.Tensor:
    return model(IMAGES).pow(3).sum() + model(IMAGES.flip(3)).square().sum()


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_at_the_patch_projection_also_when_it_is_frozen(frozen: bool) -> None:
    """Against the retained gradients of a backward pass, over both views of the loss."""
    model = small_vit(0).eval()
    model.patch_embed.norm = nn.LayerNorm(16)  # the projection's output is not the patch_embed's
    for p in model.parameters():
        p.data.mul_(3)  # so that the gradient is not tiny
    model.patch_embed.requires_grad_(not frozen)
    found = OutputGradNorm().measure(see(model, loss=loss_of))
    assert all(p.grad is None for p in model.parameters())
    assert all(
        p.requires_grad != (frozen and "patch_embed" in n) for n, p in model.named_parameters()
    )

    model.patch_embed.requires_grad_(True)
    kept = []
    model.patch_embed.register_forward_hook(lambda m, x, y: (y.retain_grad(), kept.append(y))[1])
    loss_of(model).backward()
    assert len(kept) == 2
    expected = math.sqrt(sum(float(y.grad.square().sum()) for y in kept))
    assert list(found) == ["patch_embed"]
    assert float(found["patch_embed"]) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3


def test_without_a_patch_embed_it_is_the_first_projection_called() -> None:
    """Registered last, called first, inside a module that has parameters too."""

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.ones(8))
            self.projection = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.projection(x) + self.position
            return out

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Linear(8, 2), nn.Linear(3, 3), Embeddings()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(2 * self.first(x))
            return out

    torch.manual_seed(0)
    model, x = Model(), torch.randn(5, 4)
    found = OutputGradNorm().measure(see(model, loss=lambda m: m(x).square().sum()))
    gradient = 2 * model(x) @ (2 * model.last.weight)  # chain rule by hand
    assert found["first"] == pytest.approx(float(gradient.detach().norm()), rel=1e-5)
    assert len(found) == 1


def test_a_loss_that_does_not_reach_the_first_layer_has_no_gradient_there() -> None:
    model = small_vit(0)
    detached = see(model, loss=lambda m: m.norm(m.patch_embed(IMAGES).detach()).sum())
    assert OutputGradNorm().measure(detached) == {}

    def with_momentum(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            goal = model(IMAGES)  # as the target of a method is made
        loss: torch.Tensor = (model(IMAGES.flip(3)) - goal).square().sum()
        return loss

    assert list(OutputGradNorm().measure(see(model, loss=with_momentum))) == ["patch_embed"]
    both = nn.ModuleDict({"momentum": small_vit(1), "online": model})

    def of_both(both: nn.ModuleDict) -> torch.Tensor:
        with torch.no_grad():
            goal = both["momentum"](IMAGES)
        loss: torch.Tensor = (both["online"](IMAGES) - goal).square().sum()
        return loss

    assert list(OutputGradNorm().measure(see(both, loss=of_both))) == ["online"]
    constant = see(model, loss=lambda m: torch.ones(()))
    assert OutputGradNorm().measure(constant) == {}
