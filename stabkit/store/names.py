"""Tell from the words of its name what a recorded series is."""

import re
from collections.abc import Iterable, Sequence

_NO_GRADIENT_NORM = {"clip", "clipped", "clipping", "max", "threshold", "after", "coef", "param"}

LOSSES = {"losses", "nll", "ppl", "perplexity", "bpb", "trl", "tel"}  # the last two: llm.c
# words of what is derived from a loss or steers it
NO_LOSS = {
    *("scale", "scaler", "relative", "nats", "weight", "ratio", "coef", "factor"),
    *("grad", "gradient", "norm", "lr", "min", "max", "std", "var", "count", "time"),
}  # fmt: skip
HELD_OUT = {"val", "valid", "validation", "test", "eval", "evaluation", "dev", "heldout", "holdout"}
# losses of players against each other and of policies: they have no level to come back to
GAMES = {
    *("g", "d", "gen", "generator", "disc", "discriminator", "adv", "adversarial", "gan"),
    *("actor", "critic", "policy", "pg", "value", "vf", "q", "qf", "td", "entropy", "kl"),
}  # fmt: skip

TOTAL = {"loss", "total", "train", "training"}  # words of the sum of all losses


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


def has_level(name: str) -> bool:
    """Return whether a loss that rises and stays high is a fault of training.

    A held-out loss rises by overfitting as well. Losses of a game have no level of their own.
    """
    return not words(name) & GAMES and not is_held_out(name)


def is_held_out(name: str) -> bool:
    """Return whether a loss is that of held-out samples: `val/loss`, `testLoss`, `tel` of llm.c."""
    found = words(name)
    return bool(found & (HELD_OUT | {"tel"})) or any(
        word.endswith("loss") and word[:-4] in HELD_OUT for word in found
    )


def with_level(names: Sequence[str]) -> list[str]:
    """Return the losses of a run that have a level (`has_level`).

    A total beside losses of players or policies is a sum of them, and has none either.
    """
    played = any(words(name) & GAMES - {"entropy", "kl"} for name in names)
    return [name for name in names if has_level(name) and not (played and is_total(name))]


def is_total(name: str) -> bool:
    """Return whether the name is that of the sum of all losses: `loss`, `train/total_loss`."""
    return words(name) <= TOTAL
