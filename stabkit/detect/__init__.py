"""Events from series, each detector a test with a stated false-alarm rate; numpy and scipy only."""

from stabkit.detect.association import association
from stabkit.detect.bursts import find_bursts, layer_onsets
from stabkit.detect.collapse import find_collapse, find_stuck_loss
from stabkit.detect.dips import find_dips
from stabkit.detect.onset_order import onset_order, shallow_first
from stabkit.detect.spikes import find_spikes

__all__ = [
    "association",
    "find_bursts",
    "find_collapse",
    "find_dips",
    "find_spikes",
    "find_stuck_loss",
    "layer_onsets",
    "onset_order",
    "shallow_first",
]
