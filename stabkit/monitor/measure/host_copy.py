"""Device values, read one interval later.

Reading a device value makes the host wait for everything that was queued before it. An interval's
values are therefore copied without waiting, and read when the *next* interval is complete: by then
the copy has long finished.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class HostCopy:
    """Values on their way to the host, [steps, ...]; `ready` is None when they are there."""

    host: Tensor
    ready: torch.cuda.Event | None

    def read(self) -> NDArray[np.float64]:
        """Return the values. Wait for their copy, if it is still under way."""
        if self.ready is not None:
            self.ready.synchronize()
        return np.asarray(self.host.numpy(), dtype=np.float64)


def start_copy(values: Tensor) -> HostCopy:
    """Begin copying `values` to the host; they may be overwritten right after."""
    if not values.is_cuda:
        return HostCopy(values.detach().cpu().clone(), None)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values.detach(), non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    # on the stream that copies: the current device may be another one
    ready.record(torch.cuda.current_stream(values.device))
    return HostCopy(host, ready)
