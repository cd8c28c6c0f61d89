"""Where a Monitor comes between a training loop and its optimizers, without the loop knowing."""

import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Attachment:
    """Calls `gradients(optimizer, scale)` once those of a step are there, `before(optimizer)` when
    it begins and `after(optimizer, scale, late)` once it is done, for each of `optimizers`; a step
    that a GradScaler skips, or that raises, is a step. `scale`: what the gradients are still
    multiplied by, or None. `late`: the end was noticed when gradients were those of the next step.

    A closure counts: gradients are there when it has first been called. A GradScaler's `unscale_`
    counts: whoever clips calls it before.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        scaler: "torch.amp.GradScaler | None",
        gradients: Callable[[Optimizer, Tensor | None], None],
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer, Tensor | None, bool], None],
        other: Callable[[Optimizer], None],
    ) -> None:
        """`other` is told of an optimizer that steps again and again while these do not."""
        self.optimizers = list(optimizers)
        # one that is not enabled scales nothing, and lacks the attributes of one that is
        self.scaler = scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._gradients, self._before, self._after = gradients, before, after
        self._other = other
        self._steps_of_others: dict[int, int] = {}  # since a step of ours
        self._ready: set[int] = set()  # optimizers whose gradients were measured, not yet stepped
        self._begun: set[int] = set()  # of these, those about to step
        # those in their step: who called the hook, and how many steps of classes deep
        self._within: dict[int, tuple[FrameType | None, int]] = {}
        self._hooks: list[Any] = []
        pre, post = self._pre_hook, self._post_hook
        # The import is slow, and without it nothing can be compiled: PyTorch's own optimizers
        # bring it, those of stabkit.train do not.
        if "torch._dynamo" in sys.modules:
            # a step that is compiled breaks here, instead of taking the measuring into its graph
            pre, post = map(torch.compiler.disable, (pre, post))
        for optimizer in self.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(pre))
            self._hooks.append(optimizer.register_step_post_hook(post))
        self._hooks.append(register_optimizer_step_post_hook(_hearing(self)))
        self._replaced: dict[str, tuple[Any, Any]] = {}  # of the scaler: what was there, what is
        if scaler is not None:
            for name, ours in (
                ("unscale_", self._unscale_of_scaler),
                ("step", self._step_of_scaler),
                ("update", self._update_of_scaler),
            ):
                self._replaced[name] = getattr(scaler, name), ours
                setattr(scaler, name, ours)

    def gradients_ready(self, optimizer: Optimizer | None) -> None:
        """Measure now what the next step would, of one optimizer or all; what was measured before
        and not stepped was a step that somebody skipped, unless `unscale_` has only now measured
        it."""
        told = [one for one in self.optimizers if optimizer is None or one is optimizer]
        for one in told:
            if not self._is_unscaled(one):
                self._done(one, late=True)
        for one in told:
            self._measure(one, self._scale_of(one))

    def grad_scale(self) -> Tensor | None:
        """None without a GradScaler, and before it has scaled anything."""
        return self.scaler._scale if self.scaler is not None else None

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._within.clear()
        for name in self._replaced:
            _unwrap(self.scaler, name)

    def _measure(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        if id(optimizer) not in self._ready and self._hooks:
            self._ready.add(id(optimizer))
            self._gradients(optimizer, scale)

    def _begin(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        self._measure(optimizer, scale)
        if id(optimizer) in self._ready and id(optimizer) not in self._begun:
            self._begun.add(id(optimizer))
            self._before(optimizer)

    def _done(self, optimizer: Optimizer, late: bool = False) -> None:
        self._within.pop(id(optimizer), None)
        if id(optimizer) in self._ready:
            self._steps_of_others.clear()
            self._begin(optimizer, None)  # if it was skipped
            self._ready.discard(id(optimizer))
            self._begun.discard(id(optimizer))
            self._after(optimizer, _scale_left(optimizer), late)

    def _pre_hook(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        caller = _caller()
        if id(optimizer) in self._within:
            outer, depth = self._within[id(optimizer)]
            if _calls(outer, caller):  # of a base, whose step has hooks as well
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
        outer, depth = self._within.get(id(optimizer), (None, 1))
        if depth > 1:
            self._within[id(optimizer)] = outer, depth - 1
        else:
            self._done(optimizer)

    def _stepped(self, optimizer: Optimizer) -> None:
        if self._within or self._is_ours(optimizer):
            return  # one of ours, or within its step
        steps = self._steps_of_others.get(id(optimizer), 0) + 1
        self._steps_of_others[id(optimizer)] = steps
        if steps == 2:  # else ours step between its steps, as those of a wrapper's inner one
            self._other(optimizer)

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
        self._replaced["unscale_"][0](optimizer)

    def _update_of_scaler(self, *args: Any, **kwargs: Any) -> None:
        unscaled = [one for one in self.optimizers if self._is_unscaled(one)]
        self._replaced["update"][0](*args, **kwargs)
        for optimizer in unscaled:  # measured, and never stepped
            self._done(optimizer, late=True)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(optimizer is one for one in self.optimizers)

    def _is_unscaled(self, optimizer: Optimizer) -> bool:
        if self.scaler is None:
            return False
        state = self.scaler._per_optimizer_states.get(id(optimizer))
        return state is not None and state["stage"].name != "READY"

    def _scale_of(self, optimizer: Optimizer) -> Tensor | None:
        """A fused optimizer divides by the scale within its kernel, others before their step."""
        if self.scaler is None:
            return _scale_within(optimizer)
        return None if self._is_unscaled(optimizer) else self.scaler._scale

    def __getstate__(self) -> dict[str, Any]:
        """Of a scaler that is copied: the copy works by itself."""
        whole = {name: (before, None) for name, (before, _) in self._replaced.items()}
        return {"optimizers": [], "scaler": None, "_hooks": [], "_replaced": whole}


def _hearing(attachment: Attachment) -> Callable[..., None]:
    """A hook of all optimizers of the process, which does not keep the attachment alive."""
    known = weakref.ref(attachment)

    def heard(optimizer: Optimizer, *_: Any) -> None:
        # a step that is compiled as a whole must not be broken for us
        if not torch.compiler.is_compiling() and (one := known()) is not None:
            one._stepped(optimizer)

    return heard


def _caller() -> FrameType | None:
    """Of a hook, past what `torch.compiler.disable` puts between."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and "_dynamo" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame


def _calls(outer: FrameType | None, inner: FrameType | None) -> bool:
    """Whether `outer` still runs, as the caller of `inner` or a caller of it."""
    while inner is not None and inner is not outer:
        inner = inner.f_back
    return inner is outer


def _scale_within(optimizer: Optimizer) -> Tensor | None:
    """What a GradScaler tells a fused optimizer for the time of its step, with or without us."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def _scale_left(optimizer: Optimizer) -> Tensor | None:
    """A fused step leaves gradients divided, but as they were where it finds one not finite."""
    scale, found_inf = _scale_within(optimizer), getattr(optimizer, "found_inf", None)
    if scale is None or not isinstance(found_inf, Tensor):
        return None
    return torch.where(found_inf > 0, scale, torch.ones_like(scale))


def _unwrap(scaler: Any, name: str) -> None:
    """Take closed Monitors off a method. One that another, still open, came over stays, and goes
    with that."""
    top = vars(scaler).get(name)
    while isinstance(owner := getattr(top, "__self__", None), Attachment) and not owner._hooks:
        top = owner._replaced[name][0]
    if top is not vars(scaler).get(name):
        delattr(scaler, name)
        if top != getattr(scaler, name):
            setattr(scaler, name, top)
