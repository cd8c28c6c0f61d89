"""How much curvature an optimizer's step bears before it overshoots further and further.

Near a minimum with Hessian H the step is x' = x - R H x + M (x - x_before): a diagonal of rates R,
one of momenta M. It may flip its sign forever, x = v, -v, v, ..., if H v = D v for
D = 2 (1 + M) / R. Within 0 < H < D it converges: with d = x' - x,

    d^T (D - H) d + (x' + x)^T H (x' + x)

is positive and falls at every step. The largest eigenvalue of D^-1 H is therefore 1 exactly at the
edge, also where rates and momenta differ from parameter to parameter. `bearing` is 1 / D, because a
rate may be 0; weight decay, which would add to H, is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor
Owner = tuple[torch.optim.Optimizer, dict[str, Any]]

# Rules that keep Adam's state but do not step as Adam does (apex's LAMB hides its trust ratio).
_OTHER_RULES = frozenset(
    ("AdamP", "Adan", "Adopt", "FusedLAMB", "LaProp", "Mars", "Muon", "NAdam", "NAdamLegacy")
) | {"NAdamW", "NvNovoGrad", "RAdam", "RAdamLegacy"}


def owners(optimizers: Sequence[torch.optim.Optimizer]) -> dict[Tensor, Owner]:
    """Return each parameter's optimizer and group."""
    return {
        p: (optimizer, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }


def bearing_of_sgd(owner: Owner) -> Number:
    """Return 1 / D of SGD: lr/2 without momentum, lr/(2(1+mu)) with it.

    Nesterov's momentum, as torch.optim.SGD has it, flips its sign at 2(1+mu)/(1+2mu)/lr.
    """
    group = owner[1]
    rate = _number(group["lr"])
    momentum = _number(group.get("momentum", 0.0))
    if group.get("nesterov"):
        rate = rate * (1 + 2 * momentum)
    return rate * (1 - _number(group.get("dampening", 0.0))) / (2 * (1 + momentum))


def bearing_of_adam(parameter: Tensor, owner: Owner) -> Tensor | None:
    """Return 1 / D of Adam with its present moments, of the parameter's shape; None if not Adam's.

    Adam's momentum is a mean, so R = lr (1 - beta1) / (1 - beta1^t) / (sqrt(vhat) + eps), and D is
    2 (1 + beta1) / R: 38/lr times the preconditioner for beta1 = 0.9 and a large t. LAMB's trust
    ratio, as of the moments' last state, multiplies lr; StableAdamW's shrinking is not counted.
    """
    optimizer, group = owner
    state = optimizer.state.get(parameter, {})
    second = state.get("max_exp_avg_sq") if group.get("amsgrad") else state.get("exp_avg_sq")
    step = state.get("step", group.get("step"))
    known = len(group.get("betas", ())) == 2 and "exp_avg" in state and step is not None
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if not known or second is None or second.shape != parameter.shape or names & _OTHER_RULES:
        return None
    beta1, beta2 = (_number(beta) for beta in group["betas"])
    first = state["exp_avg"].detach()
    root = second.detach().to(_wide(second)).sqrt()
    share: Number = 1 - beta1 if group.get("grad_averaging", True) else 1.0
    if group.get("bias_correction", True):
        correction = 1 - beta1 ** _number(step)
        share = share / correction
        if "StableAdamW" not in names:  # whose moments are corrected as they are made
            first = first / correction
            root = root / (1 - beta2 ** _number(step)) ** 0.5
    root = root + _number(group["eps"])
    rate = _number(group["lr"]) * share
    if "trust_clip" in group:
        rate = rate * _trust(parameter.detach(), first / root, group)
    bearing: Tensor = rate / (2 * (1 + beta1)) / root
    return bearing


def _trust(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> Number:
    """Return LAMB's ratio of norms, tensor to update (You et al. 2020, Algorithm 2), as timm's."""
    decay = group["weight_decay"]
    if not (decay or group.get("always_adapt")):
        return 1.0
    if decay and not group.get("decoupled_decay"):
        update = update + decay * parameter
    norms = parameter.norm().to(update.dtype), update.norm()
    ratio = torch.where((norms[0] > 0) & (norms[1] > 0), norms[0] / norms[1], 1.0)
    return ratio.clamp(max=1.0) if group["trust_clip"] else ratio


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _number(value: Any) -> Number:
    """Return a number; a tensor on a device stays there, as reading it would take a wait."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value.detach()
    return float(value)
