"""Say on what a run was judged, and what it lacks."""

from dataclasses import dataclass

from stabkit.analyze.series import accuracy_words
from stabkit.analyze.text import listed
from stabkit.detect.dips import SHORTEST
from stabkit.printing import counted
from stabkit.store.accuracies import on_training_data

NAMED = 3  # series; more are counted


@dataclass(frozen=True)
class Judged:
    """What was recorded of a run, and enough of it to find a fault there.

    `evals` counts the evaluations of `metric`; `losses` and `norms` name series of the whole run;
    `layers` counts the layers whose gradient norms were recorded. `is_logged`: whether the accuracy
    was logged as a scalar, `features`: whether a spread or rank of features was.
    `short` names losses of too few finite values, where no loss has enough.
    """

    metric: str
    evals: int
    losses: tuple[str, ...]
    norms: tuple[str, ...]
    layers: int
    is_logged: bool = False
    features: bool = False
    short: tuple[str, ...] = ()

    @property
    def accuracy(self) -> bool:
        """Whether there are enough evaluations to find a dip."""
        return self.evals >= SHORTEST

    @property
    def enough(self) -> bool:
        return self.accuracy or bool(self.losses or self.norms or self.layers)

    def parts(self) -> list[str]:
        """Return what was judged, in words."""
        found = []
        if self.accuracy:
            training = ", which is no held-out accuracy" if on_training_data(self.metric) else ""
            logged = " (logged as a scalar)" if self.is_logged else ""
            found.append(accuracy_words(self.metric) + logged + training)
        found += _series(self.losses, "losses")
        if self.layers:
            found.append(f"the gradient norms of {counted(self.layers, 'layer')}")
        found += _series(self.norms, "gradient norms")
        return [*found, "the spread of features"] if self.features else found

    def lacks(self) -> list[str]:
        """Return what was not judged, in words."""
        found = []
        if not self.evals:
            found.append("no held-out accuracy")
        elif not self.accuracy:
            found.append(
                f"{counted(self.evals, 'evaluation')} of {accuracy_words(self.metric)}, "
                f"too few (a dip needs {SHORTEST})"
            )
        if self.short:
            found += [f"too few finite values of {name}" for name in _series(self.short, "losses")]
        elif not self.losses:
            found.append("no loss")
        if not (self.layers or self.norms):
            found.append("no gradient norm")
        return found

    def words(self) -> str:
        """Return one sentence: `Judged on loss and grad_norm; no held-out accuracy.`"""
        parts, lacks = self.parts(), self.lacks()
        if not parts:
            return f"Judged on nothing: {', '.join(lacks)}."
        return f"Judged on {listed(parts)}{'; ' if lacks else ''}{', '.join(lacks)}."


def _series(names: tuple[str, ...], kind: str) -> list[str]:
    return [f"{len(names)} {kind}"] if len(names) > NAMED else list(names)
