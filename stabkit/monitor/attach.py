"""Puts a Monitor between a training loop and its optimizers, without a change to the loop."""

import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from stabkit.monitor.wrappers import held_by, opened


class Listener(Protocol):
    """What an `Attachment` calls in each step."""

    def gradients(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """Take the gradients of a step, complete and still multiplied by `scale`."""

    def before_step(self, optimizer: Optimizer) -> None:
        """Hear that the step begins."""

    def after_step(self, optimizer: Optimizer, scale: Tensor | None, late: bool) -> None:
        """Hear that the step is done. `late`: its gradients are gone, noticed too late."""

    def other_step(self, optimizer: Optimizer) -> None:
        """Hear of an optimizer that steps again and again while those of the Monitor do not."""


class Attachment:
    """Tells a listener of every step of `optimizers`, once `attach` was called.

    A step that a GradScaler skips counts as a step, and so does one that raises. In a step with a
    closure the gradients are complete after the first call of the closure. With a GradScaler,
    enabled or not, they are complete at `unscale_`, which is called before clipping.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], scaler: "torch.amp.GradScaler | None"
    ) -> None:
        self.optimizers = list(optimizers)
        # id of an optimizer inside one of ours -> ours; our own are not in it
        self._outer_of: dict[int, Optimizer] = {}
        self._wrapped = scaler
        # a disabled scaler scales nothing, and lacks the attributes of an enabled one
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._unscaled: set[int] = set()  # optimizers that a disabled scaler was asked to unscale
        self._listener: Listener | None = None
        self._steps_of_others: dict[int, int] = {}  # since the last step of `optimizers`
        self._ready: set[int] = set()  # optimizers whose gradients were measured, not yet stepped
        self._begun: set[int] = set()  # those of `_ready` that are about to step
        # optimizers within their step: the caller of the hook, and how many steps of classes deep
        self._within: dict[int, tuple[FrameType | None, int]] = {}
        self._hooks: list[Any] = []
        self._replaced: dict[str, tuple[Any, Any]] = {}  # scaler method -> what it was, what it is

    def attach(self, listener: Listener) -> None:
        """Put hooks on the optimizers and the scaler that tell `listener` of their steps."""
        self._listener = listener
        # A step that is compiled breaks here, instead of taking the measuring into its graph.
        pre, post = map(torch.compiler.disable, (self._pre_hook, self._post_hook))
        for optimizer in self.optimizers:
            inside = [one for one in held_by(optimizer) if not self._is_ours(one)]
            self._outer_of |= {id(one): optimizer for one in inside}
            for one in (optimizer, *inside):
                self._hooks.append(one.register_step_pre_hook(pre))
                self._hooks.append(one.register_step_post_hook(post))
        self._hooks.append(register_optimizer_step_post_hook(_hook_of_all_optimizers(self)))
        if self._wrapped is not None:
            methods = {"unscale_": self._unscale_of_scaler, "update": self._update_of_scaler}
            if self.scaler is not None:  # else the hooks see the step, as without a scaler
                methods["step"] = self._step_of_scaler
            for name, ours in methods.items():
                self._replaced[name] = getattr(self._wrapped, name), ours
                setattr(self._wrapped, name, ours)

    def gradients_ready(self, optimizer: Optimizer | None) -> list[Optimizer]:
        """Measure the gradients of the next step now, of one optimizer or of all; return whose.

        Gradients that were measured earlier, and that no step used, count as a step that the loop
        skipped, unless `unscale_` has only just measured them.
        """
        asked = [self._ours(one) for one in opened(optimizer)]
        told = [one for one in self.optimizers if not asked or any(one is a for a in asked)]
        for one in told:
            if not self._is_unscaled(one):
                self._done(one, late=True)
        for one in told:
            self._measure(one, self._scale_of(one))
        return told

    def grad_scale(self) -> Tensor | None:
        """Return the GradScaler's factor; None without one, and before it has scaled anything."""
        return self.scaler._scale if self.scaler is not None else None

    def remove(self) -> None:
        """Take the hooks off the optimizers and the scaler."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._within.clear()
        for name in self._replaced:
            _unwrap(self._wrapped, name)

    def _measure(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if id(optimizer) not in self._ready and self._hooks and self._listener is not None:
            self._ready.add(id(optimizer))
            self._listener.gradients(optimizer, scale)

    def _begin(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        self._measure(optimizer, scale)
        if id(optimizer) in self._ready and id(optimizer) not in self._begun:
            self._begun.add(id(optimizer))
            if self._listener is not None:
                self._listener.before_step(optimizer)

    def _done(self, optimizer: Optimizer, late: bool = False) -> None:
        self._within.pop(id(optimizer), None)
        self._unscaled.discard(id(optimizer))
        if id(optimizer) in self._ready:
            self._steps_of_others.clear()
            self._begin(optimizer, None)  # a step that was skipped has not begun
            self._ready.discard(id(optimizer))
            self._begun.discard(id(optimizer))
            if self._listener is not None:
                self._listener.after_step(optimizer, _scale_left(optimizer), late)

    def _pre_hook(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        caller, optimizer = _hook_caller(), self._ours(optimizer)
        if id(optimizer) in self._within:
            outer, depth = self._within[id(optimizer)]
            if _is_running(outer, caller):  # the step of a base class, which has hooks as well
                self._within[id(optimizer)] = outer, depth + 1
                return None
            self._done(optimizer, late=True)  # its last step raised, and the training went on
        self._within[id(optimizer)] = caller, 1
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin(optimizer, _scale_within(optimizer))
            return None

        def measured() -> Any:
            loss = closure()
            self._begin(optimizer, _scale_within(optimizer))
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, kwargs | {"closure": measured}

    def _post_hook(self, optimizer: Optimizer, *_: Any) -> None:
        optimizer = self._ours(optimizer)
        outer, depth = self._within.get(id(optimizer), (None, 1))
        if depth > 1:
            self._within[id(optimizer)] = outer, depth - 1
        else:
            self._done(optimizer)

    def _stepped(self, optimizer: Optimizer) -> None:
        if self._within or self._is_ours(self._ours(optimizer)):
            return
        steps = self._steps_of_others.get(id(optimizer), 0) + 1
        self._steps_of_others[id(optimizer)] = steps
        # Once is normal: optimizers may take turns, and a wrapper steps the one inside it.
        if steps == 2 and self._listener is not None:
            self._listener.other_step(optimizer)

    def _step_of_scaler(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        ours = self._is_ours(optimizer)
        if ours:
            self._begin(optimizer, self._scale_of(optimizer))
        try:
            return self._replaced["step"][0](optimizer, *args, **kwargs)
        finally:
            if ours:
                self._done(optimizer)

    def _unscale_of_scaler(self, optimizer: Optimizer) -> None:
        if self._is_ours(optimizer):
            self._measure(optimizer, self._scale_of(optimizer))
            if self.scaler is None:
                self._unscaled.add(id(optimizer))
        self._replaced["unscale_"][0](optimizer)

    def _update_of_scaler(self, *args: Any, **kwargs: Any) -> None:
        unscaled = [one for one in self.optimizers if self._is_unscaled(one)]
        self._replaced["update"][0](*args, **kwargs)
        for optimizer in unscaled:  # measured, and never stepped
            self._done(optimizer, late=True)

    def _ours(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimizer of the Monitor for which this one steps, or else this one."""
        return self._outer_of.get(id(optimizer), optimizer)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(optimizer is one for one in self.optimizers)

    def _is_unscaled(self, optimizer: Optimizer) -> bool:
        if self.scaler is None:
            return id(optimizer) in self._unscaled
        state = self.scaler._per_optimizer_states.get(id(optimizer))
        return state is not None and state["stage"].name != "READY"

    def _scale_of(self, optimizer: Optimizer) -> Tensor | None:
        """Return what the gradients are still multiplied by when a step begins.

        A fused optimizer divides by the scale within its kernel, others before their step.
        """
        if self.scaler is None:
            return _scale_within(optimizer)
        return None if self._is_unscaled(optimizer) else self.scaler._scale

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, made when a scaler is copied: the copy works by itself."""
        whole = {name: (before, None) for name, (before, _) in self._replaced.items()}
        return {"optimizers": [], "scaler": None, "_hooks": [], "_replaced": whole, "_outer_of": {}}


def _hook_of_all_optimizers(attachment: Attachment) -> Callable[..., None]:
    """Return a hook of every optimizer of the process that does not keep the attachment alive."""
    known = weakref.ref(attachment)

    def hook(optimizer: Optimizer, *_: Any) -> None:
        # a step that is compiled as a whole must not be broken for us
        if not torch.compiler.is_compiling() and (one := known()) is not None:
            one._stepped(optimizer)

    return hook


# A subclass may call the step of its base class, and both run the hooks. A counter of hooks cannot
# tell that from a step that raised between them and was tried again: new gradients would end the
# count, but a step may change its own gradients (to clip them) before it calls its base, and a
# closure makes new ones within the step. So we look whether the outer call is still running.
def _hook_caller() -> FrameType | None:
    """Return the frame that called the hook, without those that torch.compiler.disable adds."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and "_dynamo" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame


def _is_running(outer: FrameType | None, inner: FrameType | None) -> bool:
    """Return whether `outer` is `inner` or one of its callers, and so still runs."""
    while inner is not None and inner is not outer:
        inner = inner.f_back
    return inner is outer


def _scale_within(optimizer: Optimizer) -> Tensor | None:
    """Return the scale that a GradScaler gives a fused optimizer for the time of its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def _scale_left(optimizer: Optimizer) -> Tensor | None:
    """Return what the gradients are multiplied by after a fused step, or None.

    A fused step leaves the gradients divided, unless it found one that is not finite: then it
    leaves them as they were.
    """
    scale, found_inf = _scale_within(optimizer), getattr(optimizer, "found_inf", None)
    if scale is None or not isinstance(found_inf, Tensor):
        return None
    return torch.where(found_inf > 0, scale, torch.ones_like(scale))


def _unwrap(scaler: Any, name: str) -> None:
    """Take closed Monitors off a method of the scaler.

    A closed one below an open one stays in the chain until that is closed as well.
    """
    top = vars(scaler).get(name)
    while isinstance(owner := getattr(top, "__self__", None), Attachment) and not owner._hooks:
        top = owner._replaced[name][0]
    if top is not vars(scaler).get(name):
        delattr(scaler, name)
        if top != getattr(scaler, name):
            setattr(scaler, name, top)
