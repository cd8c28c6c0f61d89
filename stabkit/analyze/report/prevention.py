"""Define what the report tells of one study of branches."""

from dataclasses import dataclass

from stabkit.analyze.report.contents import Table
from stabkit.analyze.report.pictures import Picture


@dataclass(frozen=True)
class Prevention:
    """Which event was branched from, the verdicts in sentences, what was tried, and pictures."""

    event: str
    lines: tuple[str, ...]
    table: Table | None
    pictures: tuple[Picture, ...]
