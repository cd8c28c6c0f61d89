"""The gradient noise scale: the batch above which a larger one hardly makes a better gradient.

With g_s the gradient of a part of B_s samples and g_b that of the batch of B_b, both means
(arXiv 1812.06162, appendix A.1):

    |G|^2 = (B_b |g_b|^2 - B_s |g_s|^2) / (B_b - B_s)      the true gradient's squared norm
    S     = (|g_s|^2 - |g_b|^2) / (1/B_s - 1/B_b)          the trace of one sample's covariance

Each is unbiased, their ratio is not, so both are averaged over steps before they are divided.

Where the parts come from:

- One process: the micro-batches of a step, at least two. The whole is what has accumulated at the
  last `micro_batch()`, so clipping, unscaling and the reduction after it do not matter.
- Several processes that average the gradients themselves after the last backward (`reduced_by`
  "caller"): every micro-batch of every process, one a process is enough. The whole is the reduced
  gradient that `step` finds; it must not have been clipped or unscaled since `micro_batch()`.
- Several processes under DistributedDataParallel ("backward"): the last backward reduces, and hides
  what this process itself added in it. The parts are the micro-batches before it, run in
  `no_sync()` (without it the scale would be wrong); at least two in all. The whole is the gradient
  after the last.

All processes are taken to hold the whole model and a part of the batch; sharded gradients (FSDP)
cannot be measured so.

Caveats. A GradScaler's scale cancels in the ratio, not in its two parts, which are then in squares
of the scaled loss. Where a loss couples the samples of a batch, as a contrastive loss does by its
negatives and batch norm by its statistics, a part of the batch has another loss, and the scale is
only indicative. It describes plain gradients, not Adam's. Half-precision gradients lose the parts
of many micro-batches to rounding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabkit.monitor.blocks import exact_type, is_sharded
from stabkit.monitor.ranks import world_size
from stabkit.monitor.signals.signal import Signal, register_signal

DECAY = 0.99
"""Share of the running means that is kept at each step: they forget over about 100 steps."""


class NoiseSignal(Signal):
    """What `GradientNoise.step` gives by this name, a scalar a step."""

    level = "noise"
    source = "arXiv 1812.06162, equation 2.9 and appendix A.1"
    cost = "a copy of the gradients; three passes over them a micro-batch"


@register_signal
class NoiseScale(NoiseSignal):
    """Negative or huge where the gradient is lost in the noise: then see `noise_signal`."""

    name = "noise_scale"
    unit = "samples"
    formula = "S / |G|^2, each averaged over about 100 steps"
    reveals = "batches far above it waste samples, far below it the gradient is mostly noise"


@register_signal
class NoiseTrace(NoiseSignal):
    name = "noise_trace"
    unit = "squared gradient"
    formula = "S = (|g_s|^2 - |g_b|^2) / (1/B_s - 1/B_b), averaged over about 100 steps"
    reveals = "how much single samples disagree"


@register_signal
class TrueGradient(NoiseSignal):
    name = "noise_signal"
    unit = "squared gradient"
    formula = "|G|^2 = (B_b |g_b|^2 - B_s |g_s|^2) / (B_b - B_s), averaged over about 100 steps"
    reveals = "the gradient without its noise; not above 0 where it cannot be told from noise"


class GradientNoise:
    """Measures a step from the gradients as they accumulate; nothing waits for the device.

    `batch` is the samples of an optimizer step, over all micro-batches and processes, which all
    have equally many. A micro-batch's loss is divided by their number, and gradients are cleared
    before the first. The running means start anew with every object, so with every resumption.
    """

    def __init__(
        self, batch: int, reduced_by: Literal["caller", "backward"] = "caller", decay: float = DECAY
    ) -> None:
        self.batch = batch
        self.reduced_by = reduced_by
        self.decay = decay
        self._before: dict[Tensor, Tensor] = {}
        self._squares: list[Tensor] = []  # of what each micro-batch of this step added
        self._whole: Tensor | None = None
        self._means: Tensor | None = None  # [2]: S and |G|^2, with the weight of the start at 0
        self._weight: Tensor | None = None

    @torch.no_grad()
    def micro_batch(self, parameters: Iterable[Tensor]) -> None:
        """Measure what a backward pass added; call it after each, before the gradients change."""
        present = [p for p in parameters if p.grad is not None]
        grads = [p.grad for p in present if p.grad is not None]
        if not grads:
            return
        first = not self._squares
        fresh = [p for p in present if p not in self._before]
        self._before |= {p: torch.zeros_like(p.grad) for p in fresh if p.grad is not None}
        before = [self._before[p] for p in present]
        if first:
            torch._foreach_zero_(list(self._before.values()))
        torch._foreach_sub_(before, grads)
        self._squares.append(_square(before))
        torch._foreach_copy_(before, grads)
        self._whole = self._squares[0] if first else _square(grads)

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor]) -> dict[str, Tensor] | None:
        """Return the noise signals, 0-d, from the step's gradients before the update.

        None with fewer than two parts, or if `micro_batch` was not called. A measurement that is
        not finite, as in a step that a GradScaler skips, does not enter the means.
        """
        squares, whole, ranks = self._squares, self._whole, world_size()
        self._squares, self._whole = [], None
        number = len(squares)
        if whole is None or number * ranks == 1:
            return None  # the same on all processes, or they would wait for each other
        if ranks > 1 and self.reduced_by == "backward":
            squares = squares[:-1]
        if not squares:
            return None
        # a part's share of the accumulated gradient is its mean gradient over `number`
        small = torch.stack(squares).mean() * number**2
        if ranks > 1:
            dist.all_reduce(small)
            small = small / ranks
            if self.reduced_by == "caller":
                whole = _square([p.grad for p in parameters if p.grad is not None])
        return self._averaged(small, whole, self.batch / (number * ranks))

    def _averaged(self, small: Tensor, big: Tensor, part: float) -> dict[str, Tensor]:
        trace = (small - big) / (1 / part - 1 / self.batch)
        signal = (self.batch * big - part * small) / (self.batch - part)
        now = torch.stack([trace, signal])
        if self._means is None or self._weight is None:
            self._means, self._weight = torch.zeros_like(now), torch.zeros_like(trace)
        keep = torch.where(now.isfinite().all(), self.decay, 1.0)
        self._means = keep * self._means + (1 - keep) * now.nan_to_num(0.0, 0.0, 0.0)
        self._weight = keep * self._weight + (1 - keep)
        trace, signal = (self._means / self._weight).unbind()
        return {"noise_scale": trace / signal, "noise_trace": trace, "noise_signal": signal}


class NoiseSignals:
    """The noise signals among those `asked`; with none of them it does nothing.

    `batch`: samples a step, of all processes. `failed` is told of each when measuring raised; they
    are left out from then on. Raises ValueError where they cannot be measured.
    """

    def __init__(
        self,
        asked: Iterable[Signal],
        batch: int | None,
        model: nn.Module,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self.names = [signal.name for signal in asked if isinstance(signal, NoiseSignal)]
        self.noise: GradientNoise | None = None
        self._failed = failed
        if not self.names:
            return
        if batch is None:
            raise ValueError(
                f"Monitor: {self.names[0]} counts samples: pass samples_per_step, those of all "
                "processes"
            )
        if any(map(is_sharded, model.parameters())):
            raise ValueError(
                f"Monitor: {self.names[0]} needs whole gradients; this model is sharded"
            )
        ddp = nn.parallel.DistributedDataParallel
        by_backward = any(isinstance(module, ddp) for module in model.modules())
        self.noise = GradientNoise(batch, "backward" if by_backward else "caller")

    def micro_batch(self, parameters: Iterable[Tensor]) -> None:
        try:
            if self.noise is not None:
                self.noise.micro_batch(parameters)
        except Exception as error:
            self._drop(error)

    def step(self, parameters: Iterable[Tensor]) -> dict[str, Tensor]:
        """Return the values of the step that begins, if there are any."""
        try:
            found = self.noise.step(parameters) if self.noise is not None else None
        except Exception as error:
            self._drop(error)
            return {}
        return {name: value for name, value in (found or {}).items() if name in self.names}

    def _drop(self, error: Exception) -> None:
        self.noise = None
        for name in self.names:
            self._failed(name, error)


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of all elements, 0-d; widened before they are squared."""
    norms = torch._foreach_norm(list(tensors), 2, dtype=exact_type(tensors[0].device))
    return torch.stack(norms).square().sum()
