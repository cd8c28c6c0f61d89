"""Define what the report tells of one study of branches."""

from dataclasses import dataclass

from stabkit.analyze.report.figures import Table
from stabkit.analyze.report.pictures import Picture


@dataclass(frozen=True)
class Prevention:
    """What the report tells of one study.

    event: which one was branched from. answer: what prevented it, in a sentence. lines: the
    verdicts in sentences.
    """

    event: str
    answer: str
    lines: tuple[str, ...]
    table: Table | None
    pictures: tuple[Picture, ...]
