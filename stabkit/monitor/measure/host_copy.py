"""Device values, read one interval later.

Reading a device value makes the host wait for everything queued before it. So an interval's values
are copied without waiting, and read when the *next* interval is complete: by then the copy has long
finished.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Values on their way to the host: [steps, ...] and what to wait for before reading them."""

    host: Tensor
    ready: torch.cuda.Event | None

    def read(self) -> NDArray[np.float64]:
        if self.ready is not None:
            self.ready.synchronize()
        return np.asarray(self.host.numpy(), dtype=np.float64)


def start_copy(values: Tensor) -> Block:
    """Begin copying `values` to the host; they may be overwritten right after."""
    if not values.is_cuda:
        return Block(values.detach().cpu().clone(), None)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values.detach(), non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    # the stream of the copy, which the current device need not be that of
    ready.record(torch.cuda.current_stream(values.device))
    return Block(host, ready)
