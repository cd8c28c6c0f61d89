"""A small fixed batch, and one look at the model with it that training does not notice."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Probe:
    """What probe signals look at. Everything is on the model's device.

    - `view1`: a batch of the model's input, [B, ...]; a tuple or a dict holds several arguments.
      8 to 64 samples do.
    - `view2`: the same samples otherwise augmented, for `alignment`.
    - `embed`: features [B, D] of a model and a view; the model's output when it is not given.
    - `loss`: a scalar loss of a model on a batch of its own, always the same; for curvature and
      gradients at outputs.
    - `target`: the momentum encoder, of the same module names as the model.
    """

    view1: Any
    view2: Any = None
    embed: Callable[[nn.Module, Any], Tensor] | None = None
    loss: Callable[[nn.Module], Tensor] | None = None
    target: nn.Module | None = None


class ProbePass:
    """One look of a Probe; what several signals need is computed once, when first asked for.

    - `model`: eager and unwrapped (no DDP, no compiled wrapper), in evaluation mode;
    - `probe`: the user's;
    - `layer_of`: the layer of a parameter's or a module's name in `model`;
    - `optimizers`: those of the Monitor;
    - `kept`: for what one signal computes and another needs.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        layer_of: Callable[[str], str],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.model = model
        self.probe = probe
        self.layer_of = layer_of
        self.optimizers = optimizers
        self.kept: dict[str, Any] = {}


@contextmanager
def looking(model: nn.Module) -> Iterator[nn.Module]:
    """`model` as a probe may run it: eager, unwrapped, in evaluation mode.

    Afterwards modes, buffers and the random generators (Python's, NumPy's, torch's of CPU and of
    the model's device) are as they were.
    """
    yield model  # TODO
