"""What the name of a series says: the step, a gradient norm, which layer, and how deep it is.

The layer of a parameter is that of `stabkit.monitor.layers`: its module path down to the first
number, also if the number comes late in the path, as in `encoder.layer.3.attention`. A log does not
tell the order in which modules were registered, so depth goes by name: embeddings first, then class
token and positions, numbered blocks in their order, the last norm, heads at the end.
"""

import re

from stabkit.monitor.layers import is_number, layer_of
from stabkit.store.schema import SIGNALS

# Counters of optimizer steps come before counters of rows, those before counters of batches that
# may start again with each epoch, and those before epochs.
OPTIMIZER_STEPS = (
    "step", "global_step", "trainer/global_step", "train/global_step", "train/step", "train_step",
    "iteration", "iter", "it", "itr", "steps", "iterations", "iters", "global_steps", "global_iter",
    "iter_num", "train/iter", "num_updates", "train_num_updates", "valid_num_updates",
    "updates", "train/n_updates", "current_steps", "current_step", "time/batch",
    "time/total_timesteps", "timesteps",
)  # fmt: skip
ROWS = "_step"  # of Weights & Biases
BATCHES = ("batch", "batch_idx", "minibatch")
EPOCHS = ("epoch", "epochs", "trainer/epoch", "train/epoch")
STEPS = (*OPTIMIZER_STEPS, ROWS, *BATCHES, *EPOCHS)

_ORDERED = (
    r"patch_?embed\w*|(conv_)?stem|embed(ding)?s?|conv_?proj|conv1|word_\w+|tok_embed\w*",
    r"bn1|cls_token|class_token|dist_token|mask_token|reg(ister)?_tokens?|pos_?embed\w*",
    r".*",  # blocks, and whatever else
    r"(final_|last_|post_|fc_|encoder_)?(layer_?)?norm|ln_?\w?|pre_logits|neck",
    r"proj(ector|ection)?(_head)?",
    r"pred(ictor|iction)?(_head)?",
    r"(\w+_)?heads?(_dist)?|fc|classifier|linear|logits",
)
_DEPTH = [re.compile(pattern, re.IGNORECASE) for pattern in _ORDERED]
_BLOCKS = 2

_WORDS = {
    "grad_norm": r"grad_norms?|gradnorms?|gradient_norms?|gradients?|grads?|grad_2(?:\.0)?_norm",
    "grad_max": r"grad_max|grad_inf_norm",
    "param_norm": r"param_norms?|weight_norms?|parameter_norms?",
}
assert tuple(_WORDS) == SIGNALS
_AHEAD = {
    signal: re.compile(rf"^(?P<prefix>(?:.*[/.])?(?:{words}))[/.](?P<path>.+)$", re.IGNORECASE)
    for signal, words in _WORDS.items()
}
_BEHIND = re.compile(r"^(?P<path>.+)[/.](?P<prefix>grad_norm|grad_max|param_norm)$")
_TOTAL = re.compile(r"(.*[_/.])?(total|all|global|overall|mean|max|min)", re.IGNORECASE)

# What a logger makes of a tensor besides its norm, as OLMo does: `….weight.max`.
_STATISTIC = re.compile(r"[/._](avg|mean|max|min|std|var|sum|median)$", re.IGNORECASE)


def layer_signal(name: str) -> tuple[str, str, str] | None:
    """Return (signal, prefix, module path) if the name is of a layer or a parameter, else None.

    A word for gradients comes before the path, as in `grad_norm/blocks.0`, `gradients/…`, or
    Lightning's `grad_2.0_norm/…`, or after what is clearly a path, as in `blocks.0/grad_norm`.
    Other statistics of a gradient than its norm, as in `grad/blocks.0.max`, are of no layer.
    """
    for signal, pattern in _AHEAD.items():
        found = pattern.match(name)
        if found and not _TOTAL.fullmatch(found["path"]) and not _STATISTIC.search(found["path"]):
            return signal, found["prefix"], found["path"]
    found = _BEHIND.match(name)
    if found and (_depth(found["path"]) != _BLOCKS or re.search(r"[/.]\d+", found["path"])):
        return found["prefix"], found["prefix"], found["path"]
    return None


def layer_names(paths: list[str]) -> dict[str, str]:
    """Return the layer of each module path, without the names of wrappers around the backbone."""
    split = _without_wrappers([re.split(r"[/.]", path) for path in paths])
    return {path: _layer(parts) for path, parts in zip(paths, split, strict=True)}


def _without_wrappers(paths: list[list[str]]) -> list[list[str]]:
    while True:
        words = dict.fromkeys(parts[0] for parts in paths)
        wrapper = next((word for word in words if _wraps(word, paths)), None)
        if wrapper is None:
            return paths
        paths = [parts[1:] if parts[0] == wrapper else parts for parts in paths]


def _wraps(word: str, paths: list[list[str]]) -> bool:
    """Return whether `word` wraps blocks and more, or everything, and no names would clash."""
    own = [parts for parts in paths if parts[0] == word]
    others = {part for parts in paths if parts[0] != word for part in parts[:2]}
    if _depth(word) != _BLOCKS or not all(len(p) > 1 and not is_number(p[1]) for p in own):
        return False
    inside = {parts[1] for parts in own}
    has_blocks = any(is_number(part) for parts in own for part in parts[2:])
    has_all = not others and any(len(parts) > 2 for parts in own)
    return (has_all or (has_blocks and len(inside) > 1)) and inside.isdisjoint(others)


def _layer(parts: list[str]) -> str:
    layer = layer_of(".".join([*parts, "any"]))  # the rule is for parameters: add one
    if layer.rsplit(".", 1)[-1].isdigit() or _depth(layer) != _BLOCKS:
        return layer
    below = parts[parts.index(layer) :] if layer in parts else []
    number = next((i for i, part in enumerate(below) if is_number(part)), None)
    return layer if number is None else ".".join(below[: number + 1])


def in_depth_order(layers: list[str]) -> list[str]:
    return sorted(layers, key=lambda layer: (_depth(layer), _natural(layer)))


def _depth(layer: str) -> int:
    first = re.split(r"[/.]", layer)[0]
    ranks = [i for i, pattern in enumerate(_DEPTH) if i != _BLOCKS and pattern.fullmatch(first)]
    return ranks[0] if ranks else _BLOCKS


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders numbers by size, so that block 10 follows block 9."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)
    ]
