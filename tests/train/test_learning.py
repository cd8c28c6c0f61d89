"""Every framework learns on `synthetic`, and what is known to collapse does so visibly.

One block, 100 steps, one seed. Over three seeds kNN rose by, lowest to highest: moco .03 to .16,
simclr .17 to .21, byol .01 to .16, swav .00 to .13, supervised .28 to .31. So these tests show that
each can learn, not how well one compares with another.
"""

from pathlib import Path

import pytest

import stabkit
from stabkit.analyze.diagnosis import Diagnosis
from stabkit.config import load_config
from stabkit.rundir import RunDir
from stabkit.store.reader import StoredRun
from stabkit.train.loop import train

SETTINGS = [
    "data.num_train=2000",
    "data.num_heldout=500",
    "views.min_scale=0.6",
    "model.depth=1",
    "method.out=16",
    "method.prototypes=128",
    "method.freeze_prototypes_steps=10",
    "train.steps=100",
    "optim.warmup_steps=15",
    "knn.every=50",
    "knn.queries=500",
    "knn.bank=1000",
]
# What kNN gains at seed 0; the untrained backbone has .258. A test asks for half of it.
GAIN = {"moco": 0.16, "simclr": 0.21, "byol": 0.11, "swav": 0.13, "supervised": 0.31}


def trained(folder: Path, *changes: str) -> StoredRun:
    train(load_config("tiny", [*SETTINGS, *changes]), RunDir(folder))
    return stabkit.open_run(folder)


# The same with a ResNet-18, 40 steps of 64 images; untrained, .267 of 4000 held-out images. A gain
# is known to about .008 (paired over the images). It is only the beginning that all five share: in
# 250 steps at a rate four times as large SimCLR reached .44 while the twins and SwAV fell back.
RESNET = [
    *("model.name=resnet18", "model.stem=imagenet", "model.depth=null"),
    *("model.patch_size=null", "model.width=null", "model.heads=null"),
    *("data.num_heldout=4000", "knn.queries=4000", "knn.every=40", "method.prototypes=32"),
    *("train.steps=40", "optim.warmup_steps=5", "optim.lr=1e-3"),
]
RESNET_GAIN = {"moco": 0.025, "simclr": 0.026, "byol": 0.029, "swav": 0.032, "supervised": 0.033}


@pytest.mark.slow  # half a minute and more each; that a ResNet trains: models/test_build.py
@pytest.mark.parametrize("name", RESNET_GAIN)
def test_knn_improves_over_an_untrained_resnet(name: str, tmp_path: Path) -> None:
    layers = [] if name == "supervised" else ["method.projector_layers=2"]
    run = trained(tmp_path, *RESNET, f"method.name={name}", *layers)
    accuracy = run.evals("knn_heldout")["value"].tolist()
    assert accuracy[-1] > accuracy[0] + RESNET_GAIN[name] / 2
    assert Diagnosis(run).collapses.empty


@pytest.mark.lengthy
@pytest.mark.parametrize("name", GAIN)
def test_knn_improves_over_the_untrained_backbone(name: str, tmp_path: Path) -> None:
    layers = [] if name == "supervised" else ["method.projector_layers=2"]
    run = trained(tmp_path, f"method.name={name}", *layers)
    accuracy = run.evals("knn_heldout")["value"].tolist()
    assert accuracy[-1] > accuracy[0] + GAIN[name] / 2
    assert run.scalar("feature_std").index.tolist() == [0, 50]
    assert Diagnosis(run).collapses.empty


@pytest.mark.lengthy
def test_byol_without_a_predictor_collapses(tmp_path: Path) -> None:
    """On one linear projection, as a deep projector can collapse alone and leave the backbone.

    Standard deviation: from .086 to .007 without a predictor, to .055 with one; rank: 18 to 2, 13.
    """
    settings = ["method.name=byol", "method.projector_layers=1", "knn.every=20"]
    bare = trained(tmp_path / "bare", *settings, "method.predictor=false")
    full = trained(tmp_path / "full", *settings)
    assert {"feature_std", "effective_rank"} <= set(Diagnosis(bare).collapses["signal"])
    assert Diagnosis(full).collapses.empty


@pytest.mark.lengthy
def test_swav_without_sinkhorn_collapses_to_a_loss_near_zero(tmp_path: Path) -> None:
    """All images in one cluster predict each other for free: far below chance from early on.

    With balanced clusters the loss is still at chance after so few steps. Features shrink in both.
    """
    settings = ["method.name=swav", "method.projector_layers=2", "optim.lr=1e-3", "knn.every=20"]
    settings.append("method.prototypes=32")
    bare = trained(tmp_path / "bare", *settings, "method.sinkhorn=false")
    full = trained(tmp_path / "full", *settings)
    (found,) = Diagnosis(bare).collapses.to_dict("records")
    assert found["signal"] == "loss_relative"
    assert found["level"] < 0.05
    assert Diagnosis(full).collapses.empty
