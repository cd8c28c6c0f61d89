"""Detectors: they find events in series, with stated false-alarm rates; numpy and scipy only."""

from stabkit.detect.association import event_association
from stabkit.detect.bursts import find_bursts, layer_onsets
from stabkit.detect.collapse import find_collapse, find_fall_to_chance, find_stuck_loss
from stabkit.detect.departure import find_departure, find_long_rises
from stabkit.detect.dips import find_dips
from stabkit.detect.drift import find_drift
from stabkit.detect.onset_order import onset_order, shallow_first
from stabkit.detect.outliers import find_outliers
from stabkit.detect.spikes import find_spikes
from stabkit.detect.stale_moments import find_stale_moments, gradient_surprise
from stabkit.detect.swells import find_swells
from stabkit.detect.unrest import find_loss_unrest, find_unrest

__all__ = [
    "event_association",
    "find_bursts",
    "find_collapse",
    "find_departure",
    "find_dips",
    "find_drift",
    "find_fall_to_chance",
    "find_long_rises",
    "find_loss_unrest",
    "find_outliers",
    "find_spikes",
    "find_stale_moments",
    "find_stuck_loss",
    "find_swells",
    "find_unrest",
    "gradient_surprise",
    "layer_onsets",
    "onset_order",
    "shallow_first",
]
