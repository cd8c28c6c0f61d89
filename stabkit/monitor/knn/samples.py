"""The labelled samples of a kNN evaluation, read once, before the training begins."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

LARGEST = 8 * 2**30  # bytes that are read from a loader: 14,000 images of 3 x 224 x 224 in float32
WANTED = "give a DataLoader of (images, labels), or the two tensors (images, labels)"


class Samples(NamedTuple):
    """Inputs of the model [n, ...], on whatever device they came, and class numbers [n]."""

    inputs: Tensor
    labels: Tensor


def check_kind(name: str, given: Any) -> None:
    """Raise TypeError or ValueError for what samples cannot be read from."""
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        raise TypeError(f"KNN: {name} is a Dataset; give DataLoader({name}, batch_size=256)")
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping | Tensor):
        raise TypeError(f"KNN: {name} is of type {type(given).__name__}; {WANTED}")
    if isinstance(getattr(given, "sampler", None), DistributedSampler):
        raise ValueError(
            f"KNN: the DistributedSampler of {name} shares the samples out over processes; give a "
            "DataLoader without it: the first process evaluates all of them"
        )


def read_samples(name: str, given: Any) -> Samples:
    """Read all samples of a loader or a pair of tensors. Raises TypeError or ValueError.

    The caller restores the global random generators. What a DataLoader holds itself is left as it
    was: its generators, and its workers if they live from epoch to epoch.
    """
    if _is_pair(given):
        return _checked(name, *given)
    parts: list[Samples] = []
    with _untouched(given) as loader:
        batches = len(loader) if isinstance(loader, Sized) else 0
        for number, batch in enumerate(loader):
            parts.append(_of_batch(name, number, batch))
            _check_size(name, parts, batches)
    if not parts:
        raise ValueError(f"KNN: {name} is empty: the loader gave no batch")
    shapes = dict.fromkeys(tuple(part.inputs.shape[1:]) for part in parts)
    if len(shapes) > 1:
        found = ", ".join(str(list(shape)) for shape in list(shapes)[:3])
        raise ValueError(f"KNN: {name} has inputs of different shapes: {found}")
    inputs, labels = zip(*parts, strict=True)
    return Samples(torch.cat(inputs), torch.cat(labels))


def check_together(bank: Samples, queries: Samples) -> None:
    """Raise ValueError when the bank cannot tell the class of any query, or is the queries."""
    one, other = bank.inputs, queries.inputs
    if one.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"KNN: an image of the bank has shape {list(one.shape[1:])}, one of the queries "
            f"{list(other.shape[1:])}"
        )
    if one.shape == other.shape and one.device == other.device and one.equal(other):
        raise ValueError("KNN: bank and queries are the same images, which know their own class")
    if len(torch.unique(torch.cat([bank.labels, queries.labels]))) < 2:
        raise ValueError(f"KNN: all labels are {int(bank.labels[0])}; needed are two classes")
    if not torch.isin(queries.labels, bank.labels).any():
        raise ValueError("KNN: no class of the queries is in the bank")


def _check_size(name: str, parts: Sequence[Samples], batches: int) -> None:
    """Raise ValueError when a loader gives, or will give, more than LARGEST bytes."""
    held = sum(part.inputs.nbytes for part in parts)
    size = max(held, parts[0].inputs.nbytes * batches)
    if size > LARGEST:
        images = max(1, LARGEST // parts[0].inputs[0].nbytes)
        raise ValueError(
            f"KNN: {name} would hold {size / 2**30:.0f} GiB in memory, at most {LARGEST >> 30} GiB "
            f"are read from a loader: {images:,} such images. Give a loader of fewer, such as of "
            "torch.utils.data.Subset(dataset, range(0, len(dataset), 100))"
        )


def _is_pair(given: Any) -> bool:
    pair = isinstance(given, tuple | list) and len(given) == 2
    return pair and all(isinstance(part, Tensor | np.ndarray) for part in given)


def _of_batch(name: str, number: int, batch: Any) -> Samples:
    if not _is_pair(batch):
        parts = ", ".join(type(part).__name__ for part in batch) if _is_sequence(batch) else ""
        got = f"{type(batch).__name__} of {parts}" if parts else f"a {type(batch).__name__}"
        raise TypeError(
            f"KNN: batch {number} of {name} is {got}; needed are two tensors, (images, labels), "
            "with one plain view of each image"
        )
    return _checked(f"batch {number} of {name}", *batch)


def _is_sequence(batch: Any) -> bool:
    return isinstance(batch, tuple | list)


def _checked(name: str, inputs: Any, labels: Any) -> Samples:
    inputs, labels = torch.as_tensor(inputs), torch.as_tensor(labels)
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"KNN: labels of {name} have shape {list(labels.shape)} and type {labels.dtype}; "
            "needed is one whole number for each image, its class: [n]"
        )
    if inputs.dim() < 1 or len(inputs) != len(labels):
        raise ValueError(
            f"KNN: {name} has images {list(inputs.shape)} and labels {list(labels.shape)}: not one "
            "label for each image"
        )
    if not len(labels):
        raise ValueError(f"KNN: {name} is empty")
    return Samples(inputs.detach(), labels.long().cpu())


@contextmanager
def _untouched(loader: Any) -> Iterator[Any]:
    """Give a copy of a DataLoader to read from, and restore the generators of the loader."""
    if not isinstance(loader, DataLoader):
        yield loader
        return
    single = copy.copy(loader)
    single._iterator = None
    # past `DataLoader.__setattr__`, which refuses a change after the loader was made
    single.__dict__["persistent_workers"] = False
    holders = (loader, loader.sampler, loader.batch_sampler)
    drawn = [getattr(holder, "generator", None) for holder in holders]
    states = [(g, g.get_state()) for g in drawn if isinstance(g, torch.Generator)]
    try:
        yield single
    finally:
        for generator, state in states:
            generator.set_state(state)
