"""The kinds of events: those found in a record, and those found while a run trains."""

from typing import Literal, get_args

EventKind = Literal[
    "dip", "drift", "outlier", "burst", "swell", "growth", "spike", "loss_spike", "departure",
    "stuck", "unrest", "collapse", "nonfinite", "overflow", "lr_restart",
]  # fmt: skip
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)
# `Monitor.on` takes these. Its `spike` is one of a layer or of a loss. No record shows
# `stale_moments` afterwards, so it is no kind above.
ONLINE_KINDS = ("dip", "spike", "departure", "collapse", "nonfinite", "stale_moments")
