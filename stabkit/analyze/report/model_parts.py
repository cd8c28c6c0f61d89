"""Tell from the record of a run which parts its model and optimizer have."""

import re

from stabkit.analyze.diagnosis import Diagnosis
from stabkit.analyze.order import patch_projection
from stabkit.analyze.report.remedy import Part
from stabkit.config import RESNETS

OWN = {"method.name", "model.name", "optim.lr", "train.steps"}  # settings of `stabkit train`
HEADS = re.compile(r"projector|projection_head|predictor|prediction_head")
BLOCKS = re.compile(r"(^|\.)(blocks|h|layers?|resblocks)\.\d+|encoder_layer_\d+")
EMBEDDINGS = re.compile(r"embed|wte|cls_token|class_token|conv_proj")


def has_own_settings(run: Diagnosis) -> bool:
    """Return whether the settings are those of `stabkit train`, so that an override changes it."""
    return run.settings.keys() >= OWN


def parts_of(run: Diagnosis) -> set[Part]:
    """Return the parts that a remedy may need.

    They follow from the settings of our own runs, and from the names of layers and signals of
    others. Adam is taken for granted where nothing of an optimizer was recorded.
    """
    return _of_settings(run) if has_own_settings(run) else _of_record(run)


def _of_settings(run: Diagnosis) -> set[Part]:
    resnet = run.settings["model.name"] in RESNETS
    parts: set[Part] = set() if resnet else {"patch_embed", "attention"}
    if run.settings["method.name"] != "supervised":
        parts.add("heads")
    if run.settings.get("optim.name") not in ("sgd", "lars"):
        parts.add("adam")
    return parts


def _of_record(run: Diagnosis) -> set[Part]:
    layers = list(run.gradients.layers["layer"])
    parts: set[Part] = set()
    if patch_projection(run):
        parts.add("patch_embed")
    if any(map(HEADS.search, layers)):
        parts.add("heads")
    is_transformer = any(map(BLOCKS.search, layers)) and any(map(EMBEDDINGS.search, layers))
    if is_transformer or _recorded(run, "attention_logit"):
        parts.add("attention")
    if _recorded(run, "adam_rms") or not _recorded(run, "update_norm"):
        parts.add("adam")
    return parts


def _recorded(run: Diagnosis, signal: str) -> bool:
    try:
        return bool(run.tables.signals([signal])[signal].notna().any())
    except KeyError:  # no part has such a column
        return False
