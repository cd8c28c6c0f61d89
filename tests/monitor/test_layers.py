import timm

from stabkit.monitor.layers import group_layers, layer_of, without_wrappers


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
