"""Compare the operations for large views with the dense matrices, which are slower."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stabkit.train.data import image_ops, views
from stabkit.train.data import large_image_ops as large_ops
from stabkit.train.data.large_image_ops import LARGEST_DENSE
from stabkit.train.data.views import plain_view, two_views

EPS = torch.finfo(torch.float32).eps


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    noise = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    return noise.to(torch.uint8)


@pytest.mark.parametrize("size", [1, 7, 32, 131])
def test_crop_resize_is_the_dense_product(size: int) -> None:
    batch = images(5, 90, 150)
    box = np.array([[0, 0, 90, 150], [3, 4, 1, 1], [89, 149, 1, 1], [5, 6, 60, 90], [0, 0, 90, 1]])
    dense = image_ops.crop_resize(image_ops.to_float(batch), torch.from_numpy(box), size)
    ours = large_ops.crop_resize(list(batch), box, size)
    # The center of a filter is a float32 of up to 150 pixels on both sides, in two axes.
    torch.testing.assert_close(ours, dense, rtol=0, atol=2 * 150 * EPS)


@pytest.mark.parametrize(("height", "width"), [(90, 150), (150, 90), (256, 256), (9, 300)])
def test_resize_and_center_crop_is_the_dense_product(height: int, width: int) -> None:
    batch = image_ops.to_float(images(2, height, width))
    dense = image_ops.resize_and_center_crop(batch, 128, 112)
    ours = large_ops.resize_and_center_crop(batch, 128, 112)
    torch.testing.assert_close(ours, dense, rtol=0, atol=2 * 300 * EPS)


@pytest.mark.parametrize(("size", "radius"), [(131, 6), (8, 7), (1, 0)])
def test_blur_is_the_dense_product(size: int, radius: int) -> None:
    batch = image_ops.to_float(images(4, size, size))
    sigma = torch.tensor([0.1, 0.7, 2.0, 5.0])
    dense = image_ops.gaussian_blur(batch, sigma, radius)
    ours = large_ops.gaussian_blur(batch, sigma, radius)
    torch.testing.assert_close(ours, dense, rtol=0, atol=16 * EPS)


def both_views(batch: Tensor | list[Tensor], sample: np.ndarray, size: int) -> Tensor:
    return torch.stack([*two_views(batch, 0, 0, sample, size), plain_view(batch, size)], dim=1)


def test_large_views_are_the_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    size = LARGEST_DENSE + 5
    batch = [*images(5, 80, 120), *images(4, 130, 110)]
    ours = both_views(batch, np.arange(9), size)
    monkeypatch.setattr(views, "LARGEST_DENSE", size)
    dense = both_views(batch, np.arange(9), size)
    assert not torch.equal(ours, dense), "the switch has no effect"
    # As in test_a_view_equals_the_chain_of_torchvisions_operations. No value here falls on the
    # step of the solarization.
    tolerance = (2 * 130 + 48) * EPS * 2.36 / 0.224
    torch.testing.assert_close(ours, dense, rtol=0, atol=tolerance)


def test_a_large_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    size = LARGEST_DENSE + 5
    batch, sample = images(9, 80, 120), np.arange(9)
    together = both_views(batch, sample, size)
    order = np.array([8, 3, 1, 0, 7])
    assert torch.equal(both_views(list(batch[order]), sample[order], size), together[order])


def test_small_views_are_made_by_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, sample = images(6, 120, 130), np.arange(6)
    small = both_views(batch, sample, LARGEST_DENSE)
    monkeypatch.setattr(views, "large_ops", None)  # any use would raise
    assert torch.equal(both_views(batch, sample, LARGEST_DENSE), small)
