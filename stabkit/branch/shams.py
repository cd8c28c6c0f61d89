"""Matched shams: changes of the kind and size of an intervention, which should not matter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stabkit.branch.interventions import Around, Intervention, other_skips
from stabkit.printing import counted


class Sham(NamedTuple):
    """A sham. One of the family `kick` gets its size, `branch.kick`, once that is measured."""

    family: str
    change: str
    settings: Mapping[str, Any]


class Tensors(NamedTuple):
    """The parameters that train, in order: name, number of weights, layer."""

    names: Sequence[str]
    sizes: Sequence[int]
    layers: Sequence[str]


def shams(
    count: int,
    interventions: Sequence[Intervention],
    around: Around,
    tensors: Tensors,
    suspects: Sequence[str],
    seed: int,
) -> list[Sham]:
    """Return `count` shams, spread evenly over the families of the interventions.

    None touches a layer among `suspects`, where the event may have begun.
    """
    families = list(dict.fromkeys(one.family for one in interventions))
    rng = np.random.default_rng(seed)
    makers = {family: _MADE[family](around, tensors, suspects, rng) for family in families}
    return [next(makers[families[i % len(families)]]) for i in range(count)]


Maker = Iterator[Sham]


def _other_tensors(
    around: Around, tensors: Tensors, suspects: Sequence[str], rng: np.random.Generator
) -> Maker:
    """Freeze the tensor whose size is nearest to that of the patch projection, then the next."""
    size = max(s for n, s in zip(tensors.names, tensors.sizes, strict=True) if n in around.patch)
    others = [i for i, layer in enumerate(tensors.layers) if layer not in suspects]
    drawn = [int(i) for i in rng.permutation(others)]
    order = sorted(drawn, key=lambda i: abs(tensors.sizes[i] - size))  # ties: as drawn
    while True:
        for i in order:
            name = tensors.names[i]
            yield Sham("freeze", f"freeze {name}", {"branch.freeze": [name]})


def _first_moments(
    around: Around, tensors: Tensors, suspects: Sequence[str], rng: np.random.Generator
) -> Maker:
    """Forget the first moments of all layers.

    Both moments of another layer are no sham: where all second moments are stale, they help.
    """
    while True:
        yield Sham("moments", "reset the first moments alone", {"branch.reset_first": True})


def _other_batches(
    around: Around, tensors: Tensors, suspects: Sequence[str], rng: np.random.Generator
) -> Maker:
    _, count = around.batches
    while True:
        for first in rng.permutation(other_skips(around)):
            change = f"skip the {counted(count, 'batch')} from step {first}"
            yield Sham("skip", change, {"branch.skip": [int(first), count]})


def _kicks(
    around: Around, tensors: Tensors, suspects: Sequence[str], rng: np.random.Generator
) -> Maker:
    while True:
        yield Sham("kick", "a kick in a random direction", {})


_MADE = {
    "freeze": _other_tensors,
    "moments": _first_moments,
    "skip": _other_batches,
    "kick": _kicks,
}
