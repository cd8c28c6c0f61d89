"""Tell from the words of its name what a recorded series is."""

import re

_NO_GRADIENT_NORM = {"clip", "clipped", "clipping", "max", "threshold", "after", "coef", "param"}


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
