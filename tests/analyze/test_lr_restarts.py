"""Dips and loss spikes at warm restarts of the learning rate."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabkit.detect import find_dips
from stabkit.detect.lr_restarts import explained_dips, restarts
from tests.analyze.test_any_run import converted, told


def test_a_restart_goes_back_to_a_rate_that_was_used_before() -> None:
    warmup, cosine = [1e-4, 1e-3, 1e-2], [0.01, 0.006, 0.001]
    rates = pd.Series([*warmup, *cosine, *cosine, *cosine], index=range(0, 24, 2))
    assert restarts(rates) == [12, 18]
    rates[12] = 0.05  # higher than ever: a fault
    assert restarts(rates) == [18]
    assert restarts(rates[:1]) == []


def sgdr(seed: int, size: int = 900, cycles: int = 4) -> dict[str, np.ndarray]:
    """Return a healthy loss and accuracy under cosine restarts, which both follow."""
    rng, at = np.random.default_rng(seed), np.arange(size)
    length = size // cycles
    share = 0.5 * (1 + np.cos(np.pi * (at % length) / length))
    loss = 0.8 + 2.4 * (1 + at / 10) ** -0.35 + 0.25 * share
    accuracy = 0.8 - 0.7 * np.exp(-at / (0.1 * size)) - 0.12 * share
    return {
        "loss": loss * np.exp(0.02 * rng.standard_normal(size)),
        "val_acc": np.clip(accuracy + 0.01 * rng.standard_normal(size), 0, 1),
        "lr": 0.1 * share + 1e-5,
    }


def test_dips_and_loss_spikes_at_restarts_are_told_and_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = set()
    for seed, size in ((1, 900), (4, 3000)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = converted(folder, sgdr(seed, size), np.arange(size))
        assert run.verdict == "stable"
        assert set(run.events()["kind"]) <= {"lr_restart", "burst"}
        series |= set(run.events("lr_restart")["layer"].fillna("accuracy"))
    assert series == {"accuracy", "loss"}
    assert "where the learning rate restarts" in told(run, capsys)


@pytest.mark.parametrize(
    "fault", ["a dip between", "between restarts", "at a restart, and larger", "without rates"]
)
def test_other_events_under_restarts_count(tmp_path: Path, fault: str) -> None:
    columns = sgdr(0)
    if fault == "a dip between":
        columns["val_acc"][350:380] -= 0.2
    elif fault == "between restarts":
        columns["loss"][350:360] *= 2
    elif fault == "at a restart, and larger":
        columns["loss"][450:460] *= 3
    else:
        del columns["lr"]
    run = converted(tmp_path, columns, np.arange(900))
    assert run.verdict == "unstable"
    kinds = ("dip",) if fault == "a dip between" else ("dip", "loss_spike")
    assert run.events()["kind"].isin(kinds).any()


def by_epoch(seed: int, epochs: int = 100, cycle: int = 25) -> dict[str, np.ndarray]:
    """Return an accuracy that falls ten points and a loss that triples at restarts, by epoch."""
    rng, at = np.random.default_rng(seed), np.arange(epochs)
    share = 0.5 * (1 + np.cos(np.pi * (at % cycle) / cycle))
    noise = 0.008 * (0.3 + share) * rng.normal(size=epochs)
    return {
        "lr": 0.1 * share + 1e-4,
        "train_loss": 0.1 + 1.5 * np.exp(-at / 20) + 0.18 * share + 0.003 * rng.normal(size=epochs),
        "val_acc": 0.93 - 0.5 * np.exp(-at / 8) - 0.1 * share + noise,
    }


@pytest.mark.parametrize("epochs", [100, 110])  # the second ends within a cycle
def test_drifts_losses_that_triple_and_an_unfinished_cycle_do_not_count(
    tmp_path: Path, epochs: int
) -> None:
    kinds = set()
    for seed in range(6):
        (folder := tmp_path / str(seed)).mkdir()
        run = converted(folder, by_epoch(seed, epochs), np.arange(epochs))
        assert run.verdict == "stable"
        kinds |= {*run.events("lr_restart")["layer"].fillna("accuracy")}
    assert kinds == {"accuracy", "train_loss"}


@pytest.mark.parametrize("fault", ["ends low", "loss is higher than after the restart before"])
def test_what_does_not_come_back_at_the_end_of_a_cycle_counts(tmp_path: Path, fault: str) -> None:
    columns = by_epoch(0)
    if fault == "ends low":
        columns["val_acc"][75:] -= 0.08
    else:
        columns["train_loss"][75:78] += 0.5
    assert converted(tmp_path, columns, np.arange(100)).verdict == "unstable"


@pytest.mark.parametrize(("at", "value", "verdict"), [
    (52, 0.78, "stable"), (52, 0.3, "outlier"), (65, 0.78, "outlier")
])  # fmt: skip
def test_a_single_low_evaluation_at_a_restart_does_not_count(
    tmp_path: Path, at: int, value: float, verdict: str
) -> None:
    columns = by_epoch(3)
    columns["val_acc"][:] = 0.9 + 0.002 * np.random.default_rng(3).normal(size=100)
    columns["val_acc"][at] = value
    assert converted(tmp_path, columns, np.arange(100)).verdict == verdict


@pytest.mark.lengthy
def test_a_loss_spike_that_spans_several_cycles_does_not_count_if_each_ends_low(
    tmp_path: Path,
) -> None:
    spans = found = 0
    for seed in range(12):
        healthy, faulty = tmp_path / f"{seed}", tmp_path / f"{seed}-faulty"
        healthy.mkdir(), faulty.mkdir()
        columns = by_epoch(seed, 200, 20)
        at = np.arange(200)
        columns["train_loss"] = 0.05 + 2.3 * np.exp(-at / 12) + 2.4 * (columns["lr"] - 1e-4)
        columns["train_loss"] *= np.exp(0.02 * np.random.default_rng(seed).normal(size=200))
        run = converted(healthy, columns, at)
        assert run.verdict in ("stable", "outlier")
        told = run.events("lr_restart")
        spans += int((told["end"] - told["onset"] > 20).sum())
        columns["train_loss"][100:160] += 0.3  # not back when two cycles end
        found += converted(faulty, columns, at).verdict in ("unstable", "diverged")
    assert spans >= 4
    assert found >= 10


@pytest.mark.parametrize("restart", [25, 75])
def test_a_collapse_at_a_restart_that_is_over_within_the_cycle_counts(restart: int) -> None:
    for seed in range(5):
        columns = by_epoch(seed)
        assert unexplained(columns).empty
        columns["val_acc"][restart : restart + 8] = 0.1
        assert not unexplained(columns).empty


def unexplained(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return the dips of the accuracy that no restart explains."""
    accuracy = columns["val_acc"]
    at = np.arange(accuracy.size)
    dips = find_dips(at, accuracy)
    begin = restarts(pd.Series(columns["lr"], index=at))
    return dips[~explained_dips(dips, at, accuracy, begin)]


@pytest.mark.lengthy
def test_an_onset_that_is_dated_up_to_three_evaluations_before_a_restart_is_explained() -> None:
    early = 0
    for seed in (102, 117, 119, 123, 141, 201):
        columns = sgdr(seed)
        assert unexplained(columns).empty
        onsets = find_dips(np.arange(900), columns["val_acc"])["onset"].to_numpy()
        early += int(np.sum(np.isin(onsets, [223, 222, 448, 447, 673, 672])))
    assert early >= 4
    columns = sgdr(102)
    columns["val_acc"][440:480] -= 0.2
    (found,) = unexplained(columns).itertuples()
    assert found.onset == pytest.approx(439, abs=2)


def test_the_last_cycle_is_compared_with_falls_that_were_not_found_as_dips() -> None:
    for seed in (107, 120, 122, 137):
        columns = by_epoch(seed, 110)
        at = np.arange(110)
        assert find_dips(at, columns["val_acc"])["recovery"].isna().any()
        assert unexplained(columns).empty
        columns["val_acc"][100:] -= 0.12
        assert len(unexplained(columns)) == 1


@pytest.mark.lengthy
def test_what_half_stays_lost_when_the_cycle_is_over_is_no_fall_of_the_restart() -> None:
    told = 0
    for seed in range(300, 320):
        columns = by_epoch(seed)
        assert unexplained(columns).empty
        columns["val_acc"][75:] -= 0.08
        told += not unexplained(columns).empty
    assert told >= 16
