"""Where a Monitor comes between a training loop and its optimizers, without the loop knowing."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Attachment:
    """Of each step of each of `optimizers` calls `gradients(optimizer, scale)` once they are there,
    `before(optimizer)` when the step begins, `after(optimizer, scale)` once it is done. A step that
    a GradScaler skips is a step; one that raises has no `after`.

    `scale`: what the gradients are still multiplied by, or None. A closure counts: gradients are
    there when it has first been called.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        scaler: "torch.amp.GradScaler | None",
        gradients: Callable[[Optimizer, Tensor | None], None],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer, Tensor | None], None],
    ) -> None:
        self.optimizers = list(optimizers)
        self.scaler = scaler
        self._gradients, self._before, self._after = gradients, before, after
        self._read: set[int] = set()  # optimizers whose gradients were read ahead of their step
        self._begun: set[int] = set()  # optimizers whose `before` came and not yet `after`
        self._frames: dict[int, FrameType] = {}  # those that called a hook before a step
        self._in_scaler: Optimizer | None = None
        self._hooks: list[Any] = []
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._pre_hook))
            self._hooks.append(optimizer.register_step_post_hook(self._post_hook))
        if scaler is not None:
            self._step_below = scaler.__dict__.get("step")  # None: that of its class
            self._scaler_step = scaler.step
            scaler.step = self._step_of_scaler  # type: ignore[method-assign]

    def gradients_ready(self, optimizer: Optimizer | None) -> None:
        """Read now what is there for the next step, of all optimizers or one."""
        for one in self.optimizers:
            if optimizer is None or one is optimizer:
                self._gradients(one, self._scale_of(one))
                self._read.add(id(one))

    def grad_scale(self) -> Tensor | None:
        """None without a GradScaler, or one that is off, and before it has scaled anything."""
        scaler = self.scaler
        return scaler._scale if scaler is not None and scaler.is_enabled() else None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.scaler is not None:
            _unwrap(self.scaler)

    def _begin(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if id(optimizer) not in self._read:
            self._gradients(optimizer, scale)
        self._read.discard(id(optimizer))
        self._begun.add(id(optimizer))
        self._before(optimizer)

    def _end(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if id(optimizer) in self._begun:
            self._begun.discard(id(optimizer))
            self._after(optimizer, scale)

    def _pre_hook(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        frame = sys._getframe(1)
        if _is_within(frame, self._frames.get(id(optimizer))):
            return None  # of a class whose step calls that of its base, which has hooks too
        self._frames[id(optimizer)] = frame
        if optimizer is self._in_scaler:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer, _scale_within(optimizer))
            return None
        first = True

        def measured() -> Any:
            nonlocal first
            loss = closure()
            if first:
                first = False
                self._begin(optimizer, _scale_within(optimizer))
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, kwargs | {"closure": measured}

    def _post_hook(self, optimizer: Optimizer, *_: Any) -> None:
        if self._frames.get(id(optimizer)) is sys._getframe(1):
            del self._frames[id(optimizer)]
            self._end(optimizer, _scale_left(optimizer))

    def _step_of_scaler(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        ours = bool(self._hooks) and any(optimizer is one for one in self.optimizers)
        if not ours or self.scaler is None or not self.scaler.is_enabled():
            return self._scaler_step(optimizer, *args, **kwargs)
        self._begin(optimizer, self._scale_of(optimizer))
        self._in_scaler = optimizer
        try:
            result = self._scaler_step(optimizer, *args, **kwargs)
        finally:
            self._in_scaler = None
        self._end(optimizer, None)  # unless the post hook came: of a step that was skipped
        return result

    def _scale_of(self, optimizer: Optimizer) -> Tensor | None:
        """A fused optimizer divides by the scale within its kernel, others before their step."""
        if self.scaler is None or not self.scaler.is_enabled():
            return _scale_within(optimizer)
        state = self.scaler._per_optimizer_states.get(id(optimizer))
        if state is not None and state["stage"].name != "READY":
            return None
        return self.scaler._scale


def _is_within(frame: FrameType | None, outer: FrameType | None) -> bool:
    """Whether `outer` is still running, below `frame`. Where a step raised it is not."""
    while outer is not None and frame is not None and frame is not outer:
        frame = frame.f_back
    return outer is not None and frame is outer


def _scale_within(optimizer: Optimizer) -> Tensor | None:
    """What a GradScaler tells a fused optimizer for the time of its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def _scale_left(optimizer: Optimizer) -> Tensor | None:
    """A fused step leaves gradients divided, but as they were where it finds one not finite."""
    scale, found_inf = _scale_within(optimizer), getattr(optimizer, "found_inf", None)
    if scale is None or not isinstance(found_inf, Tensor):
        return None
    return torch.where(found_inf > 0, scale, torch.ones_like(scale))


def _unwrap(scaler: "torch.amp.GradScaler") -> None:
    """Take closed Monitors off its `step`. One that another, still open, came over stays, and goes
    with that."""
    step = scaler.__dict__.get("step")
    while isinstance(owner := getattr(step, "__self__", None), Attachment) and not owner._hooks:
        step = owner._step_below
    if step is None:
        scaler.__dict__.pop("step", None)
    else:
        scaler.step = step  # type: ignore[method-assign]
