"""StableAdamW: AdamW whose step shrinks where its second moment is out of date."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class StableAdamW(torch.optim.Optimizer):
    """Wortsman et al. 2023 (arXiv 2304.13013), Algorithm 2.

    Per tensor, η = lr / max(1, RMS) with RMS = √mean(g² / max(v, ε²)) scales decay and update.
    The betas are debiased instead of the moments, so the stored moments are the corrected ones.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        states = [self._state_of(p) for p in params]
        first = [s["exp_avg"] for s in states]
        second = [s["exp_avg_sq"] for s in states]
        for state in states:
            state["step"] += 1
        # a list, since a layer that was thawed late counts from its own first gradient
        beta1, beta2 = ([_debiased(b, s["step"]) for s in states] for b in group["betas"])
        squares = torch._foreach_mul(grads, grads)
        _average(first, grads, beta1)
        _average(second, squares, beta2)

        ratios = torch._foreach_div(squares, torch._foreach_clamp_min(second, group["eps"] ** 2))
        rms = torch.stack([ratio.mean() for ratio in ratios]).sqrt()
        rates = group["lr"] / rms.clamp(min=1.0)

        updates = torch._foreach_sqrt(second)
        torch._foreach_add_(updates, group["eps"])
        updates = torch._foreach_div(first, updates)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, list(rates))
        torch._foreach_sub_(params, updates)

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _debiased(beta: float, step: int) -> float:
    """Return β(1-βᵗ⁻¹)/(1-βᵗ): 0 at the first step, then towards β."""
    return float(beta * (1 - beta ** (step - 1)) / (1 - beta**step))


def _average(moments: list[Tensor], values: Iterable[Tensor], betas: list[float]) -> None:
    torch._foreach_mul_(moments, betas)
    torch._foreach_add_(moments, torch._foreach_mul(tuple(values), [1 - beta for beta in betas]))
