"""The benchmark of planted events: its files grow seed by seed, and its table counts verdicts."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.branches.outcome import GOALS, Outcome
from benchmarks.branches.planted import KICK, NUDGE, RELEASE, measure_event, parent_config
from benchmarks.calibration.branch_studies import QUICK, Truth, simulated_table
from stabkit.branch.judge.attribution import judge_branches


def facts(seed: int, depth: float) -> dict[str, Any]:
    return {"seed": seed, "before": 34.0, "lowest": 15.0, "onset": RELEASE, "depth": depth}


def test_seeds_are_added_and_counted_and_not_measured_again(tmp_path: Path) -> None:
    outcome = Outcome(tmp_path)
    assert (outcome.events(), next(outcome.seeds())) == (0, 200)
    outcome.add(facts(201, 0.0), None)
    assert "no dip is found" in outcome.line()
    for seed, truth in ((200, Truth(0.0)), (202, Truth(0.0)), (203, Truth(1.0))):
        outcome.add(facts(seed, 18.0), simulated_table(seed, QUICK, 1.0, truth).assign(seed=seed))
    again = Outcome(tmp_path)
    assert (again.events(), next(again.seeds())) == (3, 204)
    text = again.text()
    assert text.startswith("4 seeds, 3 dip.")
    assert "| change 0 | 66.67 % (9.43 to 99.16) | - | no different from a nudge 1 |" in text
    assert "| change 1 | 0.00 % (0.00 to 70.76) | - | no different from a nudge 3 |" in text


def test_a_seed_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    outcome, table = Outcome(tmp_path), simulated_table(1, QUICK, 1.0, Truth(0.0))
    table.assign(seed=200).to_csv(tmp_path / "branches.csv", index=False)  # and no event
    assert (outcome.events(), next(outcome.seeds())) == (0, 200)
    outcome.add(facts(200, 18.0), table.assign(seed=200))
    assert len(outcome.branches()[200]) == len(table)


def test_the_fault_ends_where_the_branches_begin() -> None:
    config = parent_config(200)
    assert config.fault.until == config.optim.warmup_steps == RELEASE
    assert config.runtime.checkpoint_every == RELEASE, "a state is kept there"


@pytest.mark.slow
@pytest.mark.usefixtures("same_threads")
def test_an_event_is_planted_and_the_cures_are_told_and_no_others(tmp_path: Path) -> None:
    found, table = measure_event(200, tmp_path / "seed-200")
    assert found["depth"] > 5
    assert table is not None
    counts = {"control": 1, "placebo": 8, "sham": 12, "intervention": 18}
    assert table["kind"].value_counts().to_dict() == counts
    verdicts = judge_branches(table).interventions.set_index("change")["verdict"]
    cures = ["optim.beta2=0.9", "reset the moments", "StableAdamW, the moments kept"]
    assert verdicts[cures].tolist() == ["prevented"] * 3
    assert set(cures) <= set(GOALS)
    others = ["skip the 4 batches from step 120", NUDGE, KICK]
    assert not verdicts[others].str.startswith(("prevented", "postponed", "undecided")).any()
    assert not (tmp_path / "seed-200").exists()
