"""Every list of event kinds has those of `stabkit.event_kinds`."""

import re
from pathlib import Path
from typing import get_args

import stabkit
from stabkit.analyze import found
from stabkit.analyze.report import answers, cards, incident, signs, timeline
from stabkit.analyze.report.remedy import Sign
from stabkit.branch.judge import measured
from stabkit.event_kinds import EVENT_KINDS, ONLINE_KINDS
from stabkit.monitor.react import reactions

GLOSSARY = Path(__file__).parents[1] / "docs" / "glossary.md"


def test_each_kind_is_found_and_told() -> None:
    assert tuple(found._ROWS) == EVENT_KINDS
    assert sorted(incident.TOLD_KINDS) == sorted({*EVENT_KINDS} - {"spike", "lr_restart"})
    assert sorted(timeline.LANES) == sorted(incident.TOLD_KINDS)
    css = Path(incident.__file__).with_name("report.css").read_text()
    marked = re.findall(r"\.marks \.(\w+)", css)
    assert sorted(marked) == sorted(incident.TOLD_KINDS)


def test_shorter_lists_name_no_other_kind() -> None:
    told = {*incident.TOLD_KINDS}
    for shorter in (answers.DECISIVE, cards.TELLING, signs.OF_KIND, signs.IN_WORDS, signs.UNDATED):
        assert {*shorter} <= told
    assert {*signs.OF_KIND.values()} <= {*get_args(Sign)}
    # a branch may also be judged by a step, which is no event
    assert {*measured.KINDS} - {*EVENT_KINDS} == {"step"}


def test_a_kind_is_called_by_a_name_without_underscores() -> None:
    for kind in incident.TOLD_KINDS:
        assert "_" not in signs.IN_WORDS.get(kind, kind)


def test_what_is_found_while_training_is_what_on_takes() -> None:
    assert sorted(reactions.KINDS) == sorted(ONLINE_KINDS)
    assert {*ONLINE_KINDS} - {*EVENT_KINDS} == {"stale_moments"}


def test_docs_list_every_kind() -> None:
    events = next(line for line in GLOSSARY.read_text().splitlines() if line[:8] == "| event ")
    assert tuple(re.findall(r"`(\w+)`", events)) == EVENT_KINDS
    docstring = stabkit.Run.events.__doc__ or ""
    assert {*re.findall(r"`(\w+)`", docstring)} >= {*EVENT_KINDS}
