import pytest

from stabkit.analyze.series import gradient_norms
from stabkit.store.accuracies import judged_metric
from stabkit.store.names import has_level, losses, with_level


@pytest.mark.parametrize(
    "name",
    [
        *(
            "loss",
            "Loss",
            "train/loss",
            "train_loss",
            "trainLoss",
            "trainloss",
            "lm loss",
            "loss_g",
        ),
        *("val_loss", "eval/loss", "train/box_loss", "loss_cls", "train_loss_epoch", "nll", "ppl"),
    ],
)
def test_these_are_losses(name: str) -> None:
    assert losses([name, "lr"]) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("loss_scale", "loss scale", "loss_relative", "loss_nats", "loss_weight", "lossless"),
        *("train/loss__MIN", "lr", "accuracy", "glossary", "grad_norm"),
    ],
)
def test_these_are_none(name: str) -> None:
    assert losses([name]) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("loss", True), ("train/loss", True), ("lm loss", True), ("train/box_loss", True)),
        *(("val_loss", False), ("valloss", False), ("eval/loss", False), ("loss_d", False)),
        *(("policy_loss", False), ("G_loss", False), ("tel", False), ("losses/value_loss", False)),
    ],
)
def test_held_out_losses_and_those_of_games_have_no_level_to_keep(name, expected) -> None:
    assert losses([name]) == [name]
    assert has_level(name) is expected


def test_gradient_norms_are_known_by_name() -> None:
    names = ["grad_norm", "train/grad_norm", "gnorm", "norm", "optim/total_grad_norm", "gradNorm"]
    others = ["max_grad_norm", "grad_norm_clipped", "param_norm", "norm_weight", "gradient", "lr"]
    assert gradient_norms([*names, *others]) == names


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "knn_heldout"),
        ({"knn_heldout": 3, "val_acc": 3}, "knn_heldout"),
        ({"knn_heldout": 3, "val_acc": 30}, "val_acc"),
        ({"val_acc": 30, "knn_200": 30}, "knn_200"),
        ({"acc": 30, "val_acc": 30}, "val_acc"),
        ({"train_acc": 300, "top1": 2}, "top1"),
        ({"knn_bank": 300, "linear": 1}, "linear"),
        ({"knn_bank": 300}, "knn_bank"),
        ({"test_b": 9, "test_a": 9}, "test_a"),
    ],
)
def test_the_judged_accuracy_is_held_out_and_has_enough_evaluations(counts, expected) -> None:
    assert judged_metric(counts, 8) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/loss", "train/value_loss", "train/policy_gradient_loss"], []),
        (["loss", "entropy_loss", "actor_loss"], []),
        (["loss_G", "loss_D", "recon_loss", "total_loss"], ["recon_loss"]),
        (["loss", "kl_loss", "recon_loss"], ["loss", "recon_loss"]),
        (["loss", "val_loss"], ["loss"]),
    ],
)
def test_a_total_beside_losses_of_players_has_no_level(
    names: list[str], expected: list[str]
) -> None:
    assert with_level(names) == expected
