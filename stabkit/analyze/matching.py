"""Match the runs of two arms: in pairs of one seed where most runs have partners, else apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stabkit.printing import counted

FEWEST_CELLS = 3  # pairs of cells; fewer could not be tested


@dataclass(frozen=True)
class Matched:
    """The runs of two arms that are compared, and how.

    keys: the settings in which a pair agrees, `seed` first; empty if runs are not paired.
    within: settings that both arms have in common, within which runs may be exchanged.
    words: what was done and why; whole: whether every run has a partner of its seed.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    keys: list[str]
    within: list[str]
    words: str
    whole: bool

    def pairs(self, column: str) -> pd.DataFrame:
        return pair_rows(self.first, self.second, self.keys, column)


def match_runs(first: pd.DataFrame, second: pd.DataFrame, settings: Sequence[str]) -> Matched:
    """Match the rows of two arms, which have the columns seed and `settings`.

    Runs are paired if they agree in seed and settings, provided that more than half of each arm
    have a partner; those that have none are left out. Else the means of cells of equal settings are
    paired, if more than half of each arm lie in at least `FEWEST_CELLS` such cells. Else all runs
    are compared unpaired.
    """
    shared = list(settings)
    arms, named = (first, second), ", ".join(settings)
    by_seed, by_cell = (_both(*arms, keys) for keys in (["seed", *shared], shared))
    most_cells = _most(by_cell, arms)
    out = sum(map(len, arms)) - sum(map(len, by_seed))
    lost = f"{counted(out, 'run')} without a partner left out."
    if _most(by_seed, arms):
        words = f"Paired over {', '.join(['seed', *shared])}; {lost}"
        return Matched(*by_seed, ["seed", *shared], shared, words, whole=not out)
    alone = _few(by_seed, arms, named)
    if most_cells and len(set(cells_of(by_cell[0], shared))) >= FEWEST_CELLS:
        out = sum(map(len, arms)) - sum(map(len, by_cell))
        words = (
            f"{alone}: paired over {named}, so that each cell counts as its mean; "
            f"{counted(out, 'run')} without a partner left out."
        )
        return Matched(*by_cell, shared, shared, words, whole=False)
    words = f"{alone}: compared unpaired, with all runs."
    return Matched(*arms, [], shared if most_cells else [], words, whole=False)


Arms = tuple[pd.DataFrame, pd.DataFrame]


def _both(first: pd.DataFrame, second: pd.DataFrame, keys: list[str]) -> Arms:
    return _partnered(first, second, keys), _partnered(second, first, keys)


def _most(kept: Arms, arms: Arms) -> bool:
    """Return whether more than half of each arm is kept."""
    return all(2 * len(some) > len(arm) for some, arm in zip(kept, arms, strict=True))


def _few(by_seed: Arms, arms: Arms, settings: str) -> str:
    same = f"the same seed and {settings}" if settings else "the same seed"
    if not len(by_seed[0]):
        return f"No run of one has a partner of {same} in the other"
    shares = [f"{len(some)} of {len(arm)}" for some, arm in zip(by_seed, arms, strict=True)]
    return f"Only {' and '.join(shares)} runs have a partner of {same}, too few for pairs"


def _partnered(rows: pd.DataFrame, others: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the rows that agree with one of `others` in all of `keys`; none without keys."""
    theirs = set(cells_of(others, keys)) if keys else set()
    found = [cell in theirs for cell in cells_of(rows, keys)] if keys else [False] * len(rows)
    known = rows["seed"].notna() if "seed" in keys else True
    return rows[pd.Series(found, index=rows.index, dtype=bool) & known]


def cells_of(rows: pd.DataFrame, settings: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the values of `settings` of each row; None for NaN, which equals nothing."""
    return list(map(tuple, rows[list(settings)].map(_comparable).to_numpy()))


def _comparable(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def pair_rows(
    first: pd.DataFrame, second: pd.DataFrame, shared: Sequence[str], column: str = "level"
) -> pd.DataFrame:
    """Return the rows of two arms that agree in `shared`: columns `shared`, first, second.

    Rows of one arm that agree in all of `shared` are one pair, and their mean counts. Rows without
    a seed have no partner.
    """
    keys = list(shared)
    if not keys:
        return pd.DataFrame(columns=["first", "second"])
    one, two = (
        rows.dropna(subset=[key for key in keys if key == "seed"])
        .groupby(keys, sort=False, dropna=False)[column]
        .mean()
        for rows in (first, second)
    )
    joined = pd.concat({"first": one, "second": two}, axis=1, join="inner")
    return joined.dropna().reset_index()
