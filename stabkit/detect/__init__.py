"""Events from series, each detector a test with a stated false-alarm rate; numpy and scipy only."""

from stabkit.detect.dips import find_dips
from stabkit.detect.spikes import find_spikes

__all__ = ["find_dips", "find_spikes"]
