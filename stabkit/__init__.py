"""stabkit: is a training run secretly unstable, where did it start, what would have prevented it?

Names are loaded on first use, so that `import stabkit` stays instant on login nodes and laptops
and imports torch only for `Monitor`.
"""

TYPE_CHECKING = False  # as a type checker reads it; `typing` itself is slow to import
if TYPE_CHECKING:
    from typing import Any

    from stabkit.detect import association as association
    from stabkit.detect import find_bursts as find_bursts
    from stabkit.detect import find_collapse as find_collapse
    from stabkit.detect import find_dips as find_dips
    from stabkit.detect import find_drift as find_drift
    from stabkit.detect import find_spikes as find_spikes
    from stabkit.detect import find_stale_moments as find_stale_moments
    from stabkit.detect import find_stuck_loss as find_stuck_loss
    from stabkit.detect import gradient_surprise as gradient_surprise
    from stabkit.detect import onset_order as onset_order
    from stabkit.monitor.monitor import Monitor as Monitor
    from stabkit.monitor.probe.probe import Probe as Probe
    from stabkit.monitor.signals.signal import DerivedSignal as DerivedSignal
    from stabkit.monitor.signals.signal import LayerSignal as LayerSignal
    from stabkit.monitor.signals.signal import ProbeSignal as ProbeSignal
    from stabkit.monitor.signals.signal import register as register
    from stabkit.store.reader import Run as Run
    from stabkit.store.reader import Runs as Runs
    from stabkit.store.reader import load as load
    from stabkit.store.reader import open_run as open_run

__version__ = "0.1.0"

_HOME = {
    "DerivedSignal": "stabkit.monitor.signals.signal",
    "LayerSignal": "stabkit.monitor.signals.signal",
    "Monitor": "stabkit.monitor.monitor",
    "Probe": "stabkit.monitor.probe.probe",
    "ProbeSignal": "stabkit.monitor.signals.signal",
    "Run": "stabkit.store.reader",
    "Runs": "stabkit.store.reader",
    "association": "stabkit.detect",
    "find_bursts": "stabkit.detect",
    "find_collapse": "stabkit.detect",
    "find_dips": "stabkit.detect",
    "find_drift": "stabkit.detect",
    "find_spikes": "stabkit.detect",
    "find_stale_moments": "stabkit.detect",
    "find_stuck_loss": "stabkit.detect",
    "gradient_surprise": "stabkit.detect",
    "load": "stabkit.store.reader",
    "onset_order": "stabkit.detect",
    "open_run": "stabkit.store.reader",
    "register": "stabkit.monitor.signals.signal",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> "Any":
    if name not in _HOME:
        raise AttributeError(
            f"module 'stabkit' has no attribute {name!r}; it has: {', '.join(__all__)}"
        )
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
