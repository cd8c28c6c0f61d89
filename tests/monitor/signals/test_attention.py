"""Attention and outputs of whole small models, against attention written out by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.monitor.layers import layer_of
from stabkit.monitor.probe import attention_logits as logits_module
from stabkit.monitor.probe.probe import Probe, ProbePass, looking
from stabkit.monitor.signals.attention import (
    AttentionEntropy,
    AttentionEntropyMean,
    AttentionLogit,
    OutputKurtosis,
    OutputRms,
)

# float32 on both sides; the sums are of at most a few hundred terms: 1e-7 each, so 1e-5 in all
close = {"rel": 2e-5, "abs": 2e-6}


def images(samples: int = 3) -> Tensor:
    return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def measured(model: nn.Module, view: Any, **probe: Any) -> dict[str, dict[str, float]]:
    signals = (AttentionLogit, AttentionEntropy, AttentionEntropyMean, OutputRms, OutputKurtosis)
    with looking(model) as bare:
        seen = ProbePass(bare, Probe(view, **probe), layer_of, [])
        found = {signal.name: signal().measure(seen) for signal in signals}
    return {name: {k: float(v) for k, v in values.items()} for name, values in found.items()}


def oracle(logits_BHTS: Tensor) -> tuple[float, float, float]:
    """Largest logit, smallest and mean entropy: one number after another, in Python floats."""
    table = logits_BHTS.tolist()
    largest = max(x for b in table for h in b for row in h for x in row)
    entropies = []
    for h in range(len(table[0])):
        rows = [row for b in table for row in b[h] if max(row) > -math.inf]
        total = 0.0
        for row in rows:
            weights = [math.exp(x - max(row)) for x in row]
            shares = [w / sum(weights) for w in weights]
            total -= sum(a * math.log(a) for a in shares if a > 0)
        entropies.append(total / len(rows) / math.log(len(table[0][0][0])))
    return largest, min(entropies), sum(entropies) / len(entropies)


def same(found: dict[str, dict[str, float]], layer: str, logits_BHTS: Tensor) -> None:
    largest, smallest, mean = oracle(logits_BHTS)
    assert found["attention_logit"][layer] == pytest.approx(largest, **close)
    assert found["attention_entropy"][layer] == pytest.approx(smallest, **close)
    assert found["attention_entropy_mean"][layer] == pytest.approx(mean, **close)
    assert smallest < mean < 1  # else the three could be mixed up


def sharpen(model: nn.Module, factor: float = 4.0) -> None:
    """Weights as large as training makes them: of small ones all entropies are near 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * factor / p.shape[-1] ** 0.5)


def small_vit(**options: Any) -> nn.Module:
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    vit: nn.Module = timm.create_model("vit_tiny_patch16_224", **size, num_classes=0, **options)
    sharpen(vit)
    return vit


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_timm_vit_fused_or_not(fused: bool, qk_norm: bool) -> None:
    vit: Any = small_vit(qk_norm=qk_norm)
    for block in vit.blocks:
        block.attn.fused_attn = fused
    found = measured(vit, images())
    vit.eval()
    x = vit._pos_embed(vit.patch_embed(images()))
    for i, block in enumerate(vit.blocks):
        attn = block.attn
        qkv = attn.qkv(block.norm1(x)).reshape(3, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
        same(found, f"blocks.{i}", q @ k.transpose(-2, -1) / math.sqrt(8))
        x = block(x)
        values = x.flatten().tolist()
        mean = sum(values) / len(values)
        second = sum((v - mean) ** 2 for v in values) / len(values)
        fourth = sum((v - mean) ** 4 for v in values) / len(values)
        rms = math.sqrt(sum(v * v for v in values) / len(values))
        assert found["output_rms"][f"blocks.{i}"] == pytest.approx(rms, **close)
        kurtosis = found["output_kurtosis"][f"blocks.{i}"]
        assert kurtosis == pytest.approx(fourth / second**2 - 3, rel=1e-4, abs=1e-5)
    assert list(found["output_rms"]) == ["patch_embed", "blocks.0", "blocks.1", "norm"]


class Language(nn.Module):
    """torch's own transformer layers, which in evaluation take a path of a single kernel."""

    def __init__(self, causal: bool, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
        self.embed = nn.Embedding(11, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.embed(tokens)
        out: Tensor = self.encoder(
            x,
            mask=mask if self.causal else None,
            is_causal=self.causal,
            src_key_padding_mask=padding if not self.causal else None,
        )
        return out[:, -1]


def by_hand(layer: Any, x: Tensor, masked: Tensor) -> Tensor:
    attn = layer.self_attn
    q, k, _ = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(-2, -1) / math.sqrt(8)).masked_fill(masked, -math.inf)


@pytest.mark.parametrize("masking", ["none", "causal", "padding"])
def test_torchs_transformer_layers_with_and_without_masks(masking: str) -> None:
    model = Language(masking == "causal")
    sharpen(model, 2.0)
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(3, 6, dtype=torch.bool)
    masked = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    if masking == "padding":
        padding[1, 4:] = True
        masked = padding[:, None, None, :]
    if masking == "causal":
        masked = torch.ones(6, 6, dtype=torch.bool).triu(1)
    found = measured(model, {"tokens": tokens, "padding": padding})
    model.eval()
    x = model.embed(tokens)
    for i, layer in enumerate(model.encoder.layers):
        same(found, f"encoder.layers.{i}", by_hand(layer, x, masked))
        x = layer(x, src_mask=masked if masking == "causal" else None,
                  src_key_padding_mask=padding if masking == "padding" else None)  # fmt: skip
    assert torch.backends.mha.get_fastpath_enabled()


class Asked(nn.Module):
    """nn.MultiheadAttention asked for its weights: three axes, samples and heads in one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.MultiheadAttention(16, 4, batch_first=True)])

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.blocks[0](x, x, x, need_weights=True)
        return out.mean(dim=1)


def test_heads_that_share_an_axis_with_samples_are_told_apart() -> None:
    model = Asked()
    sharpen(model)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3))
    found = measured(model, x)
    attn: Any = model.blocks[0]
    q, k, _ = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    q, k = (t.unflatten(-1, (4, 4)).transpose(1, 2) for t in (q, k))
    same(found, "blocks.0", q @ k.transpose(-2, -1) / 2)


class Eager(nn.Module):
    """Attention as transformer libraries write it.

    Separate projections, a mask of very negative numbers, softmax in float32, and keys that two
    query heads share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(16, 16),
            nn.Linear(16, 8),
            nn.Linear(16, 8),
        )
        self.gate = nn.Parameter(torch.ones(1, 16, 4))
        self.num_attention_heads = 4

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            p(x).unflatten(-1, (-1, 4)).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)

    def logits(self, x: Tensor) -> Tensor:
        q, k, _ = self.project(x)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        bias = torch.zeros(future.shape).masked_fill(future, torch.finfo(x.dtype).min)
        return torch.matmul(q, k.transpose(2, 3)) * 4**-0.5 + bias

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        attention = F.softmax(self.logits(x), dim=-1, dtype=torch.float32).to(x.dtype)
        out = torch.matmul(attention, self.project(x)[2]).transpose(1, 2).flatten(2)
        # no attention: a choice among four by weights
        chosen = torch.bmm(x, self.gate.expand(len(x), -1, -1)).mul(100).softmax(dim=-1)
        return out * chosen.amax(dim=-1, keepdim=True), None


class Grouped(Eager):
    """The same, fused, the sharing left to torch."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = self.project(x)
        out = F.scaled_dot_product_attention(
            q, k[:, ::2], v[:, ::2], is_causal=True, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2), None


class Layer(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.attention, self.norm = attention(), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x + self.attention(self.norm(x))[0],)


class Encoder(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(attention) for _ in range(2)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layer:
            (x,) = layer(x)
        return {"last_hidden_state": x}


@pytest.mark.parametrize("attention", [Eager, Grouped])
def test_a_transformers_style_tree(attention: type[Eager]) -> None:
    model = nn.ModuleDict({"encoder": Encoder(attention)})
    sharpen(model)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))
    found = measured(model, x, embed=lambda m, x: m["encoder"](x)["last_hidden_state"][:, 0])
    assert list(found["output_rms"]) == ["encoder.layer.0", "encoder.layer.1"]
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for i, layer in enumerate(model["encoder"].layer):
        logits = layer.attention.logits(layer.norm(x)).masked_fill(future, -math.inf)
        same(found, f"encoder.layer.{i}", logits)
        (x,) = layer(x)
        rms = float(x.detach().square().mean().sqrt())
        assert found["output_rms"][f"encoder.layer.{i}"] == pytest.approx(rms, **close)


def test_the_attentions_of_a_stage_are_one_layers() -> None:
    vit: Any = small_vit()
    found = measured(vit, images())

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # a numbered block of a numbered stage would be a layer of its own
            self.stages = nn.ModuleList([nn.ModuleDict({"vit": vit})])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = vit(x)
            return out

    staged = measured(Stage(), images())
    logit, low, mean = (list(found[name].values()) for name in list(found)[:3])
    assert logit[0] > logit[1]  # the first and the second of the two can be told apart
    assert low[0] < low[1]
    assert staged["attention_logit"] == {"stages.0": max(logit)}
    assert staged["attention_entropy"] == {"stages.0": min(low)}
    assert staged["attention_entropy_mean"]["stages.0"] == pytest.approx(sum(mean) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("resnet18", {}, [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]),
        (
            "convnext_atto",
            {"dims": (8,) * 4, "depths": (1,) * 4, "patch_size": 1},
            [f"stages.{i}.blocks.0" for i in range(4)],
        ),
    ],
)
def test_a_network_without_attention_still_has_outputs(
    name: str, options: dict[str, Any], layers: list[str]
) -> None:
    model: Any = timm.create_model(name, num_classes=0, **options)
    found = measured(model, images())
    assert found["attention_logit"] == found["attention_entropy"] == {}
    assert [k for k in found["output_rms"] if k in layers] == layers
    model.eval()
    features = model.forward_features(images()).detach()
    if name == "resnet18":
        rms = float(features.square().mean().sqrt())
        assert found["output_rms"][layers[-1]] == pytest.approx(rms, **close)


def test_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    vit: Any = small_vit()
    vit.blocks[1].attn.fused_attn = False
    whole = measured(vit, images())
    monkeypatch.setattr(logits_module, "CHUNK", 3 * 2 * 17 * 4)  # four of 17 queries at once
    parts = measured(vit, images())
    for name, values in whole.items():
        assert parts[name] == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [3, 6])
def test_fused_logits_with_masks_of_every_kind(
    keys: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with torch's attention, whose output is the probabilities for unit vectors."""
    monkeypatch.setattr(logits_module, "CHUNK", 2 * 2 * keys * 3)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 2, n, 8, generator=generator) for n in (6, keys))
    eye = torch.eye(keys).expand(2, 2, keys, keys)
    boolean = torch.rand(2, 1, 1, keys, generator=generator) > 0.3
    boolean[..., 0] = True
    masks = [None] if causal else [None, boolean, torch.randn(6, keys, generator=generator)]
    for mask in masks:
        expected = F.scaled_dot_product_attention(q, k, eye, mask, is_causal=causal, scale=0.7)
        chunks = list(logits_module.logits_of(q, k, mask, causal, 0.7))
        assert len(chunks) == 2
        found = torch.cat(chunks, dim=2).softmax(dim=-1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_queries_that_see_nothing_do_not_count() -> None:
    logits = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 1] = -math.inf
    largest, entropy = logits_module.summary(iter([logits]))
    expected = oracle(logits)
    assert [float(largest), float(entropy.min()), float(entropy.mean())] == pytest.approx(
        expected, **close
    )
    assert logits_module.summary(iter([logits[..., :1]]))[1].tolist() == [1, 1]


def test_infinite_and_undefined_logits_come_through() -> None:
    vit: Any = small_vit()
    with torch.no_grad():
        vit.blocks[1].attn.qkv.weight[0, 0] = math.nan
    found = measured(vit, images())
    assert math.isfinite(found["attention_logit"]["blocks.0"])
    for name, values in found.items():
        assert math.isnan(values["blocks.1"]), name


def test_five_axes_and_groups_of_heads() -> None:
    windows = torch.randn(2, 4, 3, 5, 6)  # samples, heads, windows
    torch.testing.assert_close(
        logits_module.with_heads(windows, 4)[1], windows[0, :, 1], rtol=0, atol=0
    )
    groups = torch.randn(2, 2, 3, 5, 6)  # six heads on two keys
    assert logits_module.with_heads(groups, 6).shape == (2, 6, 5, 6)
    first = torch.randn(2, 3, 4, 5, 6)  # samples, windows, heads
    torch.testing.assert_close(logits_module.with_heads(first, 4)[1], first[0, 1], rtol=0, atol=0)


def test_inference_mode_hides_nothing() -> None:
    vit = small_vit()
    expected = measured(vit, images())
    with torch.inference_mode():
        found = measured(vit, images())
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-6), name


def test_a_constant_output_has_no_kurtosis_and_a_large_one_a_finite() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.blocks(x)
            return out

    model = Constant()
    nn.init.zeros_(model.blocks[0][0].weight)  # type: ignore[index, arg-type]
    nn.init.zeros_(model.blocks[0][0].bias)  # type: ignore[index, arg-type]
    assert measured(model, torch.ones(2, 4))["output_kurtosis"] == {"blocks.0": 0}
    nn.init.constant_(model.blocks[0][0].weight, 1e15)  # type: ignore[index, arg-type]
    found = measured(model, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]))
    assert found["output_kurtosis"]["blocks.0"] == pytest.approx(-2)  # of two equal halves
