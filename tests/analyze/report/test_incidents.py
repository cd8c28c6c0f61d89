"""What the report tells of losses, total gradient norms and any accuracy, at its right place."""

from pathlib import Path

import numpy as np
import pytest

from stabkit.analyze.plots.curves import gradient_curves
from stabkit.analyze.plots.event_zoom import event_zoom_rows
from stabkit.analyze.report.advice import advise
from stabkit.analyze.report.contents import make_report
from stabkit.analyze.report.incident import Incident
from stabkit.analyze.report.incidents import all_incidents
from stabkit.analyze.report.page import render
from stabkit.analyze.report.signs import events_of, signs_seen, where_it_began
from stabkit.analyze.summary import run_table, summary
from stabkit.analyze.text import times
from stabkit.cli import main
from stabkit.rundir import RunDir
from stabkit.store.writer import Writer
from tests.analyze.conftest import STEPS, diagnosed, falling_loss, plant_loop, plant_run

NORMS = np.exp(0.1 * np.random.default_rng(2).normal(size=STEPS))


def incidents_of(folder: Path) -> list[Incident]:
    return all_incidents(diagnosed(folder))


def plant_accuracies(folder: Path, values: np.ndarray) -> None:
    """Write a validation accuracy on 10,000 samples at every epoch; the harder samples go first."""
    writer = Writer(folder, "loop")
    for step, value in enumerate(values):
        correct = np.linspace(0, 1, 10_000) < value
        writer.add_eval(step, "val_acc", float(correct.mean()), 0.001, 0, float("nan"), correct)
    writer.flush()


@pytest.mark.parametrize("name", ["loss", "train/loss", "lm loss", "loss_g"])
def test_a_loss_spike_is_told_whatever_the_loss_is_called(tmp_path: Path, name: str) -> None:
    losses = falling_loss()
    losses[200:210] *= 3
    plant_loop(tmp_path / "a", loss=name, losses=losses)
    (spike,) = incidents_of(tmp_path)
    assert (spike.kind, spike.onset, spike.end) == ("loss_spike", 200, 209)
    facts = dict(spike.facts)
    assert facts["In"] == spike.loss == name
    height, expected = facts["Height"].split(", ")
    before, peak = map(float, height.split(" → "))
    assert expected == f"{times(spike.size)} what was expected"
    assert before == pytest.approx(np.median(losses[180:200]), rel=0.01)
    assert peak == pytest.approx(losses[200:210].max(), rel=0.01)
    assert "Gradients" not in facts, "none was recorded"


def test_a_spike_of_a_loss_that_falls_fast_is_no_fall(tmp_path: Path) -> None:
    losses = 10 * np.exp(-np.arange(500) / 8)
    losses[120] *= 3
    plant_loop(tmp_path / "a", losses=losses)
    (spike,) = (one for one in incidents_of(tmp_path) if one.onset == 120)
    before, peak = map(float, spike.headline.split(": ")[1].split(" → "))
    assert before < peak, "the level of the twenty values before lies above the spike"
    assert peak / before == pytest.approx(spike.size, rel=0.02)
    assert signs_seen(diagnosed(tmp_path), [spike])["loss_spikes"] == 1


def test_a_loss_that_left_is_told_first_with_its_levels(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[350:] += 4
    plant_loop(tmp_path / "a", losses=losses)
    left, *_ = incidents_of(tmp_path)
    assert (left.kind, left.onset, left.end) == ("departure", 350, STEPS - 1)
    assert "not recovered when the run ended" in dict(left.facts)["Lasts"]
    best, level = 3.0, float(np.median(losses[-100:]))
    assert f"{level:.3g} in its last fifth (median)" in dict(left.facts)["Level"]
    assert left.headline.endswith(f"→ {level:.3g} in its last fifth (median)")
    assert left.size == pytest.approx(level / best, rel=0.35)
    runs = diagnosed(tmp_path)
    assert signs_seen(runs, incidents_of(tmp_path))["loss_left"] == 1


@pytest.mark.parametrize("burst", ["", "a"])
def test_a_burst_of_all_layers_in_one_step_points_to_the_batch(tmp_path: Path, burst: str) -> None:
    layers = ["a", "b", "c", "d", "e"]
    plant_loop(tmp_path / "run", layers, burst)
    if not burst:
        writer, rng = Writer(tmp_path / "run", "loop"), np.random.default_rng(1)
        grads = np.exp(0.1 * rng.normal(size=(200, 5)))
        grads[100:104] *= 30
        nothing = np.zeros_like(grads, dtype=bool)
        writer.add_layers(
            STEPS + np.arange(200), layers, {"grad_norm": grads.astype(np.float32)},
            {"grad_norm": nothing},
        )  # fmt: skip
        writer.flush()
    runs = diagnosed(tmp_path)
    signs = signs_seen(runs, all_incidents(runs))
    assert signs["bursts"] == 1
    assert signs["at_once"] == (not burst)
    first = advise(runs, run_table(runs), signs, "run")[0].remedy.name
    assert ("leave out its data" in first) == (not burst)


def test_a_burst_of_the_total_norm_is_told_with_the_spike_after_it(tmp_path: Path) -> None:
    losses, norms = falling_loss(), NORMS.copy()
    losses[203:210] *= 3
    norms[200:203] *= 50
    plant_loop(tmp_path / "a", losses=losses, grad_norm=norms)
    spike, burst = incidents_of(tmp_path)
    assert (burst.kind, burst.onset, dict(burst.facts)["In"]) == ("burst", 200, "grad_norm")
    assert burst.began_in == "", "the whole model is no layer"
    assert dict(spike.facts)["Gradients"] == "burst of grad_norm at step 200"


def test_a_loss_that_is_not_finite_is_told_by_name_until_when(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[400:] = np.nan
    plant_loop(tmp_path / "a", losses=losses)
    (bad,) = incidents_of(tmp_path)
    assert (bad.kind, bad.onset, bad.end) == ("nonfinite", 400, STEPS - 1)
    assert bad.headline == "Non-finite values in loss from step 400"
    assert dict(bad.facts)["Lasts"] == "to the end of the run"


def test_the_signal_and_the_layer_of_a_nonfinite_value_are_told(tmp_path: Path) -> None:
    run = RunDir(plant_loop(tmp_path / "a", ["h.0"]))
    facts = {"layers": ["h.2"], "signal": "param_norm", "reached": 7}
    run.append_entry("nonfinite", 80, **facts)
    (bad,) = incidents_of(tmp_path)
    assert bad.headline == "Non-finite values in param_norm of h.2 from step 80"
    assert bad.began_in == "h.2"
    assert dict(bad.facts)["Reached"] == "7 layers"


def test_an_overflow_is_no_divergence(tmp_path: Path) -> None:
    norms = NORMS.copy()
    norms[[120, 300]] = np.inf
    run = RunDir(plant_loop(tmp_path / "a", grad_norm=norms))
    for step in (120, 300):
        run.append_entry("nonfinite", step, names=["grad_norm"])
    (overflow,) = incidents_of(tmp_path)
    assert (overflow.kind, overflow.onset, overflow.end) == ("overflow", 120, 300)
    assert dict(overflow.facts)["In"] == "grad_norm"
    assert "no divergence" in dict(overflow.facts)["Means"]
    assert not any(signs_seen(diagnosed(tmp_path), [overflow]).values()), "and asks for no remedy"


def test_one_low_evaluation_is_told_as_what_it_is(tmp_path: Path) -> None:
    values = 0.7 - 0.6 * np.exp(-np.arange(40) / 10)
    values[25] -= 0.2
    plant_accuracies(tmp_path / "a", values)
    (low,) = incidents_of(tmp_path)
    assert (low.kind, low.onset) == ("outlier", 25)
    assert low.size == pytest.approx(0.2, abs=0.01)
    assert low.headline == f"Single evaluation {100 * low.size:.1f} points low at step 25"
    assert dict(low.facts)["In"] == "val_acc"


def test_where_it_began_is_the_first_layer_and_the_first_step(tmp_path: Path) -> None:
    losses = falling_loss()
    losses[290:310] *= 3
    plant_loop(tmp_path / "a", ["0", "2"], burst="2", losses=losses)
    runs = diagnosed(tmp_path)
    began = where_it_began(all_incidents(runs), runs.items[0])
    words = "at step 290, with a loss spike; then a gradient burst in layer 2 at step 300"
    assert began == (words, 290, [])
    assert where_it_began([], runs.items[0]) == ("", None, [])


def test_a_loss_at_chance_is_not_where_it_began_if_there_is_another_event(tmp_path: Path) -> None:
    """But a spread of features that fell is."""
    stuck = {"loss_relative": 1.0}
    fell = {"feature_std": np.where(np.arange(500) < 100, 1.0, 0.01)}
    for name, scalars, began in [
        ("stuck", stuck, "in layer 2 at step 300, with a gradient burst"),
        ("both", stuck | fell, "in layer 2 at step 300, with a gradient burst"),
        ("fell", fell, "at step 100, with a collapse"),
    ]:
        plant_loop(tmp_path / name / "a", ["0", "2"], burst="2", **scalars)
        runs = diagnosed(tmp_path / name)
        (run,), incidents = runs.items, all_incidents(runs)
        assert len(events_of(incidents, run.name)) == (2 if name == "fell" else 1), incidents
        told = events_of(incidents, run.name)[0]
        assert f"at step {told.onset}, with" in began
        assert where_it_began([told], run).words == began
        (collapse,) = (one for one in incidents if one.kind == "collapse")
        stuck_said = "Collapse: the loss never left chance"
        assert collapse.headline == ("Collapse from step 100" if name == "fell" else stuck_said)
    alone = [one for one in incidents if one.kind == "collapse"]
    assert events_of(alone, run.name) == alone


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["loss", "accuracy"])
def test_the_page_of_a_log_without_knn_does_not_speak_of_it(tmp_path: Path, kind: str) -> None:
    losses = falling_loss()
    losses[200:210] *= 3
    plant_loop(tmp_path / "a", losses=losses)
    if kind == "accuracy":
        values = 0.7 - 0.6 * np.exp(-np.arange(40) / 10)
        values[20:26] -= 0.15
        plant_accuracies(tmp_path / "a", values)
    page = render(make_report(diagnosed(tmp_path)))
    body = page[page.index("<main") :]
    for word in ("kNN", "images", "chance 0.00", "p = 0", "No setting differs", "patch"):
        assert word not in body, word
    assert "No settings were recorded." in body
    assert ("val_acc" in body) == (kind == "accuracy")
    assert ("bursts" in body) is False


@pytest.mark.usefixtures("undrawn")
def test_the_height_of_a_burst_is_that_of_its_picture(tmp_path: Path) -> None:
    """What was expected just before differs from the median of the run, which the picture has."""
    plant_loop(tmp_path / "a", ["0", "1", "2"], burst="2")
    report = make_report(diagnosed(tmp_path))
    burst, picture = next(pair for pair in report.incidents if pair[0].kind == "burst")
    assert picture is not None
    run = burst.run
    curves = gradient_curves(run)
    highest = curves[curves["step"].between(burst.onset, burst.end)].nlargest(1, "relative")
    layer, peak = highest[["layer", "relative"]].iloc[0]
    facts = dict(burst.facts)
    assert facts["Height"] == f"{times(burst.size)} what was expected"
    height = f"{times(peak)} its median over the run"
    assert facts["In the picture"] == f"layer {layer} peaks at {height}"
    assert facts["In the picture"] in picture.alt


@pytest.mark.lengthy
def test_a_csv_of_a_loss_becomes_a_page_with_its_pictures(tmp_path: Path) -> None:
    """From the log to the page, drawn: the event, the loss, and what to try."""
    steps = np.arange(0, 2000, 10)
    losses = 2 + 4 * np.exp(-steps / 300) + 0.02 * np.random.default_rng(0).normal(size=len(steps))
    losses[120:] += 4 * np.exp(-np.arange(80) / 4)
    rows = "\n".join(f"{s},{v:.4f}" for s, v in zip(steps, losses, strict=True))
    (tmp_path / "log.csv").write_text(f"step,train_loss\n{rows}\n")
    assert main(["convert", str(tmp_path / "log.csv"), "-o", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Loss spike at step 1,200" in page
    assert page.count("<img") == 2, "the event and the loss; `signals` would show the loss again"
    assert "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)" in page
    assert "Train_loss" not in page


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.86, "1.9 times"),
        (404.6, "405 times"),
        (11268.9, "11,300 times"),
        (1.5e7, "1.5e+07 times"),
    ],
)
def test_ratios_are_told_in_few_digits(ratio: float, words: str) -> None:
    assert times(ratio) == words


def test_a_burst_that_the_noise_explains_is_not_where_it_began(tmp_path: Path) -> None:
    for stands_out, word in ((True, "burst"), (False, "dip")):
        plant_run(tmp_path / word, dip=0.08, spike=True)
        runs = diagnosed(tmp_path / word)
        runs.items[0].gradients.spikes["stands_out"] = stands_out
        assert word in where_it_began(all_incidents(runs), runs.items[0]).words


def test_a_spike_that_the_record_ends_in_and_values_lost_to_the_end_are_not_over(
    tmp_path: Path,
) -> None:
    for name, values in (("up", 3.0), ("back", 3.0), ("lost", np.nan)):
        losses = falling_loss()
        losses[STEPS - 15 :] *= values
        if name == "back":
            losses[STEPS - 5 :] /= values
        plant_loop(tmp_path / name, losses=losses)
    found = {one.run.name: one for one in incidents_of(tmp_path)}
    ended = "not recovered when the run ended"
    assert {n: ended in dict(one.facts)["Lasts"] for n, one in found.items()} == {
        "up": True, "back": False, "lost": False,
    }  # fmt: skip
    assert dict(found["lost"].facts)["Lasts"] == "to the end of the run"
    is_open = {
        name: bool(event_zoom_rows(one.run, one.onset, one.end)["end"].isna().all())
        for name, one in found.items()
    }
    assert is_open == {"up": True, "back": False, "lost": True}
    assert "and had not come back when the record ended." in summary(diagnosed(tmp_path / "up"))
    assert "and ended at step 494." in summary(diagnosed(tmp_path / "back"))
