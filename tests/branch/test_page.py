"""The page about branches gives the numbers of the code."""

from pathlib import Path

from stabkit.branch import interventions, own_loop, protocol, study
from stabkit.branch.judge import attribution, committor, intervention_verdict, measured

PAGE = " ".join((Path(__file__).parents[2] / "docs/branches.md").read_text("utf-8").split())


def test_how_many_branches_and_when() -> None:
    assert f"| {protocol.PLACEBOS} for each begin step |" in PAGE
    assert f"should not matter | {protocol.SHAMS} |" in PAGE
    quick, full = study.QUICK.replicates, study.FULL.replicates
    assert f"{quick} replicates of each with `--quick`, {full} with `--full`" in PAGE
    for name in interventions.READY:
        assert f"| `{name}` |" in PAGE
    assert (protocol.LEAD, study.AFTER) == (4, 4)
    assert "By default four evaluations before the onset" in PAGE
    assert f"at least four evaluations, at most {study.MOST} after the onset" in PAGE
    assert protocol.FIRST == 3
    assert "in its first three updates" in PAGE
    assert f"{interventions.EPS_FACTOR:,.0f} times as large" in PAGE
    branches = 1 + protocol.PLACEBOS + protocol.SHAMS
    assert f"# three interventions, {branches + 3 * quick} branches" in PAGE
    assert f"# all that are ready, {branches + 10 * full} branches" in PAGE
    assert f"make {branches + 2 * own_loop.REPLICATES} branches of 50 steps" in PAGE


def test_how_branches_are_judged() -> None:
    assert f"at most {measured.MARGIN} evaluations before or after it" in PAGE
    assert f"the median of the parent's last {measured.BEFORE} evaluations up to the onset" in PAGE
    assert f"the mean of the last {measured.LAST} evaluations, in points" in PAGE
    assert attribution.REPEATED == 7 / 8
    assert "at least 7 of 8 placebos must repeat it" in PAGE
    assert intervention_verdict.ALPHA == intervention_verdict.OWN_ALPHA == 0.05
    assert "(Holm), must be at most 0.05" in PAGE
    assert intervention_verdict.SPARED == 1 / 5
    assert "At most one in five of its replicates may have the event" in PAGE
    assert f"end at least {intervention_verdict.PRICE:.0f} point below the placebos" in PAGE
    for verdict in intervention_verdict.VERDICTS:
        assert f"| {verdict}" in PAGE
    assert f"stays at {committor.CERTAIN:.0%} or more".replace("%", " %") in PAGE
