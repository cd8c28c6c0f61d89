"""The tables of the detectors are made as they say, at sizes of a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.calibration import __main__ as command
from benchmarks.calibration import dip_rules, dips, drifts, lengths, levels, losses, rivals, spikes
from benchmarks.calibration.scores import TESTING, TUNING, f1, interval, matched, per_steps
from stabkit.detect.simulate import HEALTHY, Planted, SimulatedCurve, Spike, healthy, norms

RULES = {
    "ours": (dip_rules.ours, 1.0),
    "ours_without_bits": (dip_rules.ours_without_bits, 1.0),
    "peaks": (dip_rules.peaks, 6.0),
    "cusum": (dip_rules.cusum, 8.0),
    "trailing_mean": (dip_rules.trailing_mean, 5.0),
}


def each(function: Callable[[int], Any], count: int, first: int = TESTING) -> list[Any]:
    return [function(seed) for seed in range(first, first + count)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tables have two scenarios, two forms of dips and one base."""
    for module in (dips, drifts):
        monkeypatch.setattr(module, "HEALTHY", dict(list(HEALTHY.items())[1:3]))
    monkeypatch.setattr(rivals, "POOL", ("constant",))
    for module in (dips, rivals):
        monkeypatch.setattr(module, "BASES", ("constant",))
    monkeypatch.setattr(dips, "DIP_MIX", {"a box": (Planted(50, 5, 0.15),)})
    monkeypatch.setattr(rivals, "OUR_BARS", (1.0,))
    others = {name: (rule, bars[-1:]) for name, (rule, bars) in dip_rules.OTHERS.items()}
    monkeypatch.setattr(dip_rules, "OTHERS", others)
    monkeypatch.setattr(dip_rules, "has_pelt", lambda: False)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_finds_a_deep_dip_where_it_is(name: str) -> None:
    rule, k = RULES[name]
    (span,) = rule(healthy("constant", 3, (Planted(50, 6, 0.2),)), k)
    assert abs(span[0] - 50) <= 1
    assert abs(span[1] - 55) <= 3


@pytest.mark.parametrize("name", RULES)
def test_no_rule_alarms_where_nothing_changes(name: str) -> None:
    flat = np.full(60, 0.5)
    curve = SimulatedCurve(25 * np.arange(60), flat, np.tile(np.arange(100) % 2 == 0, (60, 1)))
    assert RULES[name][0](curve, RULES[name][1]) == []


def test_the_trainers_rules_flag_what_they_say() -> None:
    values = np.ones(300)
    values[[50, 200]] = 5.0, 7.0
    assert spikes.above_median(values, 6.0) == [(200, 200)]
    values += 0.01 * np.random.default_rng(0).standard_normal(300)
    assert spikes.above_sigma(values, 6.0) == [(50, 50), (200, 200)]


def test_a_bar_is_the_lowest_that_is_quiet_on_the_tuning_seeds(
    few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def rule(curve: SimulatedCurve, k: float) -> list[tuple[int, int]]:
        return [(0, 0)] if k < 3 else []

    def noted(function: Callable[[int], Any], count: int, first: int = TESTING) -> list[Any]:
        used.append(first)
        return each(function, count, first)

    assert rivals.quiet_bar(noted, rule, (1.0, 2.0, 3.0, 4.0), 4) == 3.0
    assert rivals.quiet_bar(noted, rule, (1.0, 2.0), 4) is None
    assert set(used) == {TUNING}


def test_a_planted_dip_counts_once_however_deep_it_is_nested() -> None:
    nested = (Planted(40, 20, 0.03), Planted(47, 5, 0.05))

    def rule(curve: SimulatedCurve, k: float) -> list[tuple[int, int]]:
        return [(48, 50)]

    assert dips.hits(rule, 1.0, "constant", nested, 0) == [True]
    apart = (Planted(10, 3, 0.05), Planted(47, 5, 0.05))
    assert dips.hits(rule, 1.0, "constant", apart, 0) == [False, True]


@pytest.mark.lengthy
@pytest.mark.parametrize("make", [dips.false_alarms, dips.power, rivals.rival_tables])
def test_tables_of_dips_have_a_cell_for_every_column(make: Callable[..., str], few: None) -> None:
    text = make(each, 4)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) >= 4
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    if make is dips.power:
        assert "| a box | 100 % | 100 % |" in lines
    if make is rivals.rival_tables:
        assert dip_rules.NO_PELT in text, "a missing package is said"


def test_a_spike_is_hit_near_its_rise_alone() -> None:
    assert spikes.hit(spikes.ours, "falls 10x in 40", Spike(100, 10.0), TESTING)

    def late(values: np.ndarray) -> list[tuple[int, int]]:
        return [(105, 105)]

    assert not spikes.hit(late, "stationary", Spike(100, 10.0), 0)
    assert spikes.hit(late, "stationary", Spike(100, 10.0, growth=2), 0)
    assert spikes.healthy_events(lambda values: [(0, 0)] * values.size, "t3", 0) == 500
    assert norms("t3", 0).size == 500


def test_a_planted_spike_of_a_loss_counts_and_a_healthy_loss_has_none() -> None:
    assert losses.hit("nearly normal, 3 %", 2.0, 3, TESTING)
    assert losses.alarm("nearly normal, 3 %", 2_000, TESTING) == (False, False)


def test_a_dip_is_found_in_series_of_any_length_and_none_in_healthy_ones() -> None:
    for evals in (45, 100):
        assert sum(lengths.alarm(evals, TESTING)) == 0
        assert np.mean([lengths.hit(evals, TESTING + i) for i in range(10)]) > 0.4
    curve = lengths.bending(45, np.random.default_rng(0), (Planted(20, 5, 0.2),))
    assert curve.accuracy[22] < curve.accuracy[18] - 0.1


@pytest.mark.parametrize("factor", levels.FACTORS)
def test_every_change_of_a_loss_is_told_once_and_none_in_a_healthy_one(factor: str) -> None:
    kinds = ("departure", "long rise", "unrest", "above its best")
    told = dict(zip(kinds, levels.of_loss("t5, 3 %", factor, 1_000, TESTING), strict=True))
    assert sum(told.values()) == 1, told
    assert not any(levels.of_loss("t5, 3 %", "", 1_000, TESTING))


def test_growth_and_unrest_are_found_where_they_were_planted() -> None:
    assert levels.of_norm("stationary", 50.0, TESTING)
    assert not levels.of_norm("stationary", 10.0, TESTING)
    assert levels.of_accuracy("real_lr004", 0.3, 2, TESTING)
    assert not levels.of_accuracy("real_lr004", 0.0, 2, TESTING)


def test_scores_and_their_intervals() -> None:
    assert matched([(10, 12), (40, 44)], [(11, 11), (12, 13), (80, 81)]) == (1, 2, 1)
    assert f1([(1, 2, 1)]) == pytest.approx(2 / 5)
    # exact: 3.69 events at 97.5 % for none seen; the binomial bound 1 - .025^(1/300)
    assert per_steps(0, 100_000) == "0.0 (0.0 to 3.7)"
    assert interval(0, 300) == "0.00 % (0.00 to 1.22)"


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    opening, closing = "<!-- calibration: dips -->", "<!-- /calibration: dips -->"
    page.write_text(f"before\n{opening}\nold\n{closing}\nafter\n")
    (tmp_path / "other.md").write_text("nothing\n")
    assert command.page_of("dips", tmp_path) == page
    command.write("dips", "new\n", page)
    assert page.read_text() == f"before\n{opening}\n\nnew\n\n{closing}\nafter\n"
    with pytest.raises(SystemExit, match="<!-- calibration: drifts -->"):
        command.page_of("drifts", tmp_path)


def test_an_unknown_subject_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["calibration", "dip"])
    with pytest.raises(SystemExit):
        command.main()
    assert "no subject dip; there are dips, possible, lengths, rivals" in capsys.readouterr().err
