"""Where a Monitor comes between a training loop and its optimizers, without the loop knowing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Attachment:
    """Calls, for each of `optimizers`, `gradients(optimizer)` once those of a step are there,
    `before(optimizer)` when the step begins and `after(optimizer)` once it is done; a step that a
    GradScaler skips, or that raises, is a step.

    A closure counts: gradients are there when it has first been called.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        scaler: "torch.amp.GradScaler | None",
        gradients: Callable[[Optimizer], None],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer], None],
    ) -> None:
        self.optimizers = list(optimizers)
        self.scaler = scaler
        self._gradients, self._before, self._after = gradients, before, after
        self._ready: set[int] = set()  # optimizers whose gradients were measured, not yet stepped
        self._begun: set[int] = set()  # those among them that are in their step
        self._hooks: list[Any] = []
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._pre_hook))
            self._hooks.append(optimizer.register_step_post_hook(self._post_hook))
        if scaler is not None:
            self._scaler_step = scaler.step
            scaler.step = self._step_of_scaler  # type: ignore[method-assign]

    def gradients_ready(self) -> None:
        """Measure now what the next steps would; what was measured before and not stepped was a
        step that somebody skipped."""
        for optimizer in self.optimizers:
            self._done(optimizer)
            self._measure(optimizer)

    def grad_scale(self) -> Tensor | None:
        """None without a GradScaler, and before it has scaled anything."""
        return self.scaler._scale if self.scaler is not None else None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        # another Monitor may have come between since: its wrapper then goes on calling this one's
        if self.scaler is not None and self.scaler.__dict__.get("step") == self._step_of_scaler:
            del self.scaler.__dict__["step"]
            if self._scaler_step != self.scaler.step:
                self.scaler.step = self._scaler_step  # type: ignore[method-assign]

    def _measure(self, optimizer: Optimizer) -> None:
        if id(optimizer) not in self._ready and self._hooks:
            self._ready.add(id(optimizer))
            self._gradients(optimizer)

    def _begin(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._ready and id(optimizer) not in self._begun:
            self._begun.add(id(optimizer))
            self._before(optimizer)

    def _done(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._ready:
            self._begin(optimizer)
            self._ready.discard(id(optimizer))
            self._begun.discard(id(optimizer))
            self._after(optimizer)

    def _pre_hook(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if id(optimizer) in self._begun:  # its last step raised, and the training went on
            self._done(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._measure(optimizer)
            self._begin(optimizer)
            return None

        def measured() -> Any:
            loss = closure()
            self._measure(optimizer)
            self._begin(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, kwargs | {"closure": measured}

    def _post_hook(self, optimizer: Optimizer, *_: Any) -> None:
        self._done(optimizer)

    def _step_of_scaler(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        ours = any(optimizer is one for one in self.optimizers)
        if ours:
            self._measure(optimizer)
        try:
            return self._scaler_step(optimizer, *args, **kwargs)
        finally:
            if ours:
                self._done(optimizer)

    def scale_of(self, optimizer: Optimizer) -> Tensor | None:
        """What the gradients are still multiplied by.

        A fused optimizer divides by the scale within its kernel, others before their step.
        """
        if self.scaler is None or not self.scaler.is_enabled():
            scale = getattr(optimizer, "grad_scale", None)
            return scale if isinstance(scale, Tensor) else None
        state = self.scaler._per_optimizer_states.get(id(optimizer))
        if state is not None and state["stage"].name != "READY":
            return None
        return self.scaler._scale

    def __getstate__(self) -> dict[str, Any]:
        """Of a scaler that is copied: the copy steps by itself."""
        own = {} if self.scaler is None else {"_scaler_step": self._scaler_step}
        return {"optimizers": [], "scaler": None, "_hooks": []} | own
