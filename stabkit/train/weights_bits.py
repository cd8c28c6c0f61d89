"""A sum of all bits of the weights: a replay compares it to tell if its weights are the same."""

from collections.abc import Iterable

import torch
from torch import Tensor

MODULUS = 2**53 - 1  # the remainder is exact in float64, and depends on all 64 bits
SMALL = 2**16  # elements: small tensors are put together first, since each sum takes 10 us or more


@torch.no_grad()
def weights_bits(weights: Iterable[Tensor]) -> Tensor:
    """Return a sum of the bits of all weights, from 0 up to MODULUS, on their device.

    A change of any one weight changes it. Sums of whole numbers are exact in any order, so the
    number of threads does not matter.
    """
    flat = [one.reshape(-1) for one in weights]
    parts = [one for one in flat if _is_large(one)]
    if small := [one for one in flat if not _is_large(one)]:
        missing = -sum(one.numel() for one in small) % 8  # to a whole number of 8 bytes
        parts.append(torch.cat([*small, small[0].new_zeros(missing)]))
    return torch.stack([part.view(torch.int64).sum() for part in parts]).sum() % MODULUS


def _is_large(one: Tensor) -> bool:
    return one.numel() > SMALL and one.nbytes % 8 == 0
