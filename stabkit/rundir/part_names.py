"""The names of part files. They are numbered from 0 without gaps: a missing one is a lost part."""

import os
from collections.abc import Mapping
from pathlib import Path

from stabkit.rundir.find import TABLES


def part_name(number: int) -> str:
    """Return the name of the part with this number."""
    return f"part-{number:06d}.parquet"


def part_numbers(table: Path) -> list[int]:
    """Return the numbers of the parts in the folder of a table, in order; none without a folder.

    A user's copy has another name and no number.
    """
    try:
        names = os.listdir(table)
    except OSError:
        return []
    counts = [n[5:-8] for n in names if n.startswith("part-") and n.endswith(".parquet")]
    return sorted(int(count) for count in counts if count.isdecimal())


def count_parts(run: Path) -> dict[str, int]:
    """Return how many parts each table of a run has."""
    return {table: len(part_numbers(run / table)) for table in TABLES}


def tables_without_parts(run: Path, counts: Mapping[str, int], trained: bool) -> list[str]:
    """Return the tables that lack a part, judged by file names alone; nothing is opened.

    `counts`: how many parts each table had when the run ended, where its status says so; more may
    have been added since. With `trained`, a table that has no part at all lacks one too.
    """
    found = []
    for table in TABLES:
        numbers = part_numbers(run / table)
        least = counts.get(table, int(trained))
        if numbers != list(range(len(numbers))) or len(numbers) < least:
            found.append(table)
    return found
