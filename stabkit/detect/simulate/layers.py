"""Simulated gradient norms of several layers at once, whose noise goes together."""

from dataclasses import dataclass

import numpy as np

from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate.noise import changing_ar1
from stabkit.detect.simulate.norms import NORMS, Spike, raised

NAMES = ("patch_embed", "cls_token", *(f"blocks.{i}" for i in range(6)), "norm", "projector",
         "predictor")  # fmt: skip
TOGETHER = 0.6  # correlation of layers far apart; the median over all pairs of 11 is .69
NEIGHBORS = 0.9  # correlation of layers that follow each other


@dataclass(frozen=True)
class Burst:
    """An event of several layers: its first raised step, and by how much later each layer rises.

    lags: steps after `at` for each layer, None where the layer is not part of it; the rest as for
    a `Spike`. heights: factor of the log height for each layer, by default 1.
    """

    at: int
    ratio: float
    lags: tuple[int | None, ...]
    growth: int = 1
    tail: float = 0.0
    heights: tuple[float, ...] | None = None
    lasts: int = 1


@dataclass(frozen=True)
class SimulatedLayers:
    """Gradient norms [steps, layers] of layers in depth order, and the bursts planted in them."""

    names: tuple[str, ...]
    norms: FloatArray
    bursts: tuple[Burst, ...]


def layers(
    seed: int,
    bursts: tuple[Burst, ...] = (),
    *,
    name: str = "falls 10x in 40",
    steps: int = 500,
    names: tuple[str, ...] = NAMES,
    noise: tuple[float, ...] | None = None,
    together: float = TOGETHER,
    neighbors: float = NEIGHBORS,
) -> SimulatedLayers:
    """Draw the norms of several layers, each from the law of a scenario of `NORMS`.

    The residuals of two layers correlate by `together` and more the nearer they are, up to
    `neighbors`. `noise`: factor of the scenario's noise for each layer, by default 1. Raises
    ValueError if a burst or the noise has not one value for each layer.
    """
    for what in (noise, *(burst.lags for burst in bursts), *(burst.heights for burst in bursts)):
        if what is not None and len(what) != len(names):
            raise ValueError(f"{len(what)} values for {len(names)} layers: {what}")
    rng = np.random.default_rng([seed, *b"layers", *name.encode()])
    law = NORMS[name](rng, steps)
    shared = law.shocks(rng, steps)
    # Along the depth, own shocks are AR(1), so that neighbors correlate by together + the rest.
    along = (neighbors - together) / (1 - together)
    own = changing_ar1(law.shocks(rng, len(names), steps), along).T
    drawn = changing_ar1(np.sqrt(together) * shared + np.sqrt(1 - together) * own, law.ar)
    scale = np.ones(len(names)) if noise is None else np.array(noise)
    log = law.level[:, None] + law.sigma[:, None] * drawn * scale
    for column in range(len(names)):
        log[:, column] += raised(steps, tuple(_spikes(bursts, column)))
    return SimulatedLayers(names, np.exp(log), bursts)


def _spikes(bursts: tuple[Burst, ...], column: int) -> list[Spike]:
    """Return the spikes of one layer."""
    found = []
    for burst in bursts:
        lag = burst.lags[column]
        if lag is not None:
            height = 1.0 if burst.heights is None else burst.heights[column]
            found.append(
                Spike(burst.at + lag, burst.ratio**height, burst.growth, burst.tail, burst.lasts)
            )
    return found
