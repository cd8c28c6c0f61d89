"""Simulated runs, healthy or with known events, on which the detectors are calibrated.

`healthy(name, seed, planted)` draws an accuracy with its bits, `norms(name, seed, spikes)` a
gradient norm, `layers(seed, events)` the norms of several layers at once.
"""

from stabkit.detect.simulate.curves import EVERY, Law, SimulatedCurve, draw_curve, simulate_curve
from stabkit.detect.simulate.layers import Burst, SimulatedLayers, layers
from stabkit.detect.simulate.noise import ar1
from stabkit.detect.simulate.norms import NORMS, Spike, norms, simulate_norms
from stabkit.detect.simulate.planted import DIP_MIX, Planted
from stabkit.detect.simulate.scenarios import HEALTHY, LONG, REALISTIC, healthy
from stabkit.detect.simulate.trends import TRENDS

__all__ = [
    "DIP_MIX",
    "EVERY",
    "HEALTHY",
    "LONG",
    "NORMS",
    "REALISTIC",
    "TRENDS",
    "Burst",
    "Law",
    "Planted",
    "SimulatedCurve",
    "SimulatedLayers",
    "Spike",
    "ar1",
    "draw_curve",
    "healthy",
    "layers",
    "norms",
    "simulate_curve",
    "simulate_norms",
]
