"""The settings that a Monitor is given, and runs that are compared by them."""

import argparse
import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stabkit
from stabkit.cli import main
from stabkit.rundir import ForeignFolderError, RunDir, claim_for_run
from tests.monitor.toy import Toy, kinds


@dataclass
class Optim:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass
class Settings:
    name: str = "vit: small"
    optim: Optim = field(default_factory=Optim)


class Size(enum.IntEnum):
    SMALL = 3


def settings_of(folder: Path, config: Any, first_step: int | None = None) -> dict[str, Any]:
    toy = Toy()
    with toy.monitor(folder, config=config, first_step=first_step) as monitor:
        toy.steps(3, monitor)
    toy.assert_undisturbed()
    return dict(stabkit.open_run(folder).settings)


def test_settings_come_back_as_they_were(tmp_path: Path) -> None:
    config = {
        "lr": 1e-5, "on": True, "name": "1:30", "none": None, "nan": math.nan, "big": 10**30,
        "model": {"depth": np.int64(12), "dropout": np.float32(0.5), "path": Path("a/b")},
        "betas": (0.9, 0.95), "size": Size.SMALL, "yes": "yes", "text": "ü\u202e\n: #", "empty": {},
    }  # fmt: skip
    found = settings_of(tmp_path / "a", config)
    assert math.isnan(found.pop("nan"))
    assert found == {
        "lr": 1e-5, "on": True, "name": "1:30", "none": None, "big": 10**30, "model.depth": 12,
        "model.dropout": 0.5, "model.path": "a/b", "betas": [0.9, 0.95], "size": 3, "yes": "yes",
        "text": "ü\u202e\n: #",
    }  # fmt: skip
    expected = {"name": "vit: small", "optim.lr": 1e-3, "optim.betas": [0.9, 0.95]}
    assert settings_of(tmp_path / "b", Settings()) == expected
    assert settings_of(tmp_path / "c", argparse.Namespace(lr=0.1)) == {"lr": 0.1}
    assert settings_of(tmp_path / "d", {}) == settings_of(tmp_path / "e", None) == {}


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    bad: list[tuple[Any, str]] = [
        (
            {"optim": {"f": len}, "x": torch.ones(2)},
            r"optim.f is of type builtin_.*; x is of type Tensor",
        ),
        ({"a": [1, {2}]}, r"a\[1\] is of type set"),
        ({"a": {3: 1}}, "a: 3 is no text"),
        ({"a": "\ud800"}, "a is '.ud800'"),
        ({"a": {"b": 1}, "a.b": 2}, "a.b is there twice"),
        ({"<<": 1}, "<< is '1'"),
        (loop, "nested too deeply"),
        ([1], "config is of type list; give a dictionary"),
        (Settings, "config is of type type"),
    ]
    for config, message in bad:
        with pytest.raises((TypeError, ValueError), match=message):
            Toy().monitor(tmp_path / "run", config=config)
    assert not (tmp_path / "run").exists()


@pytest.mark.lengthy
def test_runs_differ_by_their_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (0.1, 0.3):
        settings_of(tmp_path / f"lr{lr}", {"optimizer": {"rate": lr}, "seed": 0, "batch": 16})
    runs = stabkit.load(tmp_path)
    assert runs.factors() == ["optimizer.rate"]
    assert [run.name for run in runs.where(rate=0.3)] == ["lr0.3"]
    assert main(["analyze", str(tmp_path)]) == 0
    assert "rate 0.3" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "No setting differs" not in page


def test_a_run_that_goes_on_says_what_is_new(tmp_path: Path) -> None:
    settings_of(tmp_path, {"lr": 0.1, "old": 1})
    assert settings_of(tmp_path, {"lr": 0.2, "new": 2}, first_step=3) == {"lr": 0.2, "new": 2}
    said = [entry["reason"] for entry in stabkit.open_run(tmp_path).log_entries()]
    assert said == [
        "config: lr was 0.1 and is 0.2 from here on",
        "config: old was 1 and is None from here on",
        "config: new was None and is 2 from here on",
    ]
    assert settings_of(tmp_path, None, first_step=6) == {"lr": 0.2, "new": 2}
    assert settings_of(tmp_path, None, first_step=0) == {}
    assert kinds(tmp_path) == []


def test_a_config_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    settings_of(tmp_path / "a", None)
    file = tmp_path / "a" / "config.yaml"
    file.write_text("lr: 0.5\n")
    with pytest.raises(ValueError, match=r"config\.yaml: was not written by a Monitor"):
        settings_of(tmp_path / "a", {"lr": 0.1}, first_step=1)
    assert file.read_text() == "lr: 0.5\n"
    assert len(stabkit.open_run(tmp_path / "a").scalar("loss")) == 3  # nothing was removed
    assert settings_of(tmp_path / "a", None, first_step=0) == {"lr": 0.5}
    # settings with the sections of stabkit's own are still a Monitor's
    own = {name: {} for name in ("data", "model", "train", "knn", "runtime")} | {"lr": 0.1}
    settings_of(tmp_path / "b", own)
    settings_of(tmp_path / "b", own, first_step=3)
    with pytest.raises(ForeignFolderError, match="holds what a Monitor recorded"):
        claim_for_run(RunDir(tmp_path / "b"), lambda _: [])
