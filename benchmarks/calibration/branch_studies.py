"""Simulate tables of branch studies whose truth is known."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from stabkit.branch.judge.branch_table import COLUMNS

BEGIN = 140
AREA, SPREAD = 300.0, 0.27  # under a dip: mean, deviation over mean; measured on placebos of `tiny`
LEFT, LEFT_SPREAD = 36.0, 2.5  # points at the horizon
FAMILIES = ("freeze", "moments", "kick", "skip")


class Size(NamedTuple):
    """The numbers of branches of a study."""

    interventions: int
    replicates: int
    shams: int  # spread over the families
    families: int
    placebos: int = 8


QUICK, FULL = Size(3, 3, 12, 3), Size(10, 6, 12, 4)  # of `stabkit branch --quick` and `--full`


class Truth(NamedTuple):
    """Chances of one branch: that the event comes when due, and at another time; points lost."""

    event: float
    moved: float = 0.0
    price: float = 0.0


def simulated_table(
    seed: int, size: Size, repeats: float, truth: Truth, own_shams: float | None = None
) -> pd.DataFrame:
    """Return a study: the first intervention has the `truth`, the others have no effect.

    `repeats`: the chance that a branch which nothing prevents repeats the event. `own_shams`: that
    of the shams in the family of the first intervention, `repeats` by default.
    """
    rng = np.random.default_rng(seed)
    usual = Truth(repeats)
    own = usual if own_shams is None else Truth(own_shams)
    rows = [_row(rng, "control", "", "", 0, Truth(1.0))]
    rows += [_row(rng, "placebo", "", "", i, usual) for i in range(size.placebos)]
    families = FAMILIES[: size.families]
    for i in range(size.shams):
        family = families[i % size.families]
        of = own if family == families[0] else usual
        rows.append(_row(rng, "sham", f"sham {i}", family, i // size.families, of))
    for number in range(size.interventions):
        of, family = usual if number else truth, families[number % size.families]
        rows += [
            _row(rng, "intervention", f"change {number}", family, i, of)
            for i in range(size.replicates)
        ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _row(
    rng: np.random.Generator, kind: str, change: str, family: str, replicate: int, truth: Truth
) -> tuple[object, ...]:
    event, moved = bool(rng.random() < truth.event), bool(rng.random() < truth.moved)
    full = AREA * np.exp(SPREAD * rng.normal() - SPREAD**2 / 2)
    area = full if event or moved else 0.1 * full
    last = LEFT - truth.price + LEFT_SPREAD * rng.normal()
    name = f"{change or kind}-{replicate}"
    return name, kind, change, family, BEGIN, replicate, event, moved, area, area / 30, True, last
