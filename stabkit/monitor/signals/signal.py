"""What a Monitor can measure: a small class for each signal, and the table of all of them.

Three kinds, by how they are measured. A `LayerSignal` reads every tensor of a layer in a step; a
`DerivedSignal` follows from the values of others, after they are on the host; a `ProbeSignal` runs
the model on a small fixed batch every few steps (`probe.py`).
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stabkit.monitor.blocks import Blocks
    from stabkit.monitor.probe.probe import Probe, ProbePass

Moment = Literal["gradients", "parameters", "updates", "adam"]
LEVELS = ("basic", "attention", "features", "curvature", "teacher", "noise")


class Signal:
    """The facts that `stabkit signals` prints. `name` is a column of `layers`, or of a scalar."""

    name: ClassVar[str]
    level: ClassVar[str] = "own"
    unit: ClassVar[str] = ""
    formula: ClassVar[str]
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    reveals: ClassVar[str] = ""


class LayerSignal(Signal):
    """One value a layer, at every step or, where `every_step` is false, at full steps alone.

    `reads` names what `blocks.values` holds when the signal is asked: `gradients` before the
    optimizer's step, `parameters` before it, `updates` (old minus new parameters) after it, `adam`
    (squared gradient over second moment) after it. Absent elements, as of a parameter
    without a gradient, are 0.
    """

    reads: ClassVar[Moment]
    combine: ClassVar[Literal["sum", "max"]] = "sum"
    every_step: ClassVar[bool] = True

    def of_blocks(self, blocks: "Blocks") -> Tensor:
        """Return a number for each row of `blocks.values` [blocks, width]: [blocks].

        It is not below 0 if `combine` is max. It must not change `values`: a signal that does is
        not asked again. `blocks.scratch`, of the same size, is free to use.
        """
        raise NotImplementedError

    def of_layer(self, total_L: Tensor, count_L: Tensor) -> Tensor:
        """Return the signal of each layer, [layers].

        `total_L`: the sum (or maximum) over the layer's blocks, of all ranks. `count_L`: how many
        of its elements are present.
        """
        return total_L


class DerivedSignal(Signal):
    """One value a layer from those of `signals_of`, at the same steps; costs the step nothing.

    It is null where one of these is, and where it has no value (NaN) though they are finite.
    """

    signals_of: ClassVar[tuple[str, ...]]

    def derive(self, values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the signal from the measured ones; each is [steps, layers]."""
        raise NotImplementedError


class ProbeSignal(Signal):
    """Measured on the probe every few steps, before the update, without touching the training.

    `needs` names the parts of the Probe without which it cannot be: `view1`, `view2`, `loss`,
    `target`. A mapping from layers to scalars goes into `layers`, a scalar into `scalars`.
    """

    needs: ClassVar[tuple[str, ...]] = ("view1",)

    def measure(self, seen: "ProbePass") -> Mapping[str, Tensor] | Tensor:
        """Return a scalar for each layer, or one for the run."""
        raise NotImplementedError


Asked = str | Signal | type[Signal]
S = TypeVar("S", bound=type[Signal])
SIGNALS: dict[str, type[Signal]] = {}
"""Every known signal by its name, in the order of levels."""


def register_signal(signal: S) -> S:
    """Class decorator: `signal` can be named in `Monitor(signals=...)` and is listed.

    Raises ValueError when the name is taken by another class, or is not a valid column name.
    """
    name = _named(signal)
    taken = SIGNALS.get(name)
    if taken is not None and _path(taken) != _path(signal):
        raise ValueError(f"signal name {name!r} is taken by {_path(taken)}")
    SIGNALS[name] = signal  # the same class again: a notebook cell run twice
    return signal


def _named(signal: "Signal | type[Signal]") -> str:
    name = str(getattr(signal, "name", ""))
    if not name.isidentifier() or name in ("step", "layer", "depth"):
        raise ValueError(
            f"signal name {name!r}: letters, digits and _ only; not step, layer, depth"
        )
    return name


def _path(signal: type[Signal]) -> str:
    return f"{signal.__module__}.{signal.__qualname__}"


def choose(asked: Asked | Iterable[Asked], probe: "Probe | None" = None) -> list[Signal]:
    """Return the signals that levels, names, classes and objects stand for, each once.

    A derived signal brings those it derives from. A level gives those of its signals for which the
    probe has all parts.

    Raises ValueError for a word that is neither, and where the probe lacks what a signal needs.
    """
    items = [asked] if isinstance(asked, str | Signal | type) else list(asked)
    chosen: dict[str, Signal] = {}
    for item in items:
        for signal in _resolve(item, probe):
            chosen.setdefault(signal.name, signal)
            for name in signal.signals_of if isinstance(signal, DerivedSignal) else ():
                for source in _resolve(name, probe):
                    chosen.setdefault(source.name, source)
    return list(chosen.values())


def _resolve(item: Asked, probe: "Probe | None") -> list[Signal]:
    if isinstance(item, str) and item not in SIGNALS:
        if item not in LEVELS:
            near = difflib.get_close_matches(item, [*LEVELS, *SIGNALS], n=1)
            raise ValueError(
                f"signals: {item!r} is neither a level ({', '.join(LEVELS)}) nor a signal"
                + (f"; did you mean {near[0]!r}?" if near else f" ({', '.join(SIGNALS)})")
            )
        level = [signal() for signal in SIGNALS.values() if signal.level == item]
        able = [signal for signal in level if not _lacks(signal, probe)]
        if not able:
            raise ValueError(_refusal(item, sorted({p for s in level for p in _lacks(s, probe)})))
        return able
    one = SIGNALS[item]() if isinstance(item, str) else item() if isinstance(item, type) else item
    _named(one)
    if missing := _lacks(one, probe):
        raise ValueError(_refusal(one.name, missing))
    return [one]


def _lacks(signal: Signal, probe: "Probe | None") -> list[str]:
    needs = signal.needs if isinstance(signal, ProbeSignal) else ()
    return [part for part in needs if getattr(probe, part, None) is None]


def _refusal(name: str, missing: Iterable[str]) -> str:
    return f"signals: {name} needs probe=stabkit.Probe(...) with {', '.join(missing)}"
