"""Dips to plant in an accuracy, and the mix of them on which power is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stabkit.detect.robust import FloatArray, IntArray

Shape = Literal["box", "v", "sawtooth", "gauss"]


@dataclass(frozen=True)
class Planted:
    """A dip to plant: first lowered evaluation, how many, how deep (fraction), its shape.

    "box" falls and returns at once, "v" falls and returns evenly, "sawtooth" falls at once and
    returns evenly, "gauss" is a bell that is 2 standard deviations wide on each side. `lasting` is
    the share of the depth that stays for good. With a width that reaches beyond the end, the run
    ends in the dip.
    """

    at: int
    width: int
    depth: float
    shape: Shape = "box"
    lasting: float = 0.0


def form(t: IntArray, dip: Planted) -> FloatArray:
    """Return the shape of a dip over time: 1 where it is deepest, 0 outside."""
    inside = (t >= dip.at) & (t < dip.at + dip.width)
    along = (t - dip.at + 0.5) / dip.width
    shape = {
        "box": np.ones(t.size),
        "v": 1 - np.abs(2 * along - 1),
        "sawtooth": np.minimum(1.0, 1.25 * (1 - along)),
        "gauss": np.exp(-((4 * along - 2) ** 2) / 2),
    }[dip.shape]
    passing: FloatArray = np.where(inside, shape, 0.0)
    lasting = np.where(t >= dip.at, dip.lasting, 0.0)
    return np.maximum(passing, lasting)


def loss_of(evals: int, planted: Iterable[Planted]) -> FloatArray:
    """Return what the dips take from the accuracy at each of `evals` evaluations."""
    t = np.arange(evals)
    return sum((dip.depth * form(t, dip) for dip in planted), np.zeros(evals))


# name -> the dips of a run of 100 evaluations. Power is the mean over these of the share found.
DIP_MIX: dict[str, tuple[Planted, ...]] = {
    "box, 4 x 3 points, middle": (Planted(50, 4, 0.03),),
    "box, 4 x 5 points, middle": (Planted(50, 4, 0.05),),
    "box, 4 x 5 points, early": (Planted(15, 4, 0.05),),
    "box, 4 x 2 points, late": (Planted(80, 4, 0.02),),
    "box, 4 x 3 points, late": (Planted(80, 4, 0.03),),
    "V, 8 x 6 points": (Planted(50, 8, 0.06, "v"),),
    "bell, 12 x 5 points": (Planted(45, 12, 0.05, "gauss"),),
    "wide V, 40 x 4 points": (Planted(35, 40, 0.04, "v"),),
    "one evaluation, 10 points": (Planted(50, 1, 0.10),),
    "start, evaluations 3 to 6, 6 points": (Planted(3, 4, 0.06),),
    "end, last 3, 6 points": (Planted(97, 3, 0.06),),
    "nested, 20 x 3 and 5 x 5 points": (Planted(40, 20, 0.03), Planted(47, 5, 0.05)),
    "five of 3 x 5 points, every 12": tuple(Planted(20 + 12 * i, 3, 0.05) for i in range(5)),
}


def random_dips(rng: np.random.Generator) -> tuple[Planted, ...]:
    """Draw up to three dips of 2 to 12 points and 2 to 15 of 100 evaluations, apart."""
    planted: list[Planted] = []
    at = int(rng.integers(10, 30))
    shapes: tuple[Shape, ...] = ("box", "v", "sawtooth")
    for _ in range(int(rng.integers(0, 4))):
        width = int(rng.integers(2, 16))
        if at + width > 97:
            break
        shape = shapes[int(rng.integers(3))]
        planted.append(Planted(at, width, float(rng.uniform(0.02, 0.12)), shape))
        at += width + int(rng.integers(12, 40))
    return tuple(planted)
