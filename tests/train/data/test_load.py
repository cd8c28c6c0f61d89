from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import ImageSet, from_array, in_memory, lazily_cached, subset
from stabkit.train.data.load import batch_index, load_data
from stabkit.train.randomness import permutation


def config(**settings: Any) -> Any:
    defaults = {
        "name": "synthetic",
        "path": None,
        "image_size": 16,
        "num_train": 20,
        "num_heldout": 10,
        "download": False,
    }
    return SimpleNamespace(**{**defaults, **settings})


def counted(n: int, size: int = 2) -> ImageSet:
    """Return a set whose image i holds the value i everywhere."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, size, size))
    return from_array(images.copy(), np.arange(n) % 3, ("a", "b", "c"))


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (12, 4), (5, 5), (7, 1)])
def test_batches_of_an_epoch_are_its_permutation_cut_in_order(n: int, batch: int) -> None:
    per_epoch = n // batch
    for epoch in range(3):
        drawn = [batch_index(7, epoch * per_epoch + i, n, batch) for i in range(per_epoch)]
        assert [e for e, _ in drawn] == [epoch] * per_epoch
        joined = np.concatenate([index for _, index in drawn])
        np.testing.assert_array_equal(joined, permutation(7, epoch, n)[: per_epoch * batch])
        assert len(np.unique(joined)) == per_epoch * batch


def test_batch_does_not_depend_on_what_was_asked_before() -> None:
    steps = [9, 0, 31, 4, 9]
    first = {step: batch_index(3, step, 50, 6) for step in range(32)}
    for step in steps:
        epoch, index = batch_index(3, step, 50, 6)
        assert epoch == first[step][0]
        np.testing.assert_array_equal(index, first[step][1])


def test_changing_a_batch_leaves_later_ones_alone() -> None:
    _, index = batch_index(1, 0, 8, 4)
    before = index.copy()
    index[:] = -1
    np.testing.assert_array_equal(batch_index(1, 0, 8, 4)[1], before)


def test_seed_and_epoch_change_the_order() -> None:
    orders = [tuple(batch_index(seed, step, 64, 64)[1]) for seed in range(3) for step in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize(
    ("step", "n", "batch", "said"),
    [(0, 3, 4, "batch 4 .* set of 3"), (0, 3, 0, "batch 0"), (-1, 3, 2, "step .* -1")],
)
def test_impossible_batches_are_refused(step: int, n: int, batch: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        batch_index(0, step, n, batch)


def test_load_keeps_the_order_asked_for() -> None:
    loaded = counted(9).load(np.array([5, 0, 5, 8]))
    assert isinstance(loaded, torch.Tensor)
    assert (loaded.dtype, loaded.shape) == (torch.uint8, (4, 3, 2, 2))
    assert loaded[:, 0, 0, 0].tolist() == [5, 0, 5, 8]


@pytest.mark.parametrize("wrong", [-1, 9])
def test_index_outside_the_set_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"index {wrong} .* 9 images"):
        counted(9).load(np.array([0, wrong]))


def test_subset_of_a_subset() -> None:
    inner = subset(subset(counted(9), np.array([8, 6, 4, 2])), np.array([3, 0]))
    loaded = inner.load(np.array([0, 1, 0]))
    assert [image[0, 0, 0].item() for image in loaded] == [2, 8, 2]
    assert inner.labels.tolist() == [2 % 3, 8 % 3]
    with pytest.raises(ValueError, match="2 images"):
        inner.load(np.array([2]))


def test_in_memory_reads_a_small_set_of_one_size_once() -> None:
    source = counted(2500)
    reads: list[int] = []

    def read(index: np.ndarray[Any, Any]) -> torch.Tensor | list[torch.Tensor]:
        reads.append(len(index))
        return source.read(index)

    lazy = ImageSet(source.labels, source.classes, read)
    kept = in_memory(lazy)
    assert sum(reads) == 2500 + 1  # the first image once more, to learn the size
    every = np.arange(2500)
    assert torch.equal(torch.as_tensor(kept.load(every)), torch.as_tensor(source.load(every)))
    assert sum(reads) == 2501


def test_in_memory_leaves_sets_over_the_limit_on_disk() -> None:
    source = counted(10)  # 3 * 2 * 2 = 12 bytes an image
    assert in_memory(source, limit=119) is source
    assert in_memory(source, limit=120) is not source


@pytest.mark.parametrize("odd", [0, 1, 5, 9])
def test_in_memory_leaves_sets_of_several_sizes_as_they_are(odd: int) -> None:
    def read(index: np.ndarray[Any, Any]) -> Any:
        sizes = [3 if i == odd else 2 for i in index]
        images = [torch.zeros(3, size, size, dtype=torch.uint8) for size in sizes]
        return torch.stack(images) if len(set(sizes)) == 1 else images

    mixed = ImageSet(np.zeros(10, np.int64), ("a",), read)
    assert in_memory(mixed) is mixed


def test_synthetic_data_is_the_same_in_every_load() -> None:
    for one, other in zip(load_data(config()), load_data(config()), strict=True):
        every = np.arange(len(one))
        assert torch.equal(torch.as_tensor(one.load(every)), torch.as_tensor(other.load(every)))
        np.testing.assert_array_equal(one.labels, other.labels)


def test_synthetic_sizes() -> None:
    train, heldout = load_data(config(image_size=24))
    assert (len(train), len(heldout)) == (20, 10)
    assert torch.as_tensor(train.load(np.array([3]))).shape == (1, 3, 24, 24)


def test_real_data_need_a_path() -> None:
    with pytest.raises(DataError, match=r"data\.path is missing.*parquet"):
        load_data(config(name="parquet"))


def test_lazily_cached_images_are_read_once_when_first_asked_for() -> None:
    pixels = torch.arange(5 * 12, dtype=torch.uint8).reshape(5, 3, 2, 2)
    asked: list[int] = []

    def read(index: np.ndarray) -> torch.Tensor:
        asked.extend(index.tolist())
        return pixels[torch.from_numpy(index)]

    source = ImageSet(np.arange(5), ("a",) * 5, read)
    once = lazily_cached(source, (3, 2, 2))
    assert asked == []
    for index in ([3, 1, 3], [1, 2], [0, 1, 2, 3, 4], []):
        at = np.array(index, dtype=np.int64)
        assert torch.equal(torch.as_tensor(once.load(at)), pixels[torch.from_numpy(at)])
    assert sorted(asked) == [0, 1, 2, 3, 4]
    assert lazily_cached(source, (3, 2, 2), limit=59) is source
