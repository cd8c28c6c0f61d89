"""Judge which interventions would have prevented an event, against placebos and shams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stabkit.analyze.text import aligned
from stabkit.branch.judge.committor import commit_step, commit_words, committor, share_of
from stabkit.branch.judge.exact_tests import (
    fewer,
    fewer_of_few,
    lower,
    prevented_fraction,
    same_direction,
)
from stabkit.branch.judge.intervention_verdict import VERDICTS, falls_less, tell_verdict
from stabkit.detect.significance import holm
from stabkit.printing import counted

REPEATED = 7 / 8  # of the placebos must repeat the event
ONLY = "This holds for this event of this run only."


@dataclass(frozen=True)
class Attribution:
    """What a study of branches says of its event.

    `interventions`: one row each, see `judge_branches`. `committor`: one row a begin step.
    `problem`: why nothing can be attributed; empty if it can.
    """

    interventions: pd.DataFrame
    committor: pd.DataFrame
    problem: str
    unfinished: tuple[str, ...]

    @property
    def commit_step(self) -> int | None:
        """The step from which on at least 90 % of the placebos repeat the event."""
        return commit_step(self.committor)

    def lines(self) -> list[str]:
        """Return what was found, a sentence a line."""
        found = []
        for row in self.committor.itertuples():
            found.append(
                f"{row.events} of {row.placebos} placebos from step {row.begin} repeat the event "
                f"({row.low:.0%} to {row.high:.0%})."
            )
        if len(self.committor):
            words = commit_words(self.committor)
            found.append(f"{words[0].upper()}{words[1:]}.")
        if self.problem:
            found.append(f"Not attributable: {self.problem}.")
        else:
            found += [f"{row.change}: {row.verdict}. {row.why}" for row in self._rows()]
        found += [
            f"{row.change}: accuracy falls less than in the shams, whether or not the event comes "
            f"({row.area:.0f} against {row.area_shams:.0f} points x steps; corrected "
            f"p = {row.p_area:.2g}, in its family {row.p_area_own:.2g})."
            for row in self._smaller()
        ]
        if self.unfinished:
            found.append(f"Left out, not finished: {', '.join(self.unfinished)}.")
        return [*found, ONLY]

    def answer(self) -> str:
        """Return what prevented the event, or made the fall smaller, in a sentence or two."""
        less = ", ".join(row.change for row in self._smaller())
        more = f" Accuracy falls less with: {less}." if less else ""
        if self.problem:
            return f"Not attributable: {self.problem}.{more}"
        helped = [f"{r.change} ({r.verdict})" for r in self._rows() if "prevented" in r.verdict]
        if helped:
            return f"{', '.join(helped)}.{more}"
        tried = counted(len(self.interventions), "change")
        return f"Nothing shown among {tried} that were tried.{more}"

    def text(self) -> str:
        """Return the lines and the table of the interventions."""
        return "\n".join([*self.lines(), *([self._table()] if len(self.interventions) else [])])

    def cells(self) -> list[tuple[str, ...]]:
        """Return the head and the rows of the table of interventions as texts."""
        head = ("change", "verdict", "repeat", "shams", "placebos", "p", "prevented", "area",
                "area of shams", "at the horizon")  # fmt: skip
        rows = [
            (
                row.change, row.verdict, f"{row.events} of {row.n}",
                f"{row.sham_events} of {row.shams}", f"{row.placebo_events} of {row.placebos}",
                f"{row.p:.2g}", _fraction(row), _number(row.area), _number(row.area_shams),
                "-" if math.isnan(row.last) else f"{row.last:.1f} ({row.gain:+.1f})",
            )
            for row in self._rows()
        ]  # fmt: skip
        return [head, *rows]

    def _rows(self) -> list[Any]:
        return list(self.interventions.itertuples())

    def _smaller(self) -> list[Any]:
        """Return the changes that make the fall smaller, but were not found to prevent it."""
        told = VERDICTS[:3]  # prevented, prevented at a price, postponed
        return [
            row for row in self._rows() if row.verdict not in told and falls_less(row._asdict())
        ]

    def _table(self) -> str:
        return aligned(self.cells(), left=(0, 1))


def judge_branches(table: pd.DataFrame) -> Attribution:
    """Judge the interventions of a study. `table`: rows of `branch_table`.

    An intervention is compared with the placebos and all shams from its begin, as one group, by
    Fisher's exact test, one-sided, corrected for the number of interventions (Holm). And it is
    compared with the shams of its own family, which are few, by Boschloo's. Columns:

    - change, family, begin, n (replicates)
    - events; placebo_events, placebos; sham_events, shams; own_events, own_shams
    - p_one, p (corrected), p_own
    - fraction, low, high: prevented fraction against the shams, with an exact 95 % interval
    - area, area_shams: means; p_area (corrected), p_area_own: exact permutation tests that it is
      no smaller than that of all shams, and of those of its family
    - moved: replicates with the event at another time
    - last, gain, p_price: points at the horizon, those above the placebos', and the corrected
      p-value that they are no lower
    - verdict, why
    """
    groups = [
        (str(change), branches)
        for change, branches in table[table["kind"] == "intervention"].groupby("change", sort=False)
    ]
    rows = [_counted(change, branches, table) for change, branches in groups]
    for corrected, key in (("p", "p_one"), ("p_price", "p_price"), ("p_area", "p_area")):
        for row, p in zip(rows, holm([row[key] for row in rows]), strict=True):
            row[corrected] = p
    shares = committor(table)
    problem = _problem(table, shares)
    for row in rows:
        verdict, why = ("not attributable", problem) if problem else tell_verdict(row, len(rows))
        row["verdict"], row["why"] = verdict, why
    unfinished = tuple(table.attrs.get("unfinished", ()))
    return Attribution(pd.DataFrame(rows), shares, problem, unfinished)


def _problem(table: pd.DataFrame, shares: pd.DataFrame) -> str:
    """Say why nothing can be attributed to an intervention; empty if it can."""
    tried = table[table["kind"] == "intervention"]["begin"]
    begin = int(tried.iloc[0]) if len(tried) else int(shares["begin"].min()) if len(shares) else 0
    control = table[(table["kind"] == "control") & (table["begin"] == begin)]
    if not len(control):
        return f"no control from step {begin} has ended"
    if not control["event"].all():
        return f"the control from step {begin} does not show the event itself"
    here = shares[shares["begin"] == begin]
    if not len(here):
        return f"no placebo from step {begin} has ended"
    events, placebos = int(here["events"].iloc[0]), int(here["placebos"].iloc[0])
    if events < REPEATED * placebos:
        return (
            f"{events} of {placebos} placebos repeat the event, and 7 of 8 are needed: from step "
            f"{begin} on a change of one rounding prevents it too often. Begin later, at the onset "
            "at most"
        )
    return ""


def _counted(change: str, branches: pd.DataFrame, table: pd.DataFrame) -> dict[str, Any]:
    begin, family = int(branches["begin"].iloc[0]), str(branches["family"].iloc[0])
    here = table[table["begin"] == begin]
    placebos, shams = here[here["kind"] == "placebo"], here[here["kind"] == "sham"]
    own = shams[shams["family"] == family]
    these, nudged, shammed = share_of(branches), share_of(placebos), share_of(shams)
    others = share_of(pd.concat([placebos, shams]))
    fraction, low, high = prevented_fraction(these, others)
    return {
        "change": change, "family": family, "begin": begin, "n": these.of, "events": these.events,
        "placebo_events": nudged.events, "placebos": nudged.of,
        "sham_events": shammed.events, "shams": shammed.of,
        "own_events": share_of(own).events, "own_shams": len(own),
        "p_one": fewer(these, others), "p": math.nan,
        "p_own": fewer_of_few(these, share_of(own)),
        "fraction": fraction, "low": low, "high": high,
        "area": branches["area"].mean(), "area_shams": shams["area"].mean(),
        "p_area": lower(branches["area"].tolist(), shams["area"].tolist()),
        "p_area_own": lower(branches["area"].tolist(), own["area"].tolist()),
        "moved": int(branches["moved"].sum()), "placebos_moved": int(placebos["moved"].sum()),
        "last": branches["last"].mean(), "gain": branches["last"].mean() - placebos["last"].mean(),
        "p_price": lower(branches["last"].tolist(), placebos["last"].tolist()),
    }  # fmt: skip


def over_events(judged: Sequence[Attribution]) -> pd.DataFrame:
    """Return one row for each change that was tried on several events, with the sign test.

    Columns: change, better and worse (events at which the share of replicates that repeat it lay
    below or above that of the shams), same, p_value (two-sided). Events that were not attributable
    do not count.
    """
    counts: dict[str, list[int]] = {}
    for one in judged:
        for row in [] if one.problem else one.interventions.itertuples():
            gap = row.events * row.shams - row.sham_events * row.n
            better, worse, same = counts.get(row.change, [0, 0, 0])
            counts[row.change] = [better + (gap < 0), worse + (gap > 0), same + (gap == 0)]
    rows = [(change, *found, same_direction(*found[:2])) for change, found in counts.items()]
    return pd.DataFrame(rows, columns=["change", "better", "worse", "same", "p_value"])


def _fraction(row: Any) -> str:
    if math.isnan(row.fraction):
        return "-"
    low = "?" if math.isinf(row.low) else f"{100 * row.low:.0f}"
    return f"{100 * row.fraction:.0f} % ({low} to {100 * row.high:.0f})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"
