"""Events that are found while a run trains, and counted in its status."""

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.online import OnlineDips
from stabkit.rundir import RunDir
from stabkit.store.reader import Run


class Alerts:
    """Count the dips of held-out kNN and the stretches of non-finite steps so far.

    The detector is the one that the analysis uses. Takes a few milliseconds an evaluation.
    """

    def __init__(self, rundir: RunDir, chance: float) -> None:
        self.rundir = rundir
        self._dips = OnlineDips(chance)
        run = Run(rundir.path)
        correct = run.correct("knn_heldout")
        if correct is not None:
            self._dips.extend(run.evals("knn_heldout")["step"].tolist(), list(correct))
        self.counts: dict[str, int] = {}

    def add(self, step: int, correct: NDArray[np.bool_]) -> None:
        """Take in the evaluation after `step` updates: whether each query was `correct` [n]."""
        dips, _ = self._dips.add(step, correct)
        nonfinite = sum(event["kind"] == "nonfinite" for event in self.rundir.read_events())
        found = {"dip": len(dips), "nonfinite": nonfinite}
        self.counts = {kind: count for kind, count in found.items() if count}
