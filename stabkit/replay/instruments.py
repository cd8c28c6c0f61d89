"""What a replay measures beyond the Monitor: every tensor's gradient, every sample's loss."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stabkit.train.parallel.reduce import gather


class TensorNorms:
    """The L2 norm of the gradient of each parameter at each step, before anything is clipped.

    Attach it after the Monitor and before the stabilizer: hooks run in that order.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in named]
        self._parameters = [p for _, p in named]
        self._rows: list[Tensor] = []
        self._steps: list[int] = []
        self.step = 0  # of the update that comes next

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: self.measure())

    @torch.no_grad()
    def measure(self) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=self._parameters[0].device)
        norms = [
            zero * torch.nan
            if p.grad is None
            else torch.linalg.vector_norm(p.grad, dtype=zero.dtype)
            for p in self._parameters
        ]
        self._rows.append(torch.stack(norms))
        self._steps.append(self.step)

    def table(self) -> pd.DataFrame:
        """Return step, tensor, grad_norm; the tensors of a step are in the model's order."""
        count = len(self.names)
        values = torch.stack(self._rows).cpu().numpy() if self._rows else np.zeros((0, count))
        return pd.DataFrame(
            {
                "step": np.repeat(np.array(self._steps, dtype=np.int64), count),
                "tensor": self.names * len(self._steps),
                "grad_norm": values.ravel(),
            }
        )


class SampleLosses(nn.Module):
    """Call `network`, and take the loss of each sample where it computes that of the batch.

    Every framework here reduces a cross-entropy (in nats) or a cosine (as the distance 2 - 2·cos).
    What it computes is left as it is; the loss of a sample is the mean over views or directions.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: Tensor | None = None  # [B] of this process, of the last call

    def forward(self, view1: Tensor, *rest: Any) -> Any:
        with _Watch() as watch:
            output = self.network(view1, *rest)
        parts = [found.reshape(-1, len(view1)) for found in watch.found]
        self.losses = torch.cat(parts).mean(dim=0) if parts else None
        return output


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.cross_entropy:
            with torch.no_grad():
                self.found.append(F.cross_entropy(*args, **kwargs | {"reduction": "none"}).detach())
        elif func is F.cosine_similarity:
            self.found.append((2 - 2 * result).detach())
        return result


class SampleTable:
    """Collects the losses of the samples of each batch, of all processes."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, ids: Tensor, losses: Tensor | None) -> None:
        """Take in `losses` [B] of this process; `ids` [N] are those of the whole batch."""
        if losses is not None:
            self._parts.append((step, ids, gather(losses.double()[:, None])[:, 0]))

    def table(self) -> pd.DataFrame:
        """Return step, sample (its place in the data set), loss."""
        columns: Sequence[np.ndarray[Any, Any]] = [
            np.concatenate(
                [np.full(len(ids), step) for step, ids, _ in self._parts] or [np.zeros(0)]
            ),
            np.concatenate([ids.cpu().numpy() for _, ids, _ in self._parts] or [np.zeros(0)]),
            np.concatenate([losses.cpu().numpy() for *_, losses in self._parts] or [np.zeros(0)]),
        ]
        names = ("step", "sample", "loss")
        frame = pd.DataFrame(dict(zip(names, columns, strict=True)))
        return frame.astype({"step": "int64", "sample": "int64", "loss": "float64"})
