"""stabkit: is a training run secretly unstable, where did it start, what would have prevented it?

`load` a folder of runs, ask each for its `verdict` and `events`, `plot` it; or watch a loop of your
own with `Monitor`. The detectors, `find_dips` and others, take plain arrays.

Names are loaded on first use, so that `import stabkit` stays instant on login nodes and laptops
and imports torch only for what trains or watches a training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stabkit.version import __version__

if TYPE_CHECKING:
    from stabkit.branch.own_loop import branch_loop as branch_loop
    from stabkit.config import ConfigError as ConfigError
    from stabkit.config import load_config as load_config
    from stabkit.detect import event_association as event_association
    from stabkit.detect import find_bursts as find_bursts
    from stabkit.detect import find_collapse as find_collapse
    from stabkit.detect import find_departure as find_departure
    from stabkit.detect import find_dips as find_dips
    from stabkit.detect import find_drift as find_drift
    from stabkit.detect import find_fall_to_chance as find_fall_to_chance
    from stabkit.detect import find_long_rises as find_long_rises
    from stabkit.detect import find_loss_unrest as find_loss_unrest
    from stabkit.detect import find_outliers as find_outliers
    from stabkit.detect import find_spikes as find_spikes
    from stabkit.detect import find_stale_moments as find_stale_moments
    from stabkit.detect import find_stuck_loss as find_stuck_loss
    from stabkit.detect import find_swells as find_swells
    from stabkit.detect import find_unrest as find_unrest
    from stabkit.detect import gradient_surprise as gradient_surprise
    from stabkit.detect import layer_onsets as layer_onsets
    from stabkit.detect import onset_order as onset_order
    from stabkit.detect import shallow_first as shallow_first
    from stabkit.monitor.knn.knn import KNN as KNN
    from stabkit.monitor.knn.vote import knn_predict as knn_predict
    from stabkit.monitor.monitor import Monitor as Monitor
    from stabkit.monitor.probe.probe import Probe as Probe
    from stabkit.monitor.signals.signal import DerivedSignal as DerivedSignal
    from stabkit.monitor.signals.signal import LayerSignal as LayerSignal
    from stabkit.monitor.signals.signal import ProbeSignal as ProbeSignal
    from stabkit.monitor.signals.signal import register_signal as register_signal
    from stabkit.replay.state_ring import StateRing as StateRing
    from stabkit.rundir import ForeignFolderError as ForeignFolderError
    from stabkit.rundir import LeftOutWarning as LeftOutWarning
    from stabkit.rundir import LinkedError as LinkedError
    from stabkit.rundir import RunBusyError as RunBusyError
    from stabkit.runs import Run as Run
    from stabkit.runs import Runs as Runs
    from stabkit.runs import load as load
    from stabkit.runs import open_run as open_run
    from stabkit.runs import train_run as train_run
    from stabkit.study import Study as Study
    from stabkit.study import open_study as open_study
    from stabkit.train.refusals import InexactResumeError as InexactResumeError

_HOME = {
    "ConfigError": "stabkit.config",
    "DerivedSignal": "stabkit.monitor.signals.signal",
    "ForeignFolderError": "stabkit.rundir",
    "InexactResumeError": "stabkit.train.refusals",
    "KNN": "stabkit.monitor.knn.knn",
    "LayerSignal": "stabkit.monitor.signals.signal",
    "LeftOutWarning": "stabkit.rundir",
    "LinkedError": "stabkit.rundir",
    "Monitor": "stabkit.monitor.monitor",
    "Probe": "stabkit.monitor.probe.probe",
    "ProbeSignal": "stabkit.monitor.signals.signal",
    "Run": "stabkit.runs",
    "RunBusyError": "stabkit.rundir",
    "Runs": "stabkit.runs",
    "StateRing": "stabkit.replay.state_ring",
    "Study": "stabkit.study",
    "branch_loop": "stabkit.branch.own_loop",
    "event_association": "stabkit.detect",
    "find_bursts": "stabkit.detect",
    "find_collapse": "stabkit.detect",
    "find_departure": "stabkit.detect",
    "find_dips": "stabkit.detect",
    "find_drift": "stabkit.detect",
    "find_fall_to_chance": "stabkit.detect",
    "find_long_rises": "stabkit.detect",
    "find_loss_unrest": "stabkit.detect",
    "find_outliers": "stabkit.detect",
    "find_spikes": "stabkit.detect",
    "find_stale_moments": "stabkit.detect",
    "find_stuck_loss": "stabkit.detect",
    "find_swells": "stabkit.detect",
    "find_unrest": "stabkit.detect",
    "gradient_surprise": "stabkit.detect",
    "knn_predict": "stabkit.monitor.knn.vote",
    "layer_onsets": "stabkit.detect",
    "load": "stabkit.runs",
    "load_config": "stabkit.config",
    "onset_order": "stabkit.detect",
    "open_run": "stabkit.runs",
    "open_study": "stabkit.study",
    "register_signal": "stabkit.monitor.signals.signal",
    "shallow_first": "stabkit.detect",
    "train_run": "stabkit.runs",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'stabkit' has no attribute {name!r}; it has: {', '.join(__all__)}"
        )
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
