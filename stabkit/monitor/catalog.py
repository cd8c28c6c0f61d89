"""Every signal that a Monitor knows, in words: what `stabkit signals` prints."""

import importlib
import os
import sys
import textwrap
from collections.abc import Sequence

from stabkit.monitor import monitor as _all  # noqa: F401 (importing it registers every signal)
from stabkit.monitor.signals.signal import (
    LEVELS,
    SIGNALS,
    LayerSignal,
    ProbeSignal,
    Signal,
    choose,
)

WHEN = {
    "basic": "of every layer, at every step or at full ones (`full_every`); the default",
    "attention": "every `probe_every` steps, on the probe",
    "features": "every `probe_every` steps, on the probe",
    "curvature": "every `probe_every` steps, on the probe's loss",
    "teacher": "every `probe_every` steps, with Monitor(teacher=...)",
    "noise": "every step, with monitor.micro_batch()",
}


def catalog(names: Sequence[str] = (), module: str | None = None) -> str:
    """Return the levels in order, with the signals of each, as text.

    Raises ValueError for an unknown name or module.
    """
    if module is not None:
        _import(module)
    if unknown := [name for name in names if name not in {*SIGNALS, *LEVELS}]:
        choose(unknown)  # raises, and says what there is
    known = [signal() for signal in SIGNALS.values()]
    chosen = [s for s in known if not names or s.name in names or s.level in names]
    levels = dict.fromkeys([*LEVELS, *(signal.level for signal in chosen)])
    parts = []
    for level in levels:
        inside = [signal for signal in chosen if signal.level == level]
        if inside:
            when = WHEN.get(level)
            parts.append("\n".join([f"{level}" + f": {when}" * bool(when), *map(_entry, inside)]))
    return "\n\n".join(parts)


def _entry(signal: Signal) -> str:
    facts = [f"= {signal.formula}"]
    if signal.unit:
        facts.append(f"unit: {signal.unit}")
    if signal.cost:
        facts.append(f"cost: {signal.cost}")
    if isinstance(signal, LayerSignal) and not signal.every_step:
        facts.append("at full steps")
    if isinstance(signal, ProbeSignal):
        facts.append(f"needs: {', '.join(signal.needs)}")
    if signal.source:
        facts.append(f"source: {signal.source}")
    about = textwrap.fill(
        f"{signal.name:<26}{signal.reveals}", 98, initial_indent="  ", subsequent_indent=" " * 28
    )
    rest = textwrap.fill("; ".join(facts), 98, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return f"{about}\n{rest}"


def _import(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        importlib.import_module(module.removesuffix(".py").replace(os.sep, "."))
    except ImportError as error:
        raise ValueError(f"--module {module}: cannot be imported ({error})") from None
