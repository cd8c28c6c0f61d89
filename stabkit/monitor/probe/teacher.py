"""The teacher of a model: an average of its weights over time, of all or of a part of them.

Other words for it are momentum encoder, target network and EMA model.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from stabkit.monitor.probe.undisturbed import unwrap_model


class Match(NamedTuple):
    """Which part of a model its teacher averages.

    - `path`: that part of the model, "" for the whole;
    - `part`: the module of the teacher that corresponds to it;
    - `pairs`: name in the model, parameter of the model, parameter of the teacher;
    - `left_out`: parameters of the teacher that the model does not have.
    """

    path: str
    part: nn.Module
    pairs: list[tuple[str, Tensor, Tensor]]
    left_out: list[str]


def match(model: nn.Module, teacher: nn.Module) -> Match:
    """Find the part of `model` that has the parameter names of `teacher`.

    Wrappers do not count, nor do parameters that the two share: a model may hold its teacher.
    Raises ValueError when no part fits, when several fit equally well, or when shapes differ.
    """
    model = unwrap_model(model)
    shared = {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    ours = {_plain(n): (n, p) for n, p in model.named_parameters() if id(p) not in shared}
    if not ours:
        raise ValueError("teacher: it is the model itself; give the copy that averages the model")
    # the first part is the largest one, and wins where a smaller one fits as well
    part, (path, score, rivals) = max(
        ((part, _best_path(ours, _named(part))) for part in _parts(teacher)),
        key=lambda found: found[1][1],
    )
    if score == (0, 0):
        raise ValueError(
            "teacher: it has no parameter of the model's names; the model has "
            f"{next(iter(model.named_parameters()))[0]}, the teacher "
            f"{next(iter(_named(unwrap_model(teacher))), 'none')}"
        )
    if rivals:
        raise ValueError(
            f"teacher: it fits several parts of the model, {path} and {', '.join(rivals)}; give "
            "the Monitor the model without those that the teacher does not average"
        )
    pairs: list[tuple[str, Tensor, Tensor]] = []
    left_out: list[str] = []
    for name, p in _named(part).items():
        of_model = ours.get(f"{path}.{name}" if path else name)
        if of_model is None:
            left_out += [] if id(p) in shared else [name]
        elif of_model[1].shape != p.shape:
            raise ValueError(
                f"teacher: it has {name} of shape {tuple(p.shape)}, the model of "
                f"{tuple(of_model[1].shape)}; a teacher has those of the model"
            )
        else:
            pairs.append((*of_model, p))
    return Match(path, part, pairs, left_out)


@contextmanager
def taught(model: nn.Module, found: Match) -> Iterator[nn.Module]:
    """Give `model` with the teacher in the place of the part that it averages; undo it after."""
    if not found.path:
        yield found.part
        return
    above, _, name = found.path.rpartition(".")
    modules = unwrap_model(model.get_submodule(above))._modules
    before = modules[name]
    modules[name] = found.part
    try:
        yield model
    finally:
        modules[name] = before


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")  # of modules within that are compiled


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {_plain(name): p for name, p in module.named_parameters()}


def _parts(teacher: nn.Module) -> Iterator[nn.Module]:
    """Yield the teacher, and what is within it as long as a single module holds all parameters."""
    part = unwrap_model(teacher)
    while True:
        yield part
        heads = {name.partition(".")[::2] for name, _ in part.named_parameters()}
        first = {head for head, rest in heads if rest}
        if len(first) != 1 or len(first) != len({head for head, _ in heads}):
            return
        part = unwrap_model(part.get_submodule(first.pop()))


def _best_path(
    ours: Mapping[str, tuple[str, Tensor]], theirs: Mapping[str, Tensor]
) -> tuple[str, tuple[int, int], list[str]]:
    """Return the path in the model that fits `theirs` best, its score, and paths of equal score.

    The score of a path: how many parameters below it have name and shape of one of `theirs`, and
    how many have its name.
    """
    same_name: Counter[str] = Counter()
    same_shape: Counter[str] = Counter()
    for name, (_, p) in ours.items():
        words = name.split(".")
        for i in range(len(words)):
            end = ".".join(words[i:])
            if end in theirs:
                path = ".".join(words[:i])
                same_name[path] += 1
                same_shape[path] += theirs[end].shape == p.shape
    # names such as `weight` are everywhere: below a path, shapes must agree as well
    paths = [path for path in same_name if same_shape[path] or not path]
    scores = {path: (same_shape[path], same_name[path]) for path in paths}
    score = max(scores.values(), default=(0, 0))
    best = [path for path, of_path in scores.items() if of_path == score]
    if not best or "" in best:
        return "", score, []
    return best[0], score, best[1:]
