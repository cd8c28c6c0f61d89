from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import stabkit
from stabkit.monitor.layers import group_layers, in_order, layer_of, without_wrappers


def test_layers_of_a_vit_come_in_depth_order_under_the_project_words() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0)
    names = [f"backbone.{name}" for name, _ in vit.named_parameters()]
    names += ["projector.0.weight", "projector.1.bias", "predictor.0.weight"]
    layers, index = group_layers(names)
    expected = ["patch_embed", "cls_token", "pos_embed", "blocks.0", "blocks.1", "blocks.2"]
    assert layers == [*expected, "norm", "projector", "predictor"]
    assert [layers[i] for i in index] == [layer_of(name) for name in names]


def test_wrappers_do_not_hide_layers() -> None:
    name = "module._orig_mod.backbone.blocks.11.mlp.fc1.weight"
    assert layer_of(name) == "blocks.11"
    assert group_layers([f"module.{n}" for n in ("a.weight", "b.weight")])[0] == ["a", "b"]


def test_a_resnet_is_grouped_by_its_numbered_blocks() -> None:
    resnet = timm.create_model("resnet18", num_classes=0)
    layers, _ = group_layers([name for name, _ in resnet.named_parameters()])
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert layers == ["conv1", "bn1", *blocks]


def test_numbered_modules_are_layers_at_any_depth() -> None:
    language = ["encoder.layers.11.self_attn.in_proj_weight", "transformer.h.3.ln_1.bias"]
    language += ["encoder.layers.encoder_layer_2.mlp.0.weight", "encoder.norm.weight"]
    expected = ["encoder.layers.11", "transformer.h.3", "encoder.layers.encoder_layer_2", "encoder"]
    assert [layer_of(name) for name in language] == expected
    stem = ["patch_embed.proj.0.weight", "projector.layers.1.weight", "head.mlp.2.weight"]
    assert [layer_of(name) for name in stem] == ["patch_embed", "projector", "head"]


def test_names_without_wrappers() -> None:
    name = "module._orig_mod.backbone.blocks.1._orig_mod.attn.qkv.weight"
    assert without_wrappers(name) == "blocks.1.attn.qkv.weight"


class Part(nn.Module):
    """A block of a U-Net: a convolution, and a numbered part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + torch.tanh(self.mlp(self.proj(x)))
        return out


class UNet(nn.Module):
    """Registers the way up before the middle, as the usual code of diffusion models does."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4))
        self.token = nn.Parameter(torch.zeros(4))
        self.downs = nn.ModuleList([Part(), Part()])
        self.ups = nn.ModuleList([Part(), Part()])
        self.mid = Part()
        self.unused = nn.Linear(4, 4)
        self.final = nn.Linear(4, 4)
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time_mlp(x) + self.token
        for part in (*self.downs, self.mid, *self.ups):
            x = part(x)
        if self.fails and not self.training:
            raise RuntimeError("not made for evaluation")
        out: Tensor = self.final(x)
        return out


REGISTERED = [
    "time_mlp.0", "token", "time_mlp.2", "downs.0", "downs.1", "ups.0", "ups.1", "mid", "unused",
    "final",
]  # fmt: skip
EXECUTED = [
    "time_mlp.0", "token", "time_mlp.2", "downs.0", "downs.1", "mid", "unused", "ups.0", "ups.1",
    "final",
]  # fmt: skip


def test_depth_is_the_order_of_a_forward_where_there_is_a_probe(tmp_path: Path) -> None:
    def recorded(name: str, model: UNet, probe: stabkit.Probe | None) -> tuple[list[str], Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with stabkit.Monitor(
            model, optimizer, tmp_path / name, probe=probe, full_every=1
        ) as monitor:
            model(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
        rows = stabkit.open_run(tmp_path / name).signals()
        assert rows["layer"].astype(str).tolist() == monitor.layers
        norms = rows.set_index("layer")["param_norm"]
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert norms["mid"] > norms["unused"]  # each row holds its own layer's values
        return monitor.layers, weights

    probe = stabkit.Probe(view1=torch.ones(2, 4))
    found = {}
    for name, fails, given in (("no", False, None), ("yes", False, probe), ("bad", True, probe)):
        torch.manual_seed(0)
        found[name] = recorded(name, UNet(fails), given)
    assert found["no"][0] == REGISTERED
    assert found["yes"][0] == EXECUTED
    assert found["bad"][0] == REGISTERED
    assert found["no"][1].equal(found["yes"][1])


def test_layers_that_did_not_run_stay_behind_their_neighbors() -> None:
    assert in_order(["a", "b", "c", "d"], []) == ["a", "b", "c", "d"]
    assert in_order(["a", "b", "c", "d"], ["c", "a"]) == ["c", "d", "a", "b"]
    assert in_order(["a", "b"], ["b"]) == ["a", "b"]


def test_a_numbered_part_of_a_layer_is_none_of_its_own() -> None:
    def layers(*names: str) -> list[str]:
        return group_layers([f"{name}.weight" for name in names])[0]

    ups = ["ups.0.a", "ups.1.a"]
    assert layers(*ups, "mid.proj", "mid.a.mlp.1", "final.a.mlp.1") == [
        "ups.0", "ups.1", "mid", "final.a.mlp.1"
    ]  # fmt: skip
    # two of them may be blocks
    assert layers("enc.norm", "enc.h.0.a", "enc.h.1.a", "enc.b") == ["norm", "h.0", "h.1", "b"]
    assert layers("time.0", "time.2") == ["time.0", "time.2"]
