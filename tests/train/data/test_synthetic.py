from functools import lru_cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stabkit.train.data.image_set import ImageSet
from stabkit.train.data.synthetic import (
    CLASSES,
    _ranked,
    synthetic_images,
    synthetic_labels,
    synthetic_sets,
)

N_TRAIN, N_HELDOUT = 2000, 1000

# The red values of images 0 to 9 at rows and columns 0, 8, 16, 24 of 32.
GOLDEN = """
140  65  46 235  52  37 246 245  42  33 252  86 207  66 241  66
103  71 213 230 225  39 214 186 140  27 233 147 117 148 227  64
181 198 180  30 206  90  46 196  91  71 245  91 140  34 109 189
251 129 231  61 119  37 157  75 111  43 178 221 206 122 107 184
100 117 237 213 176  87  54  62 255 195  51  35 196  54 151 104
183  70 157 226  28  85  90  99 111 197 149 184 206 230  59 101
114  79 142 195 172 138 163  46 189  61  31 132 151  53  50 186
 54 140 198  44 166  66 184 229  47  58  25 132 121  42  73 227
173 190 182 228  73  89 203 221 156 159  53  99 255  66 249 212
190  82  65  80 140 215 148 156 224 222  55 165 252 156  89  58
"""


@lru_cache(maxsize=1)
def sets() -> tuple[ImageSet, ImageSet]:
    return synthetic_sets(N_TRAIN, N_HELDOUT, 32)


@lru_cache(maxsize=1)
def arrays() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    train, heldout = (torch.as_tensor(s.load(np.arange(len(s)))).numpy() for s in sets())
    return train, heldout


def knn_accuracy(train: NDArray[np.floating], heldout: NDArray[np.floating], k: int = 20) -> float:
    """Let the k nearest images in Euclidean distance vote, with equal weights."""
    bank, queries = torch.from_numpy(train).float(), torch.from_numpy(heldout).float()
    nearest = torch.cdist(queries, bank).topk(k, largest=False).indices
    labels, truth = (torch.from_numpy(s.labels) for s in sets())
    votes = functional.one_hot(labels[nearest], len(CLASSES)).sum(1)
    return (votes.argmax(1) == truth).double().mean().item()


def test_first_images_have_their_recorded_pixels() -> None:
    expected = np.array(GOLDEN.split(), np.int64).reshape(10, 16)
    found = synthetic_images(np.arange(10), 32)[:, 0, ::8, ::8].reshape(10, 16).astype(np.int64)
    # Another libm may swap two pixels of neighboring rank; that is 235 / 1024 < 1 level.
    assert np.abs(found - expected).max() <= 1


@pytest.mark.lengthy
def test_an_image_does_not_depend_on_what_else_is_asked_for() -> None:
    train, _ = arrays()
    order = np.random.default_rng(0).permutation(N_TRAIN)[:300]
    np.testing.assert_array_equal(synthetic_images(order, 32), train[order])
    for i in range(20):
        np.testing.assert_array_equal(synthetic_images(np.array([i]), 32)[0], train[i])


def test_number_of_images_does_not_change_them() -> None:
    train, heldout = arrays()
    for few, many in zip(synthetic_sets(30, 20, 32), (train, heldout), strict=True):
        every = np.arange(len(few))
        np.testing.assert_array_equal(torch.as_tensor(few.load(every)).numpy(), many[every])


def test_no_image_occurs_twice_or_in_both_splits() -> None:
    train, heldout = arrays()
    assert len({image.tobytes() for image in [*train, *heldout]}) == N_TRAIN + N_HELDOUT


@pytest.mark.parametrize(("count", "most"), [(2000, 200), (13, 2), (5, 1)])
def test_classes_are_balanced(count: int, most: int) -> None:
    for split in synthetic_sets(count, count, 8):
        counts = np.bincount(split.labels, minlength=len(CLASSES))
        assert counts.sum() == count
        assert (counts.max(), counts.max() - counts.min()) == (most, int(count % 10 > 0))
        assert split.classes == CLASSES


@pytest.mark.lengthy
def test_all_images_have_one_histogram_of_two_blended_colors() -> None:
    for images in arrays():
        levels = np.sort(images.reshape(len(images), 3, -1), axis=2)
        assert (levels == levels[:1]).all()
    red, green, blue = (train.astype(np.float64) for train in arrays()[0].swapaxes(0, 1))
    share = (red - 20) / 235
    # The color itself is rounded by half a level, and so is red, from which the share is computed.
    for channel, dark, bright in ((green, 50, 190), (blue, 130, 90)):
        slack = 0.5 + 0.5 * abs(bright - dark) / 235
        assert np.abs(channel - dark - (bright - dark) * share).max() <= slack + 1e-9


def test_color_statistics_stay_at_chance() -> None:
    train, heldout = (
        np.concatenate([s.mean((2, 3)), s.std((2, 3))], axis=1)
        for s in (images.astype(np.float64) for images in arrays())
    )
    # Binomial: chance 0.1 and 4 standard deviations of 1,000 draws, sqrt(0.1 * 0.9 / 1000).
    assert knn_accuracy(train, heldout) <= 0.1 + 4 * 0.0095


def test_nearest_neighbors_of_raw_pixels_do_not_tell_the_classes_apart() -> None:
    train, heldout = (images.reshape(len(images), -1).astype(np.float32) for images in arrays())
    # Measured 0.35: above chance, and learning can still gain much.
    assert 0.2 < knn_accuracy(train, heldout) < 0.45


def small_network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((1, 16, 5, 2), (16, 32, 3, 2), (32, 48, 3, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, len(CLASSES))
    )


def trained_accuracy(epochs: int, batch: int, peak: float) -> float:
    images: list[Tensor] = [torch.from_numpy(s[:, :1]).float() / 64 - 2 for s in arrays()]
    labels = [torch.from_numpy(s.labels) for s in sets()]
    torch.manual_seed(0)
    network = small_network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (N_TRAIN // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(N_TRAIN).reshape(-1, batch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images[0][index]), labels[0][index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        return float((network(images[1]).argmax(1) == labels[1]).double().mean())


@pytest.mark.lengthy
def test_a_small_supervised_network_tells_the_classes_apart() -> None:
    with torch.random.fork_rng(devices=[]):
        # Measured 0.94; labels unrelated to structure would give 0.1.
        assert trained_accuracy(epochs=4, batch=40, peak=1e-2) > 0.8


def test_image_size_changes_the_resolution_and_not_the_texture() -> None:
    index = np.arange(50)
    small = synthetic_images(index, 32)[:, 0].astype(np.float64)
    large = synthetic_images(index, 64)[:, 0].astype(np.float64)
    pooled = large.reshape(50, 32, 2, 32, 2).mean((2, 4))
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, pooled, strict=True)]
    other = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small, pooled[1:], strict=False)
    ]
    # Only the noise of single pixels differs: a quarter of the standard deviation of the texture.
    assert min(same) > 0.85
    assert max(other) < 0.6


@pytest.mark.parametrize("size", [8, 17, 224])
def test_any_size(size: int) -> None:
    images = synthetic_images(np.arange(10), size)
    assert images.shape == (10, 3, size, size)
    assert images.dtype == np.uint8
    # Rank k of n becomes share (k + 1/2) / n of the way from red 20 to red 255, rounded.
    assert abs(images[:, 0].mean() - 137.5) <= 0.5


def test_labels_take_turns() -> None:
    assert synthetic_labels(np.array([0, 9, 10, 10**9 + 3])).tolist() == [0, 9, 0, 3]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0, 5, 32), r"data\.num_train is 0"),
        ((5, -1, 32), r"data\.num_heldout is -1"),
        ((10**9 + 1, 5, 32), r"data\.num_train is 1000000001"),
        ((5, 5, 4), r"data\.image_size is 4: .* 8 pixels"),
    ],
)
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        synthetic_sets(*sizes)


def test_ranks_are_those_of_a_stable_sort() -> None:
    values = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    values[:, ::7] = values[:, 1:2]  # ties
    values[:, 3], values[:, 5], values[:, 8] = 0.0, -0.0, 0.0
    assert np.array_equal(_ranked(values), np.argsort(values, axis=1, kind="stable"))
