import copy

import numpy as np
import pytest
import torch

from stabkit.config.schedule import warmup_cosine
from stabkit.evaluate.config import FinetuneConfig
from stabkit.evaluate.features import encode_set
from stabkit.evaluate.finetune import (
    build_optimizer,
    classifier,
    finetune,
    layer_scales,
    load_crops,
    numpy_seed,
)
from stabkit.train.data.load import load_data
from stabkit.train.data.views import plain_view
from stabkit.train.state import build_state
from tests.conftest import small_config

CPU = torch.device("cpu")


def backbone_of(*overrides: str) -> torch.nn.Module:
    return build_state(small_config(*overrides), 1, CPU).model.online.backbone


def test_layer_decay_follows_the_formula_on_a_vit() -> None:
    model = classifier(backbone_of("model.depth=3"), 10)
    names = [name for name, _ in model.named_parameters()]
    scales = dict(zip(names, layer_scales(names, 0.5), strict=True))
    # BEiT: 0.5^(depth + 1 - layer); layer 0 the patches and tokens, depth + 1 the norm and head
    expected = {
        "backbone.cls_token": 1 / 16,
        "backbone.pos_embed": 1 / 16,
        "backbone.patch_embed.proj.weight": 1 / 16,
        "backbone.blocks.0.attn.qkv.weight": 1 / 8,
        "backbone.blocks.1.mlp.fc2.bias": 1 / 4,
        "backbone.blocks.2.norm1.weight": 1 / 2,
        "backbone.norm.weight": 1.0,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }
    assert {name: scales[name] for name in expected} == expected
    assert set(scales.values()) == {1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0}


def test_layer_decay_on_a_resnet_and_on_a_net_without_blocks() -> None:
    resnet = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.1.conv1.weight"]
    resnet += ["layer2.0.conv1.weight", "head.weight"]
    assert layer_scales(resnet, 0.5) == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]
    assert layer_scales(["body.weight", "norm.weight", "head.weight"], 0.5) == [0.5, 0.5, 1.0]
    assert layer_scales(resnet, 1.0) == [1.0] * 6


def test_every_trainable_tensor_is_in_one_group_with_its_rate_and_decay() -> None:
    model = classifier(backbone_of(), 10)
    optimizer = build_optimizer(model, FinetuneConfig(layer_decay=0.5, weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    grouped = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    assert sorted(grouped) == sorted(names.values())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    undecayed = {name for name, group in grouped.items() if group["weight_decay"] == 0.0}
    assert "backbone.cls_token" in undecayed
    assert undecayed == {
        n for n in grouped if n.endswith(("bias", "cls_token", "pos_embed")) or ".norm" in n
    }
    assert grouped["backbone.blocks.1.attn.qkv.weight"]["lr_scale"] == 0.5
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.3}


def test_the_schedule_warms_up_then_falls_to_zero() -> None:
    assert [warmup_cosine(step, 10, 4) for step in (0, 1, 4)] == [0.0, 0.25, 1.0]
    assert warmup_cosine(7, 10, 4) == pytest.approx(0.5)
    assert warmup_cosine(10, 10, 4) == pytest.approx(0.0)


@pytest.mark.lengthy
def test_fine_tuning_learns_and_moves_everything() -> None:
    config = small_config("model.freeze_patch_embed=true", "data.num_train=128")
    images, _ = load_data(config.data)
    backbone = build_state(config, 1, CPU).model.online.backbone
    before = copy.deepcopy(backbone.state_dict())
    settings = FinetuneConfig(
        epochs=50, warmup_epochs=2, batch=32, lr=5e-2, mixup=0.0, cutmix=0.0, label_smoothing=0.0,
        min_scale=0.8,
    )  # fmt: skip
    losses: list[float] = []
    model = finetune(
        backbone, images, 16, settings, 0, CPU, lambda epoch, loss: losses.append(loss)
    )
    logits, labels = encode_set(model, images, 16, CPU)
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    assert accuracy > 0.35, "chance is 0.1; of 128 images, 0.35 is 9 deviations above it"
    assert len(losses) == 50
    assert losses[0] == pytest.approx(np.log(10), rel=0.05), "a head of zeros starts at chance"
    assert losses[-1] < 0.8 * losses[0]
    after = backbone.state_dict()
    moved = {name for name in before if not after[name].equal(before[name])}
    assert moved == before.keys(), "end to end: patch projection and positions too"


@pytest.mark.lengthy
@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_same_seed_gives_the_same_bits_and_no_global_generator_moves(
    mix: dict[str, float],
) -> None:
    images, _ = load_data(small_config().data)
    settings = FinetuneConfig(
        **({"epochs": 2, "warmup_epochs": 0, "batch": 16, "mixup": 0.0, "cutmix": 0.0} | mix)
    )
    results = []
    for seed, disturb in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(disturb)
        torch.manual_seed(disturb)
        state, rng = np.random.get_state(), torch.get_rng_state()
        model = finetune(backbone_of(), images, 16, settings, seed, CPU)
        np.testing.assert_array_equal(np.random.get_state()[1], state[1])
        assert np.random.get_state()[2] == state[2]
        assert torch.get_rng_state().equal(rng)
        results.append(model.state_dict())
    assert all(t.equal(results[1][name]) for name, t in results[0].items())
    assert not results[0]["head.weight"].equal(results[2]["head.weight"])


def test_mixing_changes_the_training() -> None:
    images, _ = load_data(small_config().data)
    heads = []
    for mixup, cutmix in ((0.0, 0.0), (0.8, 0.0), (0.0, 1.0)):
        settings = FinetuneConfig(
            epochs=1, warmup_epochs=0, batch=16, mixup=mixup, cutmix=cutmix, label_smoothing=0.0
        )
        heads.append(finetune(backbone_of(), images, 16, settings, 0, CPU).head.weight)
    assert not heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])
    assert not heads[1].equal(heads[2])


def test_crops_only_crop_and_flip() -> None:
    """A crop of the whole image gives the image or its mirror image."""
    images, _ = load_data(small_config().data)
    index = np.arange(40)
    plain = plain_view(images.load(index), 16)
    whole = load_crops(images, index, 5, 2, 16, 1.0, CPU)
    # At min_scale 1 no ratio but 1 fits, so the box is the whole square image.
    flipped = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, plain, strict=True)]
    assert 5 < sum(flipped) < 35
    for view, image, mirrored in zip(whole, plain, flipped, strict=True):
        torch.testing.assert_close(view, image.flip(2) if mirrored else image, rtol=0, atol=1e-4)
    assert load_crops(images, index[7:9], 5, 2, 16, 1.0, CPU).equal(whole[7:9])


def test_the_seed_of_numpy_is_put_back_after_an_error() -> None:
    np.random.seed(9)
    expected = np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), numpy_seed(3):
        1 / (np.random.rand() * 0)
    np.testing.assert_array_equal(np.random.get_state()[1], expected)
    drawn = []
    for _ in range(2):
        with numpy_seed(3):
            drawn.append(np.random.rand())
    assert drawn[0] == drawn[1]


def test_one_image_cannot_be_fine_tuned_on() -> None:
    images, _ = load_data(small_config("data.num_train=8").data)
    one = type(images)(images.labels[:1], images.classes, images.read)
    with pytest.raises(ValueError, match="2 training images or more, not 1"):
        finetune(backbone_of(), one, 16, FinetuneConfig(), 0, CPU)


def finetuned(**settings: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights before and after one epoch without mixing."""
    images, _ = load_data(small_config().data)
    backbone = backbone_of()
    before = copy.deepcopy(backbone.state_dict())
    quick = {"epochs": 1, "warmup_epochs": 0, "batch": 16, "mixup": 0.0, "cutmix": 0.0}
    config = FinetuneConfig.model_validate({**quick, **settings})
    return before, finetune(backbone, images, 16, config, 0, CPU).state_dict()


def test_layer_decay_slows_the_first_layers_down() -> None:
    before, after = finetuned(layer_decay=0.1, weight_decay=0.0, lr=0.1)
    first, last = (
        float((after[f"backbone.{name}"] - before[name]).abs().max())
        for name in ("patch_embed.proj.weight", "norm.weight")
    )
    # Adam moves by about its rate, which is 0.1 cubed three layers further down.
    assert 0 < first < 5e-3 * last


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_label_smoothing_acts_with_and_without_mixing(mixup: float) -> None:
    heads = [
        finetuned(mixup=mixup, label_smoothing=smoothing)[1]["head.weight"]
        for smoothing in (0.0, 0.3)
    ]
    assert not heads[0].equal(heads[1])


def test_norms_train_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """BN in evaluation mode would keep its old statistics; rates follow the schedule."""
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *args: object) -> object:
        rates.append(max(group["lr"] for group in optimizer.param_groups))
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    images, _ = load_data(small_config().data)
    backbone = backbone_of("model.mlp_norm=batch")
    name = "blocks.0.norm2.bn.running_mean"
    before = backbone.state_dict()[name].clone()
    config = FinetuneConfig(epochs=3, warmup_epochs=1, batch=16, lr=0.256)
    finetune(backbone, images, 16, config, 0, CPU)
    assert not backbone.state_dict()[name].equal(before)
    assert rates == pytest.approx([0.016 * warmup_cosine(i, 12, 4) for i in range(12)])


def test_a_loss_that_is_not_finite_ends_fine_tuning() -> None:
    with pytest.raises(ValueError, match=r"diverged in epoch 1; lower finetune.lr 1e\+30"):
        finetuned(lr=1e30)
