"""Events that are found while a run trains, and counted in its status."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.online import OnlineDips
from stabkit.rundir import RunDir
from stabkit.store.reader import Run


def no_action(kind: str, onset: int) -> None:
    pass


class Alerts:
    """Count the dips of held-out kNN and the stretches of non-finite steps so far.

    The detector is the one that the analysis uses. Takes a few milliseconds an evaluation.
    """

    def __init__(
        self, rundir: RunDir, chance: float, act: Callable[[str, int], None] = no_action
    ) -> None:
        """`act` is called once for each new event, with its kind and onset."""
        self.rundir, self._act = rundir, act
        self._dips = OnlineDips(chance)
        run = Run(rundir.path)
        correct = run.correct("knn_heldout")
        if correct is not None:
            self._dips.extend(run.evals("knn_heldout")["step"].tolist(), list(correct))
        self.counts: dict[str, int] = {}
        self._nonfinite = len(self._onsets_of_nonfinite())

    def add(self, step: int, correct: NDArray[np.bool_]) -> None:
        """Take in the evaluation after `step` updates: whether each query was `correct` [n]."""
        dips, new = self._dips.add(step, correct)
        nonfinite = self._onsets_of_nonfinite()
        found = {"dip": len(dips), "nonfinite": len(nonfinite)}
        self.counts = {kind: count for kind, count in found.items() if count}
        for onset in new["onset"]:
            self._act("dip", int(onset))
        for onset in nonfinite[self._nonfinite :]:
            self._act("nonfinite", onset)
        self._nonfinite = len(nonfinite)

    def _onsets_of_nonfinite(self) -> list[int]:
        found = [event for event in self.rundir.read_events() if event["kind"] == "nonfinite"]
        return [int(event.get("step") or 0) for event in found]
