"""Whether what an optimizer keeps of a parameter is what Adam keeps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# What torch's Adam, AdamW, NAdam and RAdam keep, slow weights (Lookahead), copies in float32.
_ADAMS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "max_exp_avg_sqs", "mu_product")
_BESIDE = ("slow", "master", "fp32", "backup")
# These keep no more than that, and yet another second moment: ADOPT starts from g^2, Yogi adds
# by signs.
_OTHER_MOMENTS = frozenset(("Adopt", "ADOPT", "Yogi"))
# The stored moment is corrected already: each average is made with a debiased beta.
_CORRECTED = "StableAdamW"


def why_not_adam(
    optimizer: Optimizer, group: Mapping[str, Any] | None, state: Mapping[str, Any], p: Tensor
) -> str:
    """Return why `exp_avg_sq` in the state of `p` need not be Adam's, in words; "" if it is.

    It is Adam's if the group has two `betas`, state or group count the `step`, and the state holds
    no other tensor that could scale or rotate the moment: schedule-free keeps `z`, Prodigy `s` and
    `p0`, SOAP `GG` and `Q`. This holds for optimizers that nobody has heard of.
    """
    names = _names(optimizer)
    if others := names & _OTHER_MOMENTS:
        return f"{others.pop()} has a second moment of its own"
    betas = (group or {}).get("betas") or ()
    if len(betas) != 2:
        # with three, as Adan has, it differs which one is the second moment's
        return f"its betas are {len(betas)}, and not Adam's two"
    if "step" not in state and "step" not in (group or {}):
        return "it does not count the steps of its moments"
    beside = [name for name, value in state.items() if _is_beside(name, value, p)]
    return f"it keeps {', '.join(beside)} beside exp_avg_sq" if beside else ""


def is_corrected(optimizer: Optimizer) -> bool:
    """Return whether the stored second moment needs no bias correction."""
    return _CORRECTED in _names(optimizer)


def _names(optimizer: Optimizer) -> set[str]:
    return {kind.__name__ for kind in type(optimizer).__mro__}


def _is_beside(name: Any, value: Any, p: Tensor) -> bool:
    """Return whether an entry holds tensors that Adam does not have; numbers may be anything."""
    if name in _ADAMS or any(part in str(name) for part in _BESIDE):
        return False
    if isinstance(value, Tensor):
        return value.ndim > 0 or value.shape == p.shape
    return isinstance(value, list | tuple | dict)
