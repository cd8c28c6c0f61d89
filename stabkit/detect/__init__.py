"""Events from series, each detector a test with a stated false-alarm rate; numpy and scipy only."""

from stabkit.detect.collapse import find_collapse, find_stuck_loss
from stabkit.detect.dips import find_dips
from stabkit.detect.drift import find_drift
from stabkit.detect.spikes import find_spikes

__all__ = ["find_collapse", "find_dips", "find_drift", "find_spikes", "find_stuck_loss"]
