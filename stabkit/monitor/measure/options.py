"""The options of a Monitor, handed on as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stabkit.monitor.knn.knn import KNN
from stabkit.monitor.probe.probe import Probe
from stabkit.monitor.signals.signal import Asked


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a `Monitor` was asked for. Its docstring says what each option means.

    `run_id`: given by stabkit's own loop, which holds the folder's lock and writes its status.
    """

    signals: Asked | Sequence[Asked]
    probe: Probe | None
    probe_every: int
    scaler: "torch.amp.GradScaler | None"
    layer_of: Callable[[str], str | None] | None
    first_step: int | None
    flush_every: int
    full_every: int
    samples_per_step: int | None
    knn: KNN | None
    teacher: nn.Module | None
    strict: bool
    config: Any
    run_id: str | None
