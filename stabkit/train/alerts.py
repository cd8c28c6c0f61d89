"""Events that are found while a run trains, and counted in its status."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from stabkit.detect.online_dips import DipNews, OnlineDips
from stabkit.rundir import RunDir
from stabkit.store.reader import StoredRun
from stabkit.store.schema import METRIC


def no_action(kind: str, onset: int) -> None:
    pass


class Alerts:
    """Count the confirmed dips of held-out kNN and the stretches of non-finite steps so far.

    Each change of a dip's state (suspected, confirmed, withdrawn) is a line of the log. Takes
    a few milliseconds an evaluation, in a run of any length.
    """

    def __init__(
        self, rundir: RunDir, chance: float, act: Callable[[str, int], None] = no_action
    ) -> None:
        """`act` is called once for each new confirmed event, with its kind and onset."""
        self.rundir, self._act = rundir, act
        self._dips, self._failed = OnlineDips(chance), False
        run = StoredRun(rundir.path)
        correct = run.correct(METRIC)
        if correct is not None:  # of a run that goes on; its log has these changes already
            for step, bits in zip(run.evals(METRIC)["step"].tolist(), correct, strict=True):
                self._found(partial(self._dips.add, step, bits), step)
        self.counts: dict[str, int] = {}
        self._nonfinite = len(self._onsets_of_nonfinite())
        self._count()

    def add(self, step: int, correct: NDArray[np.bool_]) -> None:
        """Take in the evaluation after `step` updates: whether each query was `correct` [n]."""
        self._take_in(partial(self._dips.add, step, correct), step)

    def finish(self, step: int) -> None:
        """Confirm or withdraw what is still suspected, as the run is over after `step` updates."""
        self._take_in(self._dips.finish, step)

    def _take_in(self, search: Callable[[], Sequence[DipNews]], step: int) -> None:
        for one in self._found(search, step):
            # with the step at which it was seen: a run that is resumed before it sees it again
            self.rundir.append_entry(
                one.state, step, cause="dip", onset=int(one.dip["onset"]), metric=METRIC,
                trough=int(one.dip["trough"]), depth=float(one.dip["depth"]),
            )  # fmt: skip
            if one.state == "confirmed":
                self._act("dip", int(one.dip["onset"]))
        self._count()

    def _found(self, search: Callable[[], Sequence[DipNews]], step: int) -> Sequence[DipNews]:
        """Return what the search found. Its error is told once: no verdict is worth a training."""
        try:
            return search()
        except Exception as error:
            if not self._failed:
                reason = f"{type(error).__name__}: {error}"
                self.rundir.append_entry("monitor_failed", step, name="dips", reason=reason)
            self._failed = True
            return []

    def _count(self) -> None:
        nonfinite = self._onsets_of_nonfinite()
        found = {"dip": self._dips.confirmed, "nonfinite": len(nonfinite)}
        self.counts = {kind: count for kind, count in found.items() if count}
        for onset in nonfinite[self._nonfinite :]:
            self._act("nonfinite", onset)
        self._nonfinite = len(nonfinite)

    def _onsets_of_nonfinite(self) -> list[int]:
        found = [entry for entry in self.rundir.read_entries() if entry["kind"] == "nonfinite"]
        return [int(entry.get("step") or 0) for entry in found]
