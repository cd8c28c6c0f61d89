"""The second moments of an optimizer of the Adam family, bias-corrected, against its gradients."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from stabkit.monitor.blocks import Blocks, local
from stabkit.monitor.measure.adam_like import is_corrected, why_not_adam
from stabkit.monitor.model_blocks import ModelBlocks
from stabkit.monitor.wrappers import held_by

# keeps a second moment away from 0 where eps is 0
TINY = {torch.float32: 1e-37, torch.float64: 1e-300}


class AdamState(NamedTuple):
    """What an optimizer's step left, tensors as `Blocks.read` takes them; None without a moment.

    `floor`, `correction` [blocks, 1]: max(c*eps², tiny) and c = 1 - beta2^step. `divisors`: what
    the step divided the gradients by.
    """

    moments: Sequence[Tensor | None]
    grads: Sequence[Tensor | None]
    floor: Tensor
    correction: Tensor
    divisors: Sequence[Tensor]


def fill(part: Blocks, state: AdamState) -> None:
    """Show g²/max(v/c, eps²) in a part, 0 for tensors without a second moment v."""
    room = part.room
    grads = part.read(part.scratch, state.grads)
    for divisor in state.divisors:
        grads = torch.div(grads, divisor, out=part.scratch)
    # g²/max(v/c, eps²) = c * g²/max(v, c*eps²). Multiplied from the left, ((g / max) * g) * c,
    # because g² alone may leave the range of float32.
    torch.maximum(part.read(room, state.moments), state.floor[part.rows], out=room)
    torch.div(grads, room, out=room)
    room.mul_(grads).mul_(state.correction[part.rows])
    part.show(room)


class AdamMoments:
    """Looks up the second moments of an optimizer, and what they are corrected by.

    It does so for every parameter whose state holds an `exp_avg_sq` of its own shape that is Adam's
    (`adam_like`): torch's Adam, AdamW, NAdam, RAdam, timm's LAMB and others. The host reads no
    value of the state. `unlike`: the optimizers whose `exp_avg_sq` is something else, and why.
    """

    def __init__(self, parameters: Sequence[Tensor], blocks: ModelBlocks) -> None:
        self.parameters = parameters
        self.blocks = blocks
        self._known: dict[int, tuple[Any, dict[int, Any], Tensor]] = {}
        self._groups: dict[int, dict[str, Any]] = {}
        self._facts = torch.zeros(0)
        self._inside: dict[int, list[Optimizer]] = {}  # optimizers that step for others
        self._judged: dict[int, tuple[tuple[int, int], str]] = {}  # state and its size -> why not
        self.unlike: dict[str, str] = {}

    def look_at(
        self,
        optimizer: Optimizer,
        grads: Sequence[Tensor | None],
        scale: Tensor | None,
    ) -> AdamState | None:
        """Return the state after the optimizer's step, or None without any moment.

        The step was made with `grads` divided by `scale`.
        """
        self._look_up(optimizer)
        moments: list[Tensor | None] = []
        steps: list[Tensor] = []
        for i, (p, g) in enumerate(zip(self.parameters, grads, strict=True)):
            state = self._state_of(p, optimizer) if g is not None else {}
            moments.append(self._moment(i, p, optimizer, state))
            step = state.get("step", self._groups.get(i, {}).get("step", math.inf))
            if type(step) is not Tensor:  # a DTensor, or a number
                step = local(step) if isinstance(step, Tensor) else torch.tensor(float(step))
            steps.append(step)
        if all(moment is None for moment in moments):
            return None
        known = [None if moment is None else g for g, moment in zip(grads, moments, strict=True)]
        divisors = [d for d in (scale, _own_clip(optimizer)) if d is not None]
        log_beta2, eps2 = self._facts
        # Adam's bias correction c = 1 - beta2^step (Kingma, Ba 2015, section 3), as -expm1(step *
        # ln beta2): for beta2 near 1 the plain difference would lose its digits.
        correction = -torch.expm1(self._on_device(steps) * log_beta2)
        dtype = self.blocks.dtype
        floor = (correction * eps2).clamp(min=TINY[dtype])
        # Before a first update c is 0, and so is every v: a floor of 1 keeps 0/0 out.
        floor = torch.where(correction > 0, floor, 1.0).to(dtype)
        of_row = self.blocks.of_row
        return AdamState(
            self.blocks.flat(moments), self.blocks.flat(known),
            floor[of_row, None], correction.to(dtype)[of_row, None], divisors,
        )  # fmt: skip

    def _on_device(self, steps: Sequence[Tensor]) -> Tensor:
        """Return the step counts on the device, [parameters] float32.

        Most optimizers count on the host; capturable ones do not.
        """
        device = self.blocks.device
        if len({s.device for s in steps}) > 1:
            steps = [s.to(device, non_blocking=True) for s in steps]
        if any(s.ndim for s in steps):
            steps = [s.reshape(()) for s in steps]
        whole = torch.stack(list(steps)).float()
        if whole.device == device:
            return whole
        return whole.pin_memory().to(device, non_blocking=True)  # so that the host need not wait

    def _state_of(self, p: Tensor, optimizer: Optimizer) -> dict[str, Any]:
        """Return what the optimizer keeps of a parameter, or one that steps for it (SAM's)."""
        state = optimizer.state.get(p) or {}
        for one in self._inside.get(id(optimizer), ()):
            if "exp_avg_sq" not in state:
                state = one.state.get(p) or state
        return state

    def _moment(
        self, i: int, p: Tensor, optimizer: Optimizer, state: dict[str, Any]
    ) -> Tensor | None:
        moment: Tensor | None = state.get("exp_avg_sq")
        if moment is None or moment.shape != p.shape:
            return None
        seen = id(state), len(state)
        if i not in self._judged or self._judged[i][0] != seen:
            self._judged[i] = seen, why_not_adam(optimizer, self._groups.get(i), state, p)
        if why := self._judged[i][1]:
            self.unlike[type(optimizer).__name__] = why
            return None
        return moment

    def _look_up(self, optimizer: Optimizer) -> None:
        """Look up groups and options, and work them out again when one that matters changes."""
        groups = optimizer.param_groups
        seen = tuple((len(g["params"]), _betas(g)[1:], g.get("eps")) for g in groups)
        if self._known.get(id(optimizer), ((), {}, None))[0] != seen:
            self._judged.clear()
            self._inside[id(optimizer)] = held_by(optimizer)
            self._known[id(optimizer)] = seen, *self._work_out(groups, is_corrected(optimizer))
        _, self._groups, self._facts = self._known[id(optimizer)]

    def _work_out(
        self, groups: Sequence[dict[str, Any]], corrected: bool
    ) -> tuple[dict[int, Any], Tensor]:
        number = {id(p): i for i, p in enumerate(self.parameters)}
        found: dict[int, dict[str, Any]] = {}
        log_beta2, eps2 = [-math.inf] * len(number), [0.0] * len(number)  # nothing to correct
        for group in groups:
            betas, eps = _betas(group), group.get("eps", 0.0)
            if isinstance(eps, (tuple, list)):  # of Adafactor, which has no moment of each element
                eps = 0.0
            for i in (number[id(p)] for p in group["params"] if id(p) in number):
                found[i] = group
                if len(betas) == 2 and betas[1] > 0 and not corrected:
                    log_beta2[i] = math.log(betas[1])
                eps2[i] = float(eps or 0.0) ** 2
        facts = torch.tensor([log_beta2, eps2], dtype=self.blocks.exact)
        device = self.blocks.device
        if device.type == "cuda":  # from pinned memory, so that the host need not wait
            facts = facts.pin_memory()
        return found, facts.to(device, non_blocking=True)


def _betas(group: dict[str, Any]) -> tuple[Any, ...]:
    """Return a copy of the betas: a list may be changed in place."""
    return tuple(group.get("betas") or ())


def _own_clip(optimizer: Optimizer) -> Tensor | None:
    """Return what the optimizer divides its gradients by within its step, as LAMB does.

    Its moments are those of the divided gradients.
    """
    largest = optimizer.defaults.get("max_grad_norm")
    if not largest:
        return None
    owned = [p.grad for group in optimizer.param_groups for p in group["params"]]
    whole: Tensor = torch.nn.utils.get_total_norm([g for g in owned if g is not None])
    return whole.div(largest).clamp(min=1.0)
