"""Tell from the words of its name what a recorded series is."""

import re
from collections.abc import Iterable

_NO_GRADIENT_NORM = {"clip", "clipped", "clipping", "max", "threshold", "after", "coef", "param"}

LOSSES = {"losses", "nll", "ppl", "perplexity", "bpb", "trl", "tel"}  # the last two: llm.c
# words of what is derived from a loss or steers it
NO_LOSS = {
    *("scale", "scaler", "relative", "nats", "weight", "ratio", "coef", "factor"),
    *("grad", "gradient", "norm", "lr", "min", "max", "std", "var", "count", "time"),
}  # fmt: skip


def words(name: str) -> set[str]:
    """Return the words of a name in lower case: `train/boxLoss_2` has train, box, loss, 2."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return {word.lower() for word in found}


def is_gradient_norm(name: str) -> bool:
    """Return whether a series is a gradient norm, of the whole model or of a part: `gnorm`, ..."""
    found = words(name)
    if found & _NO_GRADIENT_NORM:
        return False
    named = found & {"gnorm", "gradnorm"} or name == "norm"  # fairseq; llm.c
    norm = "norm" in found or {"l", "2"} <= found  # l2_grads of big_vision
    return bool(named) or (norm and any(word.startswith("grad") for word in found))


def losses(names: Iterable[str]) -> list[str]:
    """Return the names of losses, in their order."""
    return [name for name in names if _is_loss(words(name))]


def _is_loss(found: set[str]) -> bool:
    named = found & LOSSES or any(word.endswith("loss") for word in found)
    return bool(named) and not found & NO_LOSS
