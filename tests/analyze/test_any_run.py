"""Verdicts on runs without kNN: what other people's logs hold."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stabkit.analyze.loss_events import loss_spikes, stuck
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.text import times
from stabkit.cli import main
from stabkit.detect.simulate import simulate_curve
from stabkit.runs import Run, load, open_run

STEPS = np.arange(200) * 10


def converted(folder: Path, columns: Mapping[str, np.ndarray], steps: np.ndarray = STEPS) -> Run:
    """Return a run converted from a CSV of these columns."""
    table = folder / "log.csv"
    rows = zip(steps, *columns.values(), strict=True)
    lines = [",".join(["step", *columns]), *(",".join(map(str, row)) for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    assert main(["convert", str(table), "-o", str(folder / "run")]) == 0
    return open_run(folder / "run")


def told(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["analyze", str(run.path)]) == 0
    return " ".join(capsys.readouterr().out.split())


def noise(seed: int, size: int = 200, sigma: float = 0.02) -> np.ndarray:
    return np.exp(sigma * np.random.default_rng(seed).normal(size=size))


def falling_loss(seed: int = 0, size: int = 200) -> np.ndarray:
    return (2 + 4 * np.exp(-np.arange(size) / 30)) * noise(seed, size)


def spiked(loss: np.ndarray, at: int, ratio: float = 3.0) -> np.ndarray:
    late = np.arange(len(loss)) - at
    return loss * np.where(late >= 0, 1 + (ratio - 1) * np.exp(-late / 5), 1)


@pytest.mark.parametrize("name", ["loss", "train/loss", "lm loss", "train_loss"])
def test_a_loss_spike_makes_a_run_unstable_whatever_the_loss_is_called(tmp_path, capsys, name):
    run = converted(tmp_path, {name: spiked(falling_loss(), 120)})
    assert run.verdict == "unstable"
    (event,) = run.events().itertuples()
    kept = name.replace("/", "_") if event.layer != name else name
    assert (event.kind, event.onset, event.layer) == ("loss_spike", 1200, kept)
    text = told(run, capsys)
    assert f"Judged on {kept}; no held-out accuracy, no gradient norm." in text
    assert "it began at step 1,200" in text
    assert "without any error" not in text


def test_a_small_rise_of_one_value_is_a_hard_batch(tmp_path):
    for ratio, verdict in ((1.4, "stable"), (1.7, "unstable")):
        loss = falling_loss()
        loss[150] *= ratio
        (tmp_path / verdict).mkdir()
        assert converted(tmp_path / verdict, {"loss": loss}).verdict == verdict


def test_a_smooth_loss_is_stable_and_the_words_claim_no_more(tmp_path, capsys):
    run = converted(tmp_path, {"loss": falling_loss()})
    assert run.verdict == "stable"
    text = told(run, capsys)
    assert "No loss spike, no collapse and no non-finite value in 1 run" in text
    assert "dip" not in text.split("no sign of instability")[0]


@pytest.mark.parametrize(
    ("zeros", "verdict"), [(60, "diverged"), (150, "diverged"), (5, "diverged"), (2, "stable")]
)
def test_a_loss_that_is_zero_to_its_end_has_diverged(tmp_path, capsys, zeros, verdict):
    losses = falling_loss()
    losses[-zeros:] = 0
    run = converted(tmp_path, {"loss": losses})
    assert run.verdict == verdict
    said = f"loss is exactly 0 from step {10 * (200 - zeros):,} to the end"
    assert (said in told(run, capsys)) == (verdict == "diverged")


def test_a_loss_that_was_learned_to_zero_has_not_diverged(tmp_path):
    learned = np.round(np.exp(-np.arange(200) / 12) * noise(1), 4)
    assert (learned[-20:] == 0).all()
    assert converted(tmp_path, {"loss": learned}).verdict == "stable"


@pytest.mark.parametrize(
    ("digits", "size", "level"), [(2, 2000, 0.01), (2, 500, 0.03), (1, 200, 0.02)]
)
def test_the_rounding_of_printed_losses_is_no_event(tmp_path, digits, size, level):
    for seed in range(6):
        steps = np.arange(size)
        loss = (level + 1.8 * np.exp(-8 * steps / size)) * noise(seed, size, 0.1)
        (tmp_path / str(seed)).mkdir()
        assert (
            converted(tmp_path / str(seed), {"loss": loss.round(digits)}, steps).verdict == "stable"
        )


def test_a_spike_of_a_printed_loss_exceeds_its_rounding(tmp_path):
    steps = np.arange(500)
    loss = (0.03 + 1.8 * np.exp(-8 * steps / 500)) * noise(0, 500, 0.1)
    loss[400:403] = 1.0
    assert converted(tmp_path, {"loss": loss.round(2)}, steps).verdict == "unstable"


@pytest.mark.parametrize("names", [["grad_norm"], [f"grad_norm/h.{i}" for i in range(4)]])
@pytest.mark.parametrize(
    ("zeros", "verdict"), [(200, "unknown"), (80, "unknown"), (5, "unknown"), (3, "stable")]
)
def test_gradients_that_are_zero_to_the_end_are_told(tmp_path, capsys, names, zeros, verdict):
    norms = {name: noise(i, sigma=0.1) for i, name in enumerate(names)}
    for values in norms.values():
        values[-zeros:] = 0
    run = converted(tmp_path, norms)
    capsys.readouterr()
    assert main(["analyze", str(run.path)]) == 0
    said = f"gradients left out, they are exactly 0 from step {10 * (200 - zeros):,} to the end"
    printed = capsys.readouterr()
    assert (said in printed.err) == (verdict == "unknown")
    assert (said in printed.out) == (verdict == "unknown")
    assert f" {verdict} " in printed.out
    norms[names[-1]][-1] = 1.0
    (tmp_path / "again").mkdir()
    assert converted(tmp_path / "again", norms).verdict == "stable"


def test_a_norm_printed_with_one_digit_has_no_bursts_of_rounding(tmp_path: Path) -> None:
    """Between .3 and .4 nothing was printed, so .5 seems to stand out."""
    bursts = 0
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        norms = np.round(0.3 * noise(seed, 100, sigma=0.2), 1)
        run = converted(tmp_path / str(seed), {"grad_norm": norms}, STEPS[:100])
        bursts += run.verdict != "stable"
    assert bursts <= 2
    norms[50:53] = [4.0, 6.0, 3.0]
    (tmp_path / "burst").mkdir()
    assert converted(tmp_path / "burst", {"grad_norm": norms}, STEPS[:100]).verdict == "bursts"


def staircase(seed: int, noise: float = 0.03) -> np.ndarray:
    """Return a loss whose learning rate drops twice, as in trainings on CIFAR."""
    levels = np.repeat([0.35, 0.05, 0.02], [100, 50, 50])
    return levels * np.exp(noise * np.random.default_rng(seed).normal(size=200))


@pytest.mark.parametrize(
    "losses",
    [
        *map(staircase, range(6)), staircase(0, 0.01), np.repeat([1.0, 0.01], 100) * noise(1),
        (2 * np.exp(-np.arange(200) / 4) + 0.01) * noise(2, sigma=0.01),
        0.7 * np.exp(-np.arange(200) / 30) + 0.002,
    ],
)  # fmt: skip
def test_a_loss_that_drops_at_once_has_no_spike(losses):
    run = SimpleNamespace(path=Path("run"))
    series = {"train_loss": (STEPS, losses)}
    assert loss_spikes(series, run).empty
    spiked = losses.copy()
    spiked[170:173] *= 4
    assert loss_spikes({"train_loss": (STEPS, spiked)}, run)["onset"].tolist() == [1700]


@pytest.mark.parametrize(
    ("end", "verdict"), [(0.25, "stuck"), (0.28, "stable"), (0.1, "collapsed"), (0.18, "collapsed")]
)
def test_a_loss_at_chance_is_a_collapse_only_if_accuracy_fell(tmp_path, capsys, end, verdict):
    """In a short run nothing may have been learned yet, and nothing lost."""
    accuracy = np.linspace(0.26, end, 200)
    run = converted(tmp_path, {"loss_relative": 1.01 * noise(0, sigma=0.005), "val_acc": accuracy})
    assert run.verdict == verdict
    text = told(run, capsys)
    assert ("the loss never fell: 1.011 times that of chance" in text) == (end == 0.25)


def test_an_accuracy_that_falls_to_a_known_chance_collapsed(tmp_path, capsys):
    accuracy = np.concatenate([np.linspace(0.1, 0.6, 25), [0.4, 0.2], np.full(173, 0.1)])
    run = converted(tmp_path, {"val_acc": accuracy, "loss": falling_loss()})
    assert run.verdict == "unstable"  # the chance is not known
    more = ["--chance", "0.1", "--n", "1000", "--force"]
    assert main(["convert", str(tmp_path / "log.csv"), "-o", str(run.path), *more]) == 0
    run = open_run(run.path)
    assert run.verdict == "collapsed"
    assert "collapsed, as shown by an accuracy that fell to chance." in told(run, capsys)
    facts = all_incidents(load(run.path).diagnoses())[0].facts
    assert facts[-1] == ("Accuracy at chance", "57.9 → 10.0 %, steps 270 to 1,990")


def test_a_total_gradient_norm_is_searched_for_bursts(tmp_path, capsys):
    norms = 0.6 * noise(1, sigma=0.1)
    norms[119:122] = 30
    run = converted(tmp_path, {"loss": spiked(falling_loss(), 120), "grad_norm": norms})
    burst, spike = run.events().itertuples()
    assert (burst.kind, burst.onset, burst.layer) == ("burst", 1190, "grad_norm")
    assert (spike.kind, spike.onset) == ("loss_spike", 1200)
    assert "1 gradient burst in 1 run" in told(run, capsys)


def test_bursts_of_layers_are_told_with_the_layer_that_began(tmp_path, capsys):
    layers = {f"grad_norm/h.{i}": noise(i, sigma=0.1) for i in range(4)}
    for i, values in enumerate(layers.values()):
        values[100 + i : 104 + i] *= 50
    run = converted(tmp_path, layers)
    assert run.verdict == "bursts"
    assert run.bursts()["first"].tolist() == ["h.0"]
    text = told(run, capsys)
    ratio = times(run.bursts()["ratio"].iloc[0])
    headline = f"with a gradient burst of {ratio} what was expected, at step 1,000."
    assert f"Not unstable, but {headline} No collapse and no non-finite" in text
    assert "Judged on the gradient norms of 4 layers; no held-out accuracy, no loss." in text
    assert "it began at step 1,000 in h.0" in text
    assert "patch projection" not in text


@pytest.mark.parametrize("every", [10, 100, 500])
def test_a_burst_is_one_however_seldom_norms_are_recorded(tmp_path, every):
    """The last layer joins 4 recorded values after the first: 2,000 steps at the most."""
    layers = {f"grad_norm/h.{i}": noise(i, sigma=0.1) for i in range(5)}
    for i, values in enumerate(layers.values()):
        values[100 + i : 104 + i] *= 50
    run = converted(tmp_path, layers, np.arange(200) * every)
    (burst,) = run.bursts().itertuples()
    assert (burst.onset, burst.layers, burst.first) == (100 * every, 5, "h.0")
    losses = {name: spiked(falling_loss(), at) for name, at in (("loss", 120), ("val_loss", 121))}
    (tmp_path / "losses").mkdir()
    run = converted(tmp_path / "losses", losses, np.arange(200) * every)
    assert len(run.events()) == 1


@pytest.mark.parametrize(
    ("seed", "names"), [(6, ["grad_norm"]), (0, [f"grad_norm/h.{i}" for i in range(6)])]
)
def test_the_largest_norms_of_healthy_heavy_tailed_noise_change_no_verdict(
    tmp_path, capsys, seed, names
):
    rng, steps = np.random.default_rng(seed), np.arange(2_000)
    shared = rng.standard_t(4, len(steps))
    norms = [np.exp(0.2 * (shared + 0.5 * rng.standard_t(4, len(steps)))) for _ in names]
    run = converted(tmp_path, dict(zip(names, norms, strict=True)), steps)
    assert len(run.bursts()) > 0
    assert run.verdict == "stable"
    text = told(run, capsys)
    assert "no clear sign of instability was found" in text
    assert "out from the values around, so no verdict rests on it." in text
    for values in norms:
        values[1_500:1_503] *= 200
    (tmp_path / "again").mkdir()
    run = converted(tmp_path / "again", dict(zip(names, norms, strict=True)), steps)
    assert run.verdict == "bursts"
    spikes = run.spikes()
    assert set(spikes["onset"][spikes["stands_out"]]) == {1_500}
    assert len(spikes["layer"][spikes["stands_out"]]) == len(names)


def test_a_loss_that_is_not_finite_diverged_and_the_text_says_where(tmp_path, capsys):
    loss = falling_loss()
    loss[150:] = np.nan
    run = converted(tmp_path, {"loss": loss})
    assert run.verdict == "diverged"
    assert "loss is not finite from step 1,500" in told(run, capsys)


def test_a_loss_that_left_for_good_diverged(tmp_path, capsys):
    loss = falling_loss()
    loss[130:] = 7 * noise(3, 70)
    run = converted(tmp_path, {"loss": loss})
    assert run.verdict == "diverged"
    text = told(run, capsys)
    assert "loss left its best level (2" in text
    assert f"; its last fifth stood at {np.median(loss[-40:]):.3g} (median)." in text
    assert run.events("departure")["layer"].tolist() == ["loss"]


def test_a_part_of_a_loss_may_rise_while_the_total_falls(tmp_path):
    """As the KL term of a VAE does. Without the total, the rise is all that is known."""
    part = 0.1 + 4 * (1 - np.exp(-STEPS / 500)) * noise(1)
    total = 20 * falling_loss() + part
    for name in ("kld_loss", "reg_loss", "l2_loss"):
        (tmp_path / name).mkdir()
        run = converted(tmp_path / name, {"loss": total, name: part})
        assert run.verdict == "stable"
    (tmp_path / "alone").mkdir()
    assert converted(tmp_path / "alone", {"reg_loss": part}).verdict == "diverged"
    early = np.where(STEPS < 1000, total, np.nan)
    (tmp_path / "early").mkdir()
    assert converted(tmp_path / "early", {"loss": early, "reg_loss": part}).verdict == "diverged"


def test_a_held_out_loss_that_rises_by_overfitting_is_no_divergence(tmp_path):
    rising = 2 + 0.02 * np.maximum(np.arange(200) - 50, 0) + falling_loss() - 2
    run = converted(tmp_path, {"loss": falling_loss(), "val_loss": rising})
    assert run.verdict == "stable"


def test_a_negative_loss_is_searched_for_spikes(tmp_path):
    loss = -0.9 + 0.8 * np.exp(-np.arange(200) / 30) + 0.01 * np.log(noise(0, sigma=1.0))
    assert converted(tmp_path, {"loss": loss}).verdict == "stable"
    loss[120:124] = -0.2
    (tmp_path / "again").mkdir()
    run = converted(tmp_path / "again", {"loss": loss})
    assert run.events()[["kind", "onset"]].to_numpy().tolist() == [["loss_spike", 1200]]


def test_an_overflow_of_a_recorded_norm_is_no_divergence(tmp_path, capsys):
    norms = noise(0)
    norms[[50, 90]] = np.inf
    run = converted(tmp_path, {"loss": falling_loss(), "grad_norm": norms})
    assert run.verdict == "stable"
    assert run.events()["kind"].tolist() == ["overflow"]
    assert "grad_norm overflowed at step 500, 900" in told(run, capsys)


def test_a_norm_that_stays_infinite_diverged(tmp_path):
    norms = noise(0)
    norms[150:] = np.inf
    run = converted(tmp_path, {"grad_norm": norms})
    assert run.verdict == "diverged"


@pytest.mark.parametrize(("last", "verdict"), [(1, "stable"), (2, "stable"), (4, "diverged")])
def test_overflows_at_the_end_pass_if_as_many_in_a_row_have_passed_before(tmp_path, last, verdict):
    norms = noise(0)
    norms[[50, 51, 90]] = np.inf
    norms[-last:] = np.inf
    run = converted(tmp_path, {"loss": falling_loss(), "grad_norm": norms})
    assert run.verdict == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.1, "stable"), (0.6, "diverged")])
def test_a_norm_that_is_mostly_infinite_is_no_overflow(tmp_path, share, verdict):
    for seed in range(4):
        norms = noise(seed)
        rows = np.random.default_rng(seed).random(200) < share
        norms[rows & (np.arange(200) >= 40)] = np.inf
        norms[-1] = 1.0
        (tmp_path / str(seed)).mkdir()
        run = converted(tmp_path / str(seed), {"loss": falling_loss(), "grad_norm": norms})
        assert run.verdict == verdict


def test_a_single_evaluation_that_falls_is_told_as_what_it_is(tmp_path, capsys):
    accuracy = 0.75 - 0.65 * np.exp(-np.arange(60) / 8) + 0.003 * np.log(noise(0, 60, 1.0))
    accuracy[30] -= 0.2
    run = converted(tmp_path, {"val_accuracy": accuracy}, np.arange(60))
    assert run.verdict == "outlier"
    text = told(run, capsys)
    assert "no sign of instability" not in text
    assert "Not unstable, but a single evaluation was " in text
    assert " points low at step 30. No dip" in text
    assert "val_accuracy 20." in text or "val_accuracy 19." in text
    assert "One evaluation alone is no dip" in text
    assert "kNN" not in text
    assert "images" not in text


def test_a_loss_that_never_fell_is_told(tmp_path, capsys):
    run = converted(tmp_path, {"loss": np.log(10) * noise(0, sigma=0.002)})
    assert run.verdict == "stuck"
    text = told(run, capsys)
    assert "loss never fell: 2.30" in text
    first = text.index("Not unstable, but the loss never fell. No loss spike, no collapse")
    assert first < text.index("1 run (1 recorded)")


@pytest.mark.parametrize(("size", "sigma"), [(60, 0.015), (300, 0.03), (3000, 0.05)])
def test_a_loss_that_stays_at_its_start_or_above_is_stuck_however_it_scatters(size, sigma):
    t, runs, told = np.arange(size), 20, {"flat": 0, "explodes": 0, "learned": 0, "left": 0}
    for seed in range(runs):
        once = noise(seed, size, sigma)
        for name, level in {
            "flat": np.full(size, np.log(10)),
            "explodes": np.where(t < 0.03 * size, 7, 9),
            "learned": 6 + 1.5 * np.exp(-((20 * t / size - 1) ** 2)) - 0.4 * t / size,
            "left": np.where(t < size / 2, 2.3 - 1.5 * np.minimum(1, 5 * t / size), 2.4),
        }.items():
            told[name] += len(stuck({"loss": (t, level * once)}))
    assert min(told["flat"], told["explodes"]) >= 0.8 * runs
    assert told["learned"] == told["left"] == 0


def test_a_slowly_learned_loss_is_not_stuck(tmp_path):
    run = converted(tmp_path, {"loss": 1.75 * noise(0, sigma=0.05) - 0.0001 * np.arange(200)})
    assert run.verdict == "stable"


def test_too_little_to_judge_is_said(tmp_path, capsys):
    run = converted(tmp_path, {"loss": falling_loss()[:10]}, STEPS[:10])
    assert run.verdict == "unknown"
    text = told(run, capsys)
    assert "Nothing can be said" in text
    assert "more than 12 values of a loss" in text


def test_the_judged_accuracy_can_be_chosen(tmp_path, capsys):
    flat = 0.5 + 0.001 * np.log(noise(0, 60, 1.0))
    fallen = flat.copy()
    fallen[30:40] -= 0.2
    columns = {"val_acc": flat, "test_acc": fallen}
    run = converted(tmp_path, columns, np.arange(60))
    assert run.diagnosis().accuracy.metric == "test_acc"
    assert run.verdict == "unstable"
    assert run.diagnosis("val_acc").verdict == "stable"
    capsys.readouterr()
    assert main(["analyze", str(run.path), "--metric", "val_acc"]) == 0
    assert "Judged on val_acc;" in capsys.readouterr().out
    assert main(["analyze", str(run.path), "--metric", "acc"]) == 2
    assert "those that were: test_acc, val_acc" in capsys.readouterr().err


def test_sets_without_accuracy_are_compared_by_their_verdicts(tmp_path, capsys):
    for name, loss in (("a", falling_loss()), ("b", spiked(falling_loss(), 120))):
        (tmp_path / name).mkdir()
        converted(tmp_path / name, {"loss": loss})
    capsys.readouterr()
    assert main(["analyze", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "Too few runs, or all alike: nothing can be said about b and a." in text
    assert "a: 0 of 1 run unstable" in text
    assert "b: 1 of 1 run unstable" in text
    assert "nan" not in text


def test_a_loss_of_too_few_finite_values_is_not_called_absent(tmp_path, capsys):
    loss = np.full(200, np.nan)
    loss[:4] = 5.0
    text = told(converted(tmp_path, {"loss": loss, "grad_norm": noise(0)}), capsys)
    assert "too few finite values of loss." in text
    assert "no loss." not in text
    assert "loss is not finite from step 40" in text


def test_the_spread_of_features_is_named_among_what_was_judged(tmp_path, capsys):
    run = converted(tmp_path, {"loss": falling_loss(), "probe_rank": 20 * noise(1)})
    assert "Judged on loss and the spread of features;" in told(run, capsys)


def test_no_loss_spike_is_claimed_where_there_is_no_loss(tmp_path, capsys):
    text = told(converted(tmp_path, {"grad_norm": noise(0)}), capsys)
    assert "no loss." in text
    assert "no loss spike" not in text.lower()


def test_a_dip_below_the_bar_is_told_and_changes_no_verdict(tmp_path, capsys):
    curve = simulate_curve(np.random.default_rng(0), trend="saturating", ar=0.5, n=500)
    accuracy = curve.accuracy.copy()
    accuracy[60:64] -= 0.03
    for low in (accuracy, curve.accuracy):
        run = converted(tmp_path, {"val_acc": low}, curve.step)
        text = told(run, capsys)
        assert run.verdict == "stable"
        assert ("1 possible dip in 1 run" in text) == (low is accuracy)
        assert ("from step 1,475" in text) == (low is accuracy)
        assert ("no clear sign of instability was found" in text) == (low is accuracy)
        table = make_report(load(run.path).diagnoses()).runs
        assert ("possible dips" in table.head) == (low is accuracy)
        shutil.rmtree(run.path)


def test_a_loss_that_climbs_for_long_and_comes_back_is_unstable(tmp_path, capsys):
    """No step of the climb is a spike; the loss of a held-out set may rise by overfitting."""
    steps = np.arange(2_000)
    noise = np.exp(0.05 * np.random.default_rng(0).normal(size=len(steps)))
    falling = (0.2 + 2 * np.exp(-steps / 300)) * noise
    climb = falling * np.exp(7 * np.exp(-(((steps - 1_000) / 150) ** 2)))
    spiked = climb.copy()
    spiked[900:905] *= 50
    for name, loss, verdict in (
        ("train_loss", falling, "stable"),
        ("train_loss", climb, "unstable"),
        ("val_loss", climb, "stable"),
        ("train_loss", spiked, "unstable"),
    ):
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        run = converted(folder, {name: loss}, steps)
        assert run.verdict == verdict
        assert len(run.events("loss_spike")) == (verdict == "unstable"), "a spike tells of a climb"
        assert main(["analyze", str(run.path)]) == 0
        told = "times\nits best level before" in capsys.readouterr().out
        assert told == (loss is climb and verdict == "unstable")
        incidents = make_report(load(run.path).diagnoses()).incidents
        assert any(i.headline.startswith("Long rise of the loss") for i, _ in incidents) == told


def test_small_rises_of_single_values_that_are_joined_are_hard_batches(tmp_path):
    """The second is nearer to the level than to the first, so the spike has one value."""
    loss = (2.85 + 2 * np.exp(-np.arange(400) / 30)) * noise(0, 400, 0.002)
    loss[300], loss[304] = 3.9, 3.05
    assert converted(tmp_path, {"loss": loss}, np.arange(400)).verdict == "stable"
    loss[300:303] = 3.9
    folder = tmp_path / "lasts"
    folder.mkdir()
    assert converted(folder, {"loss": loss}, np.arange(400)).verdict == "unstable"


@pytest.mark.parametrize(
    "names", [("grad_norm",), ("grad_norm/fc.weight", "grad_norm/conv.weight")]
)
def test_a_norm_that_grows_for_long_is_told(tmp_path, capsys, names):
    grows = 100 ** np.clip(np.arange(200) / 100 - 0.5, 0, 1)
    run = converted(tmp_path, {"loss": falling_loss()} | {n: grows * noise(1) for n in names})
    assert run.verdict == "bursts"
    (event,) = run.events("growth").itertuples()
    assert event.end == 1990
    assert event.onset == pytest.approx(1000, abs=60)
    assert run.events("swell").empty
    text = told(run, capsys)
    assert re.search(r"gradient norms grew to \d+ times their lowest level, from step", text)
    assert "Gradient norms grew for long in 1 run. The most" in text
    assert "rests on growth." in text
    assert "swell" not in text
    (incident,) = all_incidents(load(run.path).diagnoses())
    assert incident.headline.startswith("Growth of gradient norms from step")


def test_a_loss_that_is_0_from_the_first_step_on_never_fell(tmp_path, capsys):
    run = converted(tmp_path, {"loss": np.zeros(200)})
    assert run.verdict == "stuck"
    assert "never fell" in told(run, capsys)
    folder = tmp_path / "part"
    folder.mkdir()
    both = {"loss": falling_loss(), "aux_loss": np.zeros(200)}  # a part that is switched off
    assert converted(folder, both).verdict == "stable"


def test_a_loss_that_fell_at_once_and_rose_for_good_is_not_said_to_have_never_fallen(
    tmp_path, capsys
):
    share = np.arange(1500) / 1500
    loss = 1 + 5 * np.exp(-share / 0.01) + 1.6 * np.clip((share - 0.05) / 0.35, 0, 1)
    run = converted(tmp_path, {"loss": loss * noise(0, 1500, 0.03)}, np.arange(1500))
    assert run.verdict == "diverged"
    text = told(run, capsys)
    assert "left its best level" in text
    assert "never fell" not in text
