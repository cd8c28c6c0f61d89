"""Measure what a subject adds to a step by itself: time inside its calls, and host reads."""

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

READS = ("item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__float__", "__int__")
_MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Clock:
    """The time between entering and leaving a subject's code; nested calls count once.

    On a CPU: seconds of CPU time of the training's thread, which other work on the machine disturbs
    less than the time of day. On a GPU: seconds between two events of its stream, which is what
    the device spent on added kernels and on waiting for a host that waited for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.depth = 0
        self.reset()

    def reset(self) -> None:
        self.seconds, self.fired = 0.0, 0  # `fired` counts hooks, not calls
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self.depth += 1
        if self.depth == 1:
            if self.cuda:
                pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
                pair[0].record()
                self._events.append(pair)
            self._began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        if self.depth == 1:
            self.seconds += time.thread_time() - self._began
            if self.cuda:
                self._events[-1][1].record()
        self.depth -= 1

    def added_seconds(self) -> float:
        """Return the seconds since the last reset. On a GPU, synchronize before."""
        if self.cuda:
            return sum(began.elapsed_time(ended) for began, ended in self._events) / 1000
        return self.seconds

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            self.fired += 1
            with self:
                return function(*args, **kwargs)

        return inside


@contextmanager
def timing_new_hooks(
    clock: Clock, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[list[int]]:
    """Time every hook that the body puts on `model` or `optimizer` with `clock` from then on.

    Yield a list that holds the number of these hooks after the body.
    """
    before = {id(hooks): set(hooks) for hooks in _hook_tables(model, optimizer)}
    found: list[int] = []
    yield found
    count = 0
    for hooks in _hook_tables(model, optimizer):
        for key in hooks.keys() - before.get(id(hooks), set()):
            hooks[key] = clock.timed(hooks[key])
            count += 1
    found.append(count)


def _hook_tables(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[dict[int, Callable[..., Any]]]:
    owners: list[tuple[Any, tuple[str, ...]]] = [(m, _MODULE_HOOKS) for m in model.modules()]
    owners += [(p, _TENSOR_HOOKS) for p in model.parameters()]
    owners += [(optimizer, _OPTIMIZER_HOOKS)]
    for owner, names in owners:
        for name in names:
            hooks = getattr(owner, name, None)
            if hooks:
                yield hooks


class Waits:
    """Count what makes the host wait for the device inside `clock`.

    On a GPU: what torch's sync debug mode warns about, which is everything except waits for events.
    On a CPU nothing waits, so reads of values are counted, since a GPU would wait at each:
    outermost calls in the training thread only.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock, self.thread = clock, threading.get_ident()
        self.count, self._within = 0, False

    @contextmanager
    def counting(self) -> Iterator[None]:
        if self.clock.cuda:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    yield
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            self.count += sum("called a synchronizing" in str(w.message) for w in found)
            return
        originals = {name: getattr(Tensor, name) for name in READS}
        own = set(READS) & Tensor.__dict__.keys()
        for name, original in originals.items():
            setattr(Tensor, name, self._counted(original))
        try:
            yield
        finally:
            for name, original in originals.items():
                if name in own:
                    setattr(Tensor, name, original)
                else:  # inherited
                    delattr(Tensor, name)

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            ours = self.clock.depth > 0 and threading.get_ident() == self.thread
            if not ours or self._within:
                return original(tensor, *args, **kwargs)
            self.count, self._within = self.count + 1, True
            try:
                return original(tensor, *args, **kwargs)
            finally:
                self._within = False

        return read
