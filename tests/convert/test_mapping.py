from pathlib import Path

import numpy as np
import pytest

from stabkit.convert.mapping import ConversionPlan, place
from stabkit.convert.series import ConvertError, Log, Series
from stabkit.convert.targets import Target, parse_map


def placed(
    series: dict[str, list[float]], *pairs: str, chance: float | None = None, n: int | None = None
) -> ConversionPlan:
    log = Log("run", {k: Series(np.arange(len(v)), np.array(v)) for k, v in series.items()})
    return place(log, parse_map(pairs), chance, n)


def where(plan: ConversionPlan) -> dict[str, str]:
    return {source: at for source, at, _ in plan.went}


def test_names_decide() -> None:
    dense = [0.5] * 20
    plan = placed(
        {"loss": dense, "acc1": dense, "train/acc": [0.5], "val/acc": dense, "top1": [0.5] * 9}
    )
    assert where(plan) == {
        "loss": "scalars: loss", "acc1": "scalars: acc1", "train/acc": "scalars: train/acc",
        "val/acc": "evals: val/acc", "top1": "evals: top1",
    }  # fmt: skip


def test_an_accuracy_beside_its_held_out_twin_is_of_training() -> None:
    """However rarely it is logged."""
    rare = [0.5] * 5
    for twin in ("val_accuracy", "test/accuracy", "eval-accuracy"):
        plan = placed({"loss": [0.5] * 20, "accuracy": rare, twin: rare})
        assert set(plan.evals) == {twin}
        assert "accuracy" in plan.scalars


def test_one_knn_is_the_knn_and_of_several_none_is_chosen() -> None:
    assert where(placed({"val/knn@1": [0.5]})) == {"val/knn@1": "evals: knn_heldout"}
    several = {"knn_10": [0.5], "knn_20": [0.5]}
    assert set(placed(several).evals) == {"knn_10", "knn_20"}
    assert set(placed({"knn_heldout": [0.5], "knn_20": [0.5]}).evals) == {"knn_heldout", "knn_20"}
    assert set(placed({"knn_bank": [0.5]}).evals) == {"knn_bank"}
    assert set(placed(several, "knn_20=knn_heldout").evals) == {"knn_10", "knn_heldout"}


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([0.2, 1.0], [0.2, 1.0]),
        ([0.2, 1.0 + 1e-7], [0.2, 1.0]),
        ([0.2, 1.2], [0.002, 0.012]),
        ([20.0, np.nan, 100.0], [0.2, np.nan, 1.0]),
    ],
)
def test_percent_is_told_from_fractions(values: list[float], stored: list[float]) -> None:
    plan = placed({"val/acc": values})
    (evaluation,) = plan.evals["val/acc"]
    np.testing.assert_allclose(evaluation.series.values, stored, rtol=1e-15)
    assert ("percent" in plan.went[0][2]) == (max(values) > 1.001)


@pytest.mark.parametrize("values", [[0.2, -1.0], [20.0, 101.0], [0.2, np.inf]])
def test_what_cannot_be_an_accuracy_is_a_scalar_or_refused(values: list[float]) -> None:
    plan = placed({"val/acc": values})
    assert not plan.evals
    assert plan.went[0][2].startswith(f"holds {values[1]:g}: no accuracy")
    with pytest.raises(ConvertError, match="val/acc holds"):
        placed({"val/acc": values}, "val/acc=eval:knn_heldout")
    with pytest.raises(ConvertError, match="val/acc holds"):
        placed({"val/acc": values}, "val/acc=knn_heldout")


def test_chance_and_n_are_what_is_said_else_unknown() -> None:
    (known,) = placed({"val/acc": [0.5]}, chance=0.1, n=50).evals["val/acc"]
    assert (known.chance, known.n) == (0.1, 50)
    (unknown,) = placed({"val/acc": [0.5]}).evals["val/acc"]
    assert np.isnan(unknown.chance)
    assert unknown.n == 0


def test_chance_and_n_without_an_accuracy_are_noted() -> None:
    plan = placed({"loss": [0.5]}, chance=0.1, n=50)
    assert plan.notes == ["--n and --chance not used: the log has no accuracy of an evaluation"]
    assert placed({"loss": [0.5]}).notes == []
    assert placed({"val/acc": [0.5]}, n=50).notes == []


def test_what_the_user_says_comes_first() -> None:
    series = {"grad_norm/head": [1.0], "g/p": [2.0], "a=b": [0.5], "loss": [1.0], "x": [3.0]}
    plan = placed(
        series, "g/p=layer:patch_embed:0", "a=b=eval:mine", "loss=skip", "x=grad_norm/blocks.3"
    )
    assert plan.layers.names == ["patch_embed", "blocks.3", "head"]
    assert set(plan.evals) == {"mine"}
    assert plan.left_out == {"loss": "as asked"}
    assert placed(series, "x=renamed").scalars.keys() >= {"renamed"}
    depth = placed(series, "g/p=layer:last:9", "grad_norm/head=layer:head:0", "x=layer:b.3")
    assert depth.layers.names == ["head", "b.3", "last"]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("loss", "not of the form"), ("=x", "not of the form"), ("x=", "not of the form"),
        ("x=layer:a:first", "depth 'first'"), ("x=layer:", "no name"), ("x=eval:", "no name"),
        ("x=layer:a:99999999", "depth"),
        ("x=evals:acc", "write eval:acc"), ("x=scalars:loss", "write scalar:loss"),
    ],
)  # fmt: skip
def test_wrong_maps_are_refused(pair: str, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        parse_map([pair])
    with pytest.raises(ConvertError, match="several columns of steps"):
        parse_map(["a=step", "b=step"])
    with pytest.raises(ConvertError, match="mapped twice"):
        parse_map(["a=step", "a=skip"])
    assert parse_map(["a=layer:x"]) == {"a": Target("layer", "x")}
    assert parse_map(["a=s:x"]) == {"a": Target("rule", "s:x")}


def test_a_norm_is_never_negative() -> None:
    plan = placed({"grads/fc": [0.1, -0.1], "grads/head": [1.0, 1.0]})
    assert where(plan) == {"grads/fc": "scalars: grads/fc", "grads/head": "layers: head grad_norm"}
    assert plan.notes == ["grads/fc is no norm, it holds -0.1: kept as a scalar"]
    with pytest.raises(ConvertError, match=r"holds -0\.1: no norm"):
        placed({"grads/fc": [0.1, -0.1]}, "grads/fc=layer:fc")


def test_no_gradient_counts_twice() -> None:
    """A layer's own norm holds its parameters'; a second record of it is kept as a scalar."""
    plan = placed(
        {
            "grad_norm/blocks.0.a": [3.0], "grad_norm/blocks.0": [5.0],
            "grad_norm/blocks.0.b": [4.0],
            "grad_norm/norm.weight": [3.0], "grad_norm/norm.bias": [4.0],
            "gradients/blocks.0.a": [30.0], "param_norm/norm": [7.0],
        }
    )  # fmt: skip
    found = {key: float(series.values[0]) for key, series in plan.layers.series.items()}
    assert found == {
        ("grad_norm", "blocks.0"): 5.0, ("grad_norm", "norm"): 5.0, ("param_norm", "norm"): 7.0,
    }  # fmt: skip
    assert set(plan.scalars) == {
        "grad_norm/blocks.0.a", "grad_norm/blocks.0.b", "gradients/blocks.0.a",
    }  # fmt: skip


def test_names_that_no_table_or_figure_should_hold() -> None:
    nasty = "grad_norm/../..\n<b>$x$\x1b[0m"
    plan = placed({nasty: [1.0], "a\nb": [1.0], "a\rb": [2.0], "val/acc$": [0.5], "x" * 999: [1.0]})
    assert plan.layers.names == []  # a name over two lines is not taken for a layer's
    assert set(plan.scalars) == {"a_b", "grad_norm/../.._<b>$x$_[0m", "x" * 200}
    assert plan.left_out == {"a\rb": "duplicate: a_b came from another series"}
    assert set(plan.evals) == {"val/acc_"}
    assert placed({"g": [1.0]}, "g=layer:../$x$<b>\n").layers.names == ["../_x__b__"]


def test_every_series_goes_somewhere_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [
        "val/",
        "knn",
        "acc",
        "grad_norm/",
        "blocks.1",
        ".weight",
        "loss",
        "x",
        "/",
        "norm",
        "\n",
    ]
    for _ in range(200):
        names = {"".join(rng.choice(words, size=rng.integers(1, 5))) for _ in range(12)}
        series = {name: list(rng.choice([0.1, -1, 50, 1e3, np.nan, np.inf], 3)) for name in names}
        plan = placed(series)
        sources = [source for source, _, _ in plan.went]
        joined = [name for name in names if plan.left_out.get(name) is None]
        said = "\n".join(sources)
        assert all(repr(name)[1:-1] in said or name in said for name in joined)
        assert len(plan.scalars) == sum(at.startswith("scalars") for _, at, _ in plan.went)
