"""Measure recorded runs for the simulator: python -m benchmarks.calibration.record NAME=FOLDER ...

Writes the statistics of healthy runs, with bits of every evaluation and a gradient norm of every
step, to the file from which `stabkit.detect.simulate` draws its realistic series. Runs that the
file already holds under other names stay.
"""

import argparse

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.optimize import isotonic_regression

import stabkit
from stabkit.detect.robust import FloatArray
from stabkit.detect.simulate.recorded import (
    Recorded,
    measure_accuracy,
    measure_norms,
    recorded,
    write_recorded,
)
from stabkit.store.schema import METRIC

KNOTS = 21


def measure(folder: str, source: str) -> Recorded:
    """Measure one run folder. Raises SystemExit if it lacks the bits of its evaluations."""
    run = stabkit.open_run(folder)
    evals, correct = run.evals(METRIC), run.correct(METRIC)
    if correct is None:
        raise SystemExit(f"{folder}: no bits of {METRIC}; record them with eval.knn.correct")
    accuracy, step = evals["value"].to_numpy(), evals["step"].to_numpy()
    signals = run.signals("grad_norm")
    order = signals.groupby("layer", observed=True)["depth"].first().sort_values().index
    norms = signals.pivot(index="step", columns="layer", values="grad_norm")[list(order)]
    norms = norms.loc[:, (norms > 0).all()]  # not those of a frozen layer
    blocks = [i for i, name in enumerate(norms.columns) if str(name).startswith("blocks.")]
    return Recorded(
        source, int(np.median(np.diff(step))), accuracy.size, correct.shape[1],
        tuple(rising(accuracy).round(4).tolist()), measure_accuracy(accuracy, correct),
        measure_norms(norms.to_numpy(np.float64), blocks),
    )  # fmt: skip


def rising(accuracy: FloatArray) -> FloatArray:
    """Return the smooth rising curve behind an accuracy, at KNOTS equal distances.

    It never falls, so that a series simulated from it holds no dip of the recorded run.
    """
    smooth = uniform_filter1d(isotonic_regression(accuracy).x, 9, mode="nearest")
    at = np.linspace(0, accuracy.size - 1, KNOTS)
    knots: FloatArray = np.interp(at, np.arange(accuracy.size), smooth)
    return knots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help="the name of a scenario")
    parser.add_argument("--source", default="", help="one line: which preset, which settings")
    arguments = parser.parse_args()
    known = dict(recorded())
    for name, folder in (run.split("=", 1) for run in arguments.runs):
        known[name] = measure(folder, arguments.source)
    write_recorded(known)


if __name__ == "__main__":
    main()
