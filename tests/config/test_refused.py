"""Settings that cannot be meant are refused before anything starts."""

import pytest

from stabkit.config import ConfigError, load_config
from stabkit.yamlio import parse_yaml


def test_all_problems_are_reported_together_with_a_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", ["optim.lrr=1", "train.steps=many", "knn.temperature=-1"])
    message = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "optim.lrr: no such setting; did you mean 'optim.lr'?" in message
    assert "train.steps = 'many': should be" in message
    assert "knn.temperature = -1: should be a number above 0" in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("eval.every", "eval.every: no such setting; did you mean 'knn.every'"),
        ("zzz.qqq", "zzz.qqq: no such setting; `stabkit config tiny` prints all"),
    ],
)
def test_a_key_of_a_wrong_section_is_answered_with_the_settings_of_its_name(
    key: str, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("tiny", [f"{key}=4"])
    assert said in str(error.value)
    assert len(str(error.value)) < 160, "not a list of all settings"


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size 32 is not a multiple of .*patch_size 5"):
        load_config("tiny", ["model.patch_size=5"])
    with pytest.raises(ConfigError, match="parquet data needs path"):
        load_config("tiny", ["data.name=parquet"])
    clipped = ["optim.clip=patch_embed", "optim.clip_at=1.5"]
    with pytest.raises(ConfigError, match="clip patch_embed: resnet18 has no patch projection"):
        load_config("tiny", ["model={name: resnet18, stem: cifar}", *clipped])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["train.steps=20"], "optim.warmup_steps 30 exceeds train.steps 20"),
        (["optim.warmup_steps=501"], "optim.warmup_steps 501 exceeds train.steps 500"),
        (
            ["method.name=swav", "train.steps=100"],
            "method.freeze_prototypes_steps 313 exceeds train.steps 100",
        ),
        (["knn.k=501"], "knn.k 501 exceeds knn.bank 500"),
        (
            ["data.name=cifar10", "data.path=.", "data.num_train=32"],
            "train.batch 64 exceeds data.num_train 32",
        ),
        (["data.path=/somewhere"], "data.path '/somewhere' does nothing for synthetic data"),
        (["data.download=true"], "data.download does nothing for synthetic data"),
        (
            ["data.name=imagefolder", "data.path=.", "data.download=true"],
            "data.download does nothing for imagefolder data: only for cifar10",
        ),
        (["runtime.signals_every=7"], "signals_every 7 does nothing without runtime.signals"),
    ],
)
def test_a_request_without_effect_is_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", words)
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["optim.warmup_steps=500", "knn.k=500"],
        ["train.steps=1"],  # an untrained model, to compare with
        ["method.name=swav", "method.freeze_prototypes_steps=500"],
        ["runtime.signals=[attention]", "runtime.signals_every=7"],
        ["method.freeze_prototypes_steps=501"],  # sizes may stand idle
    ],
)
def test_settings_at_the_edge_are_taken_as_they_are(words: list[str]) -> None:
    config = load_config("tiny", words).model_dump(mode="json")
    for word in words:
        key, value = word.split("=")
        section, name = key.split(".")
        assert config[section][name] == parse_yaml(value)


def test_an_unknown_preset_and_a_bad_override_are_named() -> None:
    with pytest.raises(ConfigError, match="no such preset; did you mean 'tiny'"):
        load_config("tinny")
    with pytest.raises(ConfigError, match=r"'optim\.lr' is not of the form key=value"):
        load_config("tiny", ["optim.lr"])
