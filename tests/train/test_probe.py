"""Probe signals in our own loop: nothing of the training may know that they look."""

from pathlib import Path

import numpy as np
import pytest
import torch

import stabkit
from stabkit.config import RunConfig
from stabkit.rundir import RunDir
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.train.processes import results

LOOKS = "runtime.signals=[attention,features,curvature]", "runtime.signals_every=4"
OF_RUN = ["probe_feature_std", "probe_rank", "alignment", "uniformity", "gradient_sharpness"]
OF_LAYERS = ["attention_logit", "attention_entropy", "output_rms", "output_kurtosis"]


def trained(config: RunConfig, folder: Path) -> tuple[stabkit.Run, dict[str, torch.Tensor]]:
    assert train(config, RunDir(folder)).state == "done"
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    return stabkit.open_run(folder), state["model"]


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "method",
    ["name=moco", "queue=16", "name=byol", "name=simclr", "name=swav", "name=supervised"],
)
def test_no_bit_of_the_training_changes(tmp_path: Path, method: str) -> None:
    config = small_config(f"method.{method}", "train.steps=9")
    plain, weights = trained(config, tmp_path / "plain")
    seen, others = trained(
        small_config(f"method.{method}", "train.steps=9", *LOOKS), tmp_path / "seen"
    )
    assert seen.scalar("loss").equals(plain.scalar("loss"))
    for name, value in weights.items():
        assert others[name].equal(value), name
    quiet = "start", "done", "null_parameters"
    assert not [e for e in seen.log_entries() if e["kind"] not in quiet]

    for name in OF_RUN:
        values = seen.scalar(name)
        assert values.index.tolist() == [0, 4, 8], name
        assert np.isfinite(values).all(), name
    signals = seen.signals()
    blocks = signals[signals["layer"].str.startswith("blocks.")]
    for name in OF_LAYERS:
        assert blocks[name].notna().equals(blocks["step"] % 4 == 0), name
    first = signals[signals["layer"] == "patch_embed"]
    assert (first["output_grad_norm"].dropna() > 0).sum() == 3
    has_twin = method in ("name=moco", "queue=16", "name=byol")
    assert ("target_distance" in signals) == has_twin
    assert ("target_cosine" in seen.scalars()["name"].unique()) == has_twin


@pytest.mark.lengthy
def test_the_momentum_encoder_starts_at_no_distance_and_falls_behind(tmp_path: Path) -> None:
    run, _ = trained(small_config("train.steps=9", "method.momentum=0.99", *LOOKS), tmp_path)
    signals = run.signals(["target_distance"]).dropna()
    of_block = signals[signals["layer"] == "blocks.1"].set_index("step")["target_distance"]
    assert of_block[0] == 0
    assert 0 < of_block[4] < of_block[8]
    assert run.scalar("target_cosine")[0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.lengthy
def test_a_frozen_projection_has_a_gradient_at_its_output(tmp_path: Path) -> None:
    run, _ = trained(
        small_config("train.steps=5", "model.freeze_patch_embed=true", *LOOKS), tmp_path
    )
    signals = run.signals()
    patch = signals[signals["layer"] == "patch_embed"]
    assert patch["grad_norm"].isna().all()
    assert (patch.loc[patch["step"] % 4 == 0, "output_grad_norm"] > 0).all()


def _looks(folder: Path, levels: str) -> str:
    config = small_config("train.steps=5", f"runtime.signals=[{levels}]", "runtime.signals_every=2")
    try:
        train(config, RunDir(folder))
    except Exception as error:
        return f"{error}"
    return "done"


@pytest.mark.processes
def test_two_processes_record_all_probe_signals_but_the_loss(tmp_path: Path) -> None:
    said = results(2, tmp_path / "refused", _looks, tmp_path / "one", "curvature")
    assert all("a single process only" in text for text in said), said
    assert (
        results(2, tmp_path / "said", _looks, tmp_path / "two", "attention,features")
        == ["done"] * 2
    )
    run = stabkit.open_run(tmp_path / "two")
    assert run.signals()["attention_entropy"].notna().any()
    assert "output_grad_norm" not in run.signals()  # needs the loss
    assert run.scalar("probe_rank").index.tolist() == [0, 2, 4]
