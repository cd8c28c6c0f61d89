"""Events found while a run trains: the counts in its status."""

import numpy as np
from numpy.typing import NDArray

from stabkit.detect import find_dips
from stabkit.rundir import RunDir
from stabkit.store.reader import Run


class Alerts:
    """Counts the dips of held-out kNN so far, by the detector that the analysis uses, and the
    stretches of non-finite steps. A few milliseconds an evaluation."""

    def __init__(self, rundir: RunDir, chance: float) -> None:
        self.rundir, self.chance = rundir, chance
        run = Run(rundir.path)
        correct = run.correct("knn_heldout")
        self._steps = [] if correct is None else run.evals("knn_heldout")["step"].tolist()
        self._correct = [] if correct is None else list(correct)
        self.counts: dict[str, int] = {}

    def add(self, step: int, correct: NDArray[np.bool_]) -> None:
        """`correct` [n]: the evaluation of the weights after `step` updates."""
        self._steps.append(step)
        self._correct.append(correct)
        bits = np.stack(self._correct)
        dips = find_dips(self._steps, bits.mean(axis=1), correct=bits, chance=self.chance)
        nonfinite = sum(event["kind"] == "nonfinite" for event in self.rundir.read_events())
        found = {"dip": len(dips), "nonfinite": nonfinite}
        self.counts = {kind: count for kind, count in found.items() if count}
