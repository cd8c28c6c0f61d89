"""Where a Monitor comes between a training loop and its optimizers, without the loop knowing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Attachment:
    """Calls `gradients(optimizer)` once those of a step are there, `before(optimizer)` when it
    begins and `after(optimizer)` once it is done, for each of `optimizers`; a step that a
    GradScaler skips, or that raises, is a step. Nothing of another optimizer comes between `before`
    and `after`.

    A closure counts: gradients are there when it has first been called. A GradScaler's `unscale_`
    counts: whoever clips calls it before.
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
        # one that is not enabled scales nothing, and lacks the attributes of one that is
        self.scaler = scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._gradients, self._before, self._after = gradients, before, after
        self._ready: set[int] = set()  # optimizers whose gradients were measured, not yet stepped
        self._begun: set[int] = set()  # of these, those about to step
        self._within: set[int] = set()  # those in their step
        self._hooks: list[Any] = []
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._pre_hook))
            self._hooks.append(optimizer.register_step_post_hook(self._post_hook))
        self._replaced: dict[str, tuple[Any, Any]] = {}  # of the scaler: what was there, what is
        if scaler is not None:
            for name, ours in (
                ("unscale_", self._unscale_of_scaler),
                ("step", self._step_of_scaler),
                ("update", self._update_of_scaler),
            ):
                self._replaced[name] = getattr(scaler, name), ours
                setattr(scaler, name, ours)

    def gradients_ready(self) -> None:
        """Measure now what the next steps would; what was measured before and not stepped was a
        step that somebody skipped, unless `unscale_` has only now measured it."""
        for optimizer in self.optimizers:
            if not self._is_unscaled(optimizer):
                self._done(optimizer)
        for optimizer in self.optimizers:
            self._measure(optimizer)

    def grad_scale(self) -> Tensor | None:
        """None without a GradScaler, and before it has scaled anything."""
        return self.scaler._scale if self.scaler is not None else None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        # another Monitor may have come between since: its wrapper then goes on calling this one's
        for name, (before, ours) in self._replaced.items():
            if vars(self.scaler).get(name) == ours:
                delattr(self.scaler, name)
                if before != getattr(self.scaler, name):
                    setattr(self.scaler, name, before)

    def _measure(self, optimizer: Optimizer) -> None:
        if id(optimizer) not in self._ready and self._hooks:
            self._ready.add(id(optimizer))
            self._gradients(optimizer)

    def _begin(self, optimizer: Optimizer) -> None:
        self._measure(optimizer)
        if id(optimizer) in self._ready and id(optimizer) not in self._begun:
            self._begun.add(id(optimizer))
            self._before(optimizer)

    def _done(self, optimizer: Optimizer) -> None:
        self._within.discard(id(optimizer))
        if id(optimizer) in self._ready:
            self._begin(optimizer)  # if it was skipped
            self._ready.discard(id(optimizer))
            self._begun.discard(id(optimizer))
            self._after(optimizer)

    def _pre_hook(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if id(optimizer) in self._within:  # its last step raised, and the training went on
            self._done(optimizer)
        self._within.add(id(optimizer))
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer)
            return None

        def measured() -> Any:
            loss = closure()
            self._begin(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, kwargs | {"closure": measured}

    def _post_hook(self, optimizer: Optimizer, *_: Any) -> None:
        self._done(optimizer)

    def _step_of_scaler(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        ours = self._is_ours(optimizer)
        if ours:
            self._begin(optimizer)
        try:
            return self._replaced["step"][0](optimizer, *args, **kwargs)
        finally:
            if ours:
                self._done(optimizer)

    def _unscale_of_scaler(self, optimizer: Optimizer) -> None:
        if self._is_ours(optimizer):
            self._measure(optimizer)
        self._replaced["unscale_"][0](optimizer)

    def _update_of_scaler(self, *args: Any, **kwargs: Any) -> None:
        unscaled = [one for one in self.optimizers if self._is_unscaled(one)]
        self._replaced["update"][0](*args, **kwargs)
        for optimizer in unscaled:  # measured, and never stepped
            self._done(optimizer)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(optimizer is one for one in self.optimizers)

    def _is_unscaled(self, optimizer: Optimizer) -> bool:
        if self.scaler is None:
            return False
        state = self.scaler._per_optimizer_states.get(id(optimizer))
        return state is not None and state["stage"].name != "READY"

    def scale_of(self, optimizer: Optimizer) -> Tensor | None:
        """What the gradients are still multiplied by, or None.

        A fused optimizer divides by the scale within its kernel, others before their step.
        """
        if self.scaler is None:
            scale = getattr(optimizer, "grad_scale", None)
            return scale if isinstance(scale, Tensor) else None
        return None if self._is_unscaled(optimizer) else self.scaler._scale

    def __getstate__(self) -> dict[str, Any]:
        """Of a scaler that is copied: the copy works by itself."""
        whole = {name: (before, None) for name, (before, _) in self._replaced.items()}
        return {"optimizers": [], "scaler": None, "_hooks": [], "_replaced": whole}
