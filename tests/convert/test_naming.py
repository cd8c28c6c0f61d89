import numpy as np
import pytest
import timm
import torchvision

from stabkit.convert.layers import join
from stabkit.convert.naming import (
    in_depth_order,
    layer_names,
    layer_signal,
)
from stabkit.convert.series import Series
from stabkit.monitor.layers import group_layers, layer_of
from stabkit.store.accuracies import is_accuracy, is_held_out, is_knn, is_training
from stabkit.store.names import is_gradient_norm


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convmixer_768_32"])
def test_layers_of_parameters_are_those_of_the_monitor(name: str) -> None:
    parameters = [n for n, _ in timm.create_model(name).named_parameters()]
    assert layer_names(parameters) == {p: layer_of(p) for p in parameters}


@pytest.mark.parametrize("prefix", ["", "model.", "module.online.", "student.backbone."])
def test_depth_is_the_order_of_a_vit_whatever_holds_it(prefix: str) -> None:
    names = [n for n, _ in timm.create_model("vit_tiny_patch16_224").named_parameters()]
    names += ["projector.0.weight", "predictor.2.weight"]
    expected = [layer for layer in group_layers(names)[0] if layer != "head"] + ["head"]
    layers = layer_names([prefix + name for name in names])
    found = in_depth_order(sorted(set(layers.values()), key=hash))
    # class token and positions act at one depth: between them nothing is first
    assert found == expected


@pytest.mark.parametrize("first", ["", "model."])
def test_vits_of_transformers(first: str) -> None:
    """Names as `ViTForImageClassification` has them."""
    names = ["vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"]
    names += [f"vit.encoder.layer.{i}.attention.output.dense.weight" for i in range(12)]
    layers = layer_names([first + n for n in [*names, "vit.layernorm.bias", "classifier.weight"]])
    blocks = [f"encoder.layer.{i}" for i in range(12)]
    expected = ["embeddings", *blocks, "layernorm", "classifier"]
    assert in_depth_order(sorted(set(layers.values()))) == expected


def test_vits_of_torchvision() -> None:
    model = torchvision.models.VisionTransformer(32, 16, 11, 2, 8, 8, num_classes=3)
    layers = layer_names([n for n, _ in model.named_parameters()])
    blocks = [f"layers.encoder_layer_{i}" for i in range(11)]
    expected = ["conv_proj", "class_token", "pos_embedding", *blocks, "ln", "heads"]
    assert in_depth_order(sorted(set(layers.values()))) == expected


def test_two_networks_are_not_mixed_up() -> None:
    names = [f"{who}.blocks.{i}.fc.weight" for who in ("encoder", "decoder") for i in range(2)]
    names += ["encoder.norm.weight", "decoder.norm.weight"]
    assert len(set(layer_names(names).values())) > 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grad_norm/blocks.0", ("grad_norm", "blocks.0")),
        ("grad_2.0_norm/model.blocks.0.mlp.weight", ("grad_norm", "model.blocks.0.mlp.weight")),
        ("grad_inf_norm/fc.weight", ("grad_max", "fc.weight")),
        ("train/gradients/fc.weight", ("grad_norm", "fc.weight")),
        ("grads.blocks.3", ("grad_norm", "blocks.3")),
        ("param_norm/norm", ("param_norm", "norm")),
        ("blocks.3/grad_norm", ("grad_norm", "blocks.3")),
        ("patch_embed/grad_norm", ("grad_norm", "patch_embed")),
        ("grad_norm", None), ("train/grad_norm", None), ("grad_norm_total", None),
        ("grad_norm/total", None), ("grad_2.0_norm_total", None), ("grad_1.0_norm/fc", None),
        ("graduation/rate", None), ("upgrades/fc", None), ("grads/blocks.0.fc.weight.max", None),
    ],
)  # fmt: skip
def test_names_of_norms(name: str, expected: tuple[str, str] | None) -> None:
    found = layer_signal(name)
    assert (found and (found[0], found[2])) == expected


@pytest.mark.parametrize(
    "name",
    ["val/acc", "val_acc1", "top1", "Acc@1", "eval.top-5", "valid/accuracy", "valAcc",
     "testAccuracy", "evalTop1", "valF1Score", "valAUC", "IoU",
     "val/prec@1", "Prec@5"],
)  # fmt: skip
def test_names_of_accuracies(name: str) -> None:
    assert is_accuracy(name)
    assert not is_knn(name)


@pytest.mark.parametrize(
    "name",
    ["mAP", "metrics/mAP_0.5", "metrics/mAP50-95(B)", "bbox/AP", "segm/AP75", "coco/AP .5",
     "coco/bbox_mAP_50", "pascal_voc/mAP", "mIoU", "aAcc", "val/mAcc", "PCK"],
)  # fmt: skip
def test_names_of_scores_that_only_an_evaluation_has(name: str) -> None:
    assert is_accuracy(name)
    assert is_held_out(name)


@pytest.mark.parametrize(
    "name", ["val_acc", "valAcc", "testAccuracy", "eval/Top1", "hold_out_acc", "kNN"]
)
def test_names_of_held_out_accuracies(name: str) -> None:
    assert is_held_out(name)
    assert not is_training(name)


@pytest.mark.parametrize("name", ["train_acc", "trainAcc", "Training/accuracy", "batchAcc"])
def test_names_of_accuracies_in_training(name: str) -> None:
    assert is_training(name)
    assert not is_held_out(name)


@pytest.mark.parametrize(
    "name", ["bbox/APs", "bbox_mAP_s", "bbox/AP-cat", "mapping", "swap", "metrics/recall(B)"]
)
def test_names_of_scores_of_a_size_a_class_or_another_kind(name: str) -> None:
    assert not is_accuracy(name)


@pytest.mark.parametrize(
    "name",
    ["grad_norm", "train_grad_norm", "grad norm", "optim/total_grad_norm", "gnorm", "norm",
     "grad_2.0_norm_total", "train/gradient_norm", "embedding_grad_l2_norm", "gradNorm",
     "l2_grads"],
)  # fmt: skip
def test_names_of_gradient_norms_of_the_whole_model(name: str) -> None:
    assert is_gradient_norm(name)


@pytest.mark.parametrize(
    "name", ["loss", "layer_norm", "max_grad_norm", "grad_norm_clip", "norm1", "l2_params"]
)
def test_names_of_no_gradient_norm(name: str) -> None:
    assert not is_gradient_norm(name)


@pytest.mark.parametrize("name", ["knn", "val/knn_top1", "kNN", "eval/k-nn_20", "knn_acc"])
def test_names_of_knn_accuracies(name: str) -> None:
    assert is_knn(name)


@pytest.mark.parametrize(
    "name",
    ["accumulate", "knn_time", "stop1", "acceleration", "knn/loss", "lr", "gradAccSteps",
     "AccLoss"],
)  # fmt: skip
def test_names_of_neither(name: str) -> None:
    assert not is_accuracy(name)


def test_parts_join_to_the_norm_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(3, 50, 7))  # parameters, steps, elements
    steps = np.arange(50)
    norms = [Series(steps, np.linalg.norm(part, axis=1)) for part in parts]
    whole = np.linalg.norm(np.concatenate(parts, axis=1), axis=1)
    np.testing.assert_allclose(join(norms, "grad_norm").values, whole, rtol=1e-14)
    peaks = [Series(steps, np.abs(part).max(axis=1)) for part in parts]
    np.testing.assert_array_equal(join(peaks, "grad_max").values, np.abs(parts).max(axis=(0, 2)))


def test_a_part_that_is_not_finite_or_not_there() -> None:
    one = Series(np.array([0, 1, 2]), np.array([3.0, np.nan, 3e300]))
    other = Series(np.array([0, 1, 2, 3]), np.array([4.0, np.inf, 4e300, 2.0]))
    joined = join([one, other], "grad_norm").values
    np.testing.assert_allclose(joined[[0, 2, 3]], [5, 5e300, 2])
    assert not np.isfinite(joined[1])
