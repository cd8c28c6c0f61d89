"""Find what has become slower than the record, with a margin for noise."""

from collections.abc import Sequence

from benchmarks.lib.results import Row

MARGIN = 0.25


def regressions(recorded: Sequence[Row], found: Sequence[Row], margin: float = MARGIN) -> list[str]:
    """Return one line for each row that misses its bound or is no longer measured.

    The bound is the goal, give or take the margin, for a row that met its goal in the record and
    for a new row. A row that did not meet its goal must stay, give or take the margin, within the
    worse end of its recorded interval.
    """
    before = {(row.what, row.peer): row for row in recorded if row.goal is not None}
    missing = before.keys() - {(row.what, row.peer) for row in found}
    lines = [f"{what} against {peer}: recorded, but not measured" for what, peer in sorted(missing)]
    for row in found:
        if row.goal is None:
            continue
        old = before.get((row.what, row.peer))
        least = row.better == "at least"
        bound, why = row.goal, "the goal"
        if old is not None and old.met is False:
            bound, why = old.ratio.low if least else old.ratio.high, "the record"
        bound *= 1 - margin if least else 1 + margin
        if (row.ratio.middle < bound) if least else (row.ratio.middle > bound):
            ratio = f"{row.ratio.middle:.3g} ({row.ratio.low:.3g}..{row.ratio.high:.3g})"
            line = f"{row.what} against {row.peer}: {ratio}, {row.better} {bound:.3g} is asked"
            lines.append(f"{line} ({why}, with a margin of {margin:.0%})")
    return lines
