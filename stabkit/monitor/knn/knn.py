"""What a kNN evaluation is made of: the user's side."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stabkit.monitor.knn.samples import check_kind


@dataclass(frozen=True)
class KNN:
    """A kNN evaluation every few steps: `Monitor(..., knn=KNN(bank=..., queries=...))`.

    - `bank`, `queries`: a DataLoader of (images, labels), or the two tensors. Images of the bank
      vote on the class of the queries, which training must not see. They are read once and held
      in memory.
    - `embed`: features [n, D] of n images: a function of the model and the images, a function of
      the images, or a module. Without it the model itself is called.
    - `every`: steps from one evaluation to the next; there is one at the beginning and at the end
      as well.
    - `k`, `temperature`: of the weighted vote (Wu et al. 2018, section 3.4); k is at most the size
      of the bank.
    - `batch_size`: images in a forward pass.

    Raises TypeError or ValueError for what cannot be evaluated.
    """

    bank: Any
    queries: Any
    embed: Callable[..., Tensor] | None = None
    every: int = 20
    k: int = 20
    temperature: float = 0.07
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("every", "k", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"KNN: {name} must be a whole number from 1 on, got {value!r}")
        if not self.temperature > 0:
            raise ValueError(f"KNN: temperature must be above 0, got {self.temperature!r}")
        if self.embed is not None:
            takes_model(self.embed)
        check_kind("bank", self.bank)
        check_kind("queries", self.queries)


def takes_model(embed: Any) -> bool:
    """Return whether `embed` is a function of the model and the images, and not of images alone.

    Raises TypeError for what is neither.
    """
    if isinstance(embed, nn.Module):
        return False
    try:
        parameters = list(inspect.signature(embed).parameters.values())
    except (TypeError, ValueError):  # nothing that can be called, or a function without a signature
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    if len(needed) not in (1, 2):
        raise TypeError(
            f"KNN: embed is {embed!r}; it must be a function of the model and the images, such as "
            "`lambda model, images: model.backbone(images)`, or a module"
        )
    return len(needed) == 2
