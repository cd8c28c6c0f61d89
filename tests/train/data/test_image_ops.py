"""Compare each operation with torchvision's, image by image, each image with its own parameter."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from stabkit.train.data import image_ops

EPS = torch.finfo(torch.float32).eps


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return noise with one gray, one black, one white and one strongly quantized image."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.rand(count, 3, height, width, generator=generator)
    batch[0] = 0.5
    batch[1] = 0.0
    batch[2] = 1.0
    batch[3] = (batch[3] * 3).round() / 3  # ties between channels, gray and saturated pixels
    return batch


def factors(count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1)) * (high - low) + low


def largest_difference(batch: Tensor, expected: list[Tensor]) -> float:
    assert batch.dtype == torch.float32
    assert batch.shape == (len(expected), *expected[0].shape)
    return (batch - torch.stack(expected)).abs().max().item()


def torchvision_crop(image: Tensor, box: list[int], size: int) -> Tensor:
    bilinear = InterpolationMode.BILINEAR
    cut: Tensor = reference.resized_crop(image, *box, [size, size], bilinear, antialias=True)
    return cut


@pytest.mark.parametrize("size", [1, 5, 8, 32, 64])
def test_crop_resize(size: int) -> None:
    batch = images(9, 37, 53)
    boxes = [
        [0, 0, 37, 53],  # whole image
        [3, 4, 1, 1],  # one pixel
        [36, 52, 1, 1],  # the last pixel
        [0, 0, 37, 1],
        [0, 0, 1, 53],
        [5, 6, 20, 40],
        [10, 10, 27, 27],
        [2, 2, 32, 32],  # no change of size for 32
        [0, 20, 37, 33],
    ]
    expected = [torchvision_crop(x, box, size) for x, box in zip(batch, boxes, strict=True)]
    # The center of a filter is a float32 of up to 53 pixels, off by half of 53 * EPS. The weights
    # have slope 1 or less, both sides have this error, and there are two axes.
    tolerance = 2 * 53 * EPS
    resized = image_ops.crop_resize(batch, torch.tensor(boxes), size)
    assert largest_difference(resized, expected) < tolerance


@pytest.mark.parametrize("size", [8, 224])
def test_crop_resize_of_a_photograph_size(size: int) -> None:
    batch = images(4, 375, 500)
    boxes = [[0, 0, 375, 500], [13, 17, 330, 471], [200, 300, 107, 80], [0, 499, 375, 1]]
    # In float64 the reference is exact; our error alone is half of 500 * EPS for each axis.
    exact = [
        torchvision_crop(x, b, size).float() for x, b in zip(batch.double(), boxes, strict=True)
    ]
    resized = image_ops.crop_resize(batch, torch.tensor(boxes), size)
    assert largest_difference(resized, exact) < 500 * EPS


@pytest.mark.parametrize("out_size", [1, 2, 3, 7, 32])
def test_triangle_weights_against_the_definition(out_size: int) -> None:
    in_size = 41
    pairs = [(start, length) for start in (0, 1, 3) for length in range(1, in_size - 2)]
    start, length = torch.tensor(pairs).unbind(dim=1)
    weights = image_ops.triangle_weights(start, length, out_size, in_size)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(len(pairs), out_size))
    for (first, count), matrix in zip(pairs, weights, strict=True):
        expected = definition_of_triangle_weights(first, count, out_size, in_size)
        # The center is off by half of 41 * EPS; weights of slope 1 are divided by 1/2 or more.
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=0, atol=2 * 41 * EPS)
        outside = np.r_[0:first, first + count : in_size]
        assert not matrix[:, outside].any()


def definition_of_triangle_weights(
    first: int, count: int, out_size: int, in_size: int
) -> NDArray[np.float64]:
    expected: NDArray[np.float64] = np.zeros((out_size, in_size))
    width = max(count / out_size, 1.0)
    for row in range(out_size):
        center = (row + 0.5) * count / out_size
        for pixel in range(count):
            expected[row, first + pixel] = max(0.0, 1.0 - abs(pixel + 0.5 - center) / width)
    expected /= expected.sum(axis=1, keepdims=True)
    return expected


def test_apply_separable_against_einsum() -> None:
    batch, rows, columns = images(4, 6, 9), torch.rand(4, 5, 6), torch.rand(4, 7, 9)
    expected = torch.einsum("bsh,bchw,btw->bcst", rows.double(), batch.double(), columns.double())
    result = image_ops.apply_separable(batch, rows, columns)
    assert result.is_contiguous()
    # Sums of 54 products below 1: relative error under 6 + 9 roundings.
    torch.testing.assert_close(result.double(), expected, rtol=15 * EPS, atol=0)


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 375), (40, 40), (41, 67), (8, 3), (3, 300)]
)
@pytest.mark.parametrize(("shorter", "size"), [(37, 32), (35, 32), (32, 32), (9, 8)])
def test_resize_and_center_crop(height: int, width: int, shorter: int, size: int) -> None:
    batch = images(4, height, width)
    expected = reference.resize(batch.double(), [shorter], antialias=True).float()
    expected = reference.center_crop(expected, [size, size])
    result = image_ops.resize_and_center_crop(batch, shorter, size)
    assert largest_difference(result, list(expected)) < max(height, width) * EPS + 8 * EPS


BLENDS: list[tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, float], Tensor]]] = [
    (image_ops.adjust_brightness, reference.adjust_brightness),
    (image_ops.adjust_contrast, reference.adjust_contrast),
    (image_ops.adjust_saturation, reference.adjust_saturation),
]


@pytest.mark.parametrize(("operation", "expected"), BLENDS)
def test_brightness_contrast_saturation(
    operation: Callable[[Tensor, Tensor], Tensor], expected: Callable[[Tensor, float], Tensor]
) -> None:
    batch, factor = images(12, 17, 23), factors(12, 0.0, 2.5)
    factor[4], factor[5] = 0.0, 1.0
    one_by_one = [expected(x, f.item()) for x, f in zip(batch, factor, strict=True)]
    # Two products of up to 2.5 and one sum are rounded differently.
    assert largest_difference(operation(batch, factor), one_by_one) < 2.5 * 3 * EPS


# Hues below 6 carry 4 roundings of up to 6 * EPS / 2 here and as many in the reference, which
# counts in turns and multiplies by 6 at the end; the colors follow with slope 1 or less.
HUE_TOLERANCE = 24 * EPS


def test_hue() -> None:
    batch, shift = images(16, 17, 23), factors(16, -0.5, 0.5)
    shift[4], shift[5], shift[6] = 0.0, 0.5, -0.5
    one_by_one = [reference.adjust_hue(x, s.item()) for x, s in zip(batch, shift, strict=True)]
    assert largest_difference(image_ops.adjust_hue(batch, shift), one_by_one) < HUE_TOLERANCE


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 1 / 6, 1 / 3])
def test_hue_against_colorsys(shift: float) -> None:
    level = torch.linspace(0, 1, 7)
    colors = torch.cartesian_prod(level, level, level)  # every kind of tie and order of channels
    batch = colors.T.reshape(1, 3, 7, 49)
    result = image_ops.adjust_hue(batch, torch.tensor([shift])).reshape(3, -1).T
    for before, after in zip(colors.tolist(), result.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
        np.testing.assert_allclose(after, expected, rtol=0, atol=HUE_TOLERANCE)


def test_grayscale() -> None:
    batch = images(8, 17, 23)
    expected = [reference.rgb_to_grayscale(x, num_output_channels=3) for x in batch]
    assert largest_difference(image_ops.grayscale(batch), expected) <= EPS


@pytest.mark.parametrize(("size", "radius"), [(32, 6), (224, 6), (8, 6), (7, 6), (5, 1), (1, 0)])
def test_gaussian_blur(size: int, radius: int) -> None:
    batch, sigma = images(8, size, size), factors(8, 0.1, 2.0)
    kernel = [2 * radius + 1] * 2
    expected = [
        reference.gaussian_blur(x, kernel, [s.item()] * 2)
        for x, s in zip(batch, sigma, strict=True)
    ]
    # A weight exp(-x) has a relative error of a few x * EPS, hence an absolute one of a few EPS; 13
    # of them are summed in two directions and the reference multiplies the two first.
    assert largest_difference(image_ops.gaussian_blur(batch, sigma, radius), expected) < 16 * EPS


def test_blur_keeps_a_constant_image() -> None:
    batch = torch.full((3, 3, 9, 9), 0.75)
    blurred = image_ops.gaussian_blur(batch, torch.tensor([0.1, 1.0, 5.0]), 8)
    torch.testing.assert_close(blurred, batch, rtol=16 * EPS, atol=0)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_has_the_standard_deviation_of_pil(sigma: float) -> None:
    line = np.zeros((33, 33), dtype=np.uint8)
    line[:, 16] = 255
    pil = np.asarray(Image.fromarray(line).filter(ImageFilter.GaussianBlur(sigma)))[16] / 255.0
    batch = torch.from_numpy(line).float().div(255).expand(1, 3, 33, 33)
    ours = image_ops.gaussian_blur(batch, torch.tensor([sigma]), 6)[0, 0, 16].double().numpy()
    # The width is the same up to the change by three box filters and 8 bits, and the shape is the
    # same up to a few gray levels.
    assert spread(pil) == pytest.approx(spread(ours), rel=0.05)
    assert np.abs(pil - ours).max() < 6 / 255


def spread(profile: NDArray[np.float64]) -> float:
    position = np.arange(len(profile)) - 16
    return float(np.sqrt((position**2 * profile).sum() / profile.sum()))


@pytest.mark.parametrize("radius", [-1, 8, 9])
def test_blur_refuses_a_radius_that_cannot_be_reflected(radius: int) -> None:
    with pytest.raises(ValueError, match=f"radius must be from 0 to 7 at size 8, got {radius}"):
        image_ops.gaussian_blur(torch.zeros(1, 3, 8, 8), torch.ones(1), radius)


def test_solarize() -> None:
    batch = images(8, 17, 23)
    expected = [reference.solarize(x, 128 / 255) for x in batch]
    torch.testing.assert_close(
        image_ops.solarize(batch, 128 / 255), torch.stack(expected), rtol=0, atol=0
    )


def test_every_byte_is_converted_and_solarized_as_pil_does() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(1, 3, 16, 16)
    converted = image_ops.to_float(levels)
    # torchvision's ToTensor divides too; v2.ToDtype multiplies by the inverse instead.
    divided = np.arange(256, dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(converted[0, 0].flatten().numpy(), divided)
    pil = ImageOps.solarize(Image.fromarray(levels[0, 0].numpy()), 128)
    solarized = image_ops.solarize(converted, 128 / 255)[0, 0].mul(255).round().numpy()
    np.testing.assert_array_equal(solarized, np.asarray(pil))


def test_flip_and_normalize() -> None:
    batch = images(5, 17, 23)
    assert torch.equal(image_ops.flip(batch), reference.horizontal_flip(batch))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert torch.equal(image_ops.normalize(batch), reference.normalize(batch, mean, std))


def test_arguments_are_not_changed() -> None:
    batch, factor = images(6, 16, 16), factors(6, 0.2, 1.8)
    kept, kept_factor = batch.clone(), factor.clone()
    for operation, _ in BLENDS:
        operation(batch, factor)
    image_ops.adjust_hue(batch, factor)
    image_ops.grayscale(batch)
    image_ops.gaussian_blur(batch, factor, 5)
    image_ops.solarize(batch, 0.5)
    image_ops.flip(batch)
    image_ops.normalize(batch)
    image_ops.crop_resize(batch, torch.tensor([[0, 0, 9, 9]] * 6), 8)
    assert torch.equal(batch, kept)
    assert torch.equal(factor, kept_factor)


def test_resize_by_size_puts_every_image_in_its_place() -> None:
    sizes = [(4, 4), (6, 5), (4, 4), (7, 4), (6, 5), (4, 4)]
    mixed = [torch.full((3, *size), place, dtype=torch.uint8) for place, size in enumerate(sizes)]
    calls: list[list[int]] = []

    def cut(batch: Tensor, rows: Tensor) -> Tensor:
        calls.append(rows.tolist())
        return batch[:, :, :2, :2] + rows.view(-1, 1, 1, 1)

    result = image_ops.resize_by_size(mixed, cut)
    assert calls == [[0, 2, 5], [1, 4], [3]]
    expected = torch.arange(6) * (1 + 1 / 255)
    torch.testing.assert_close(result, expected.view(6, 1, 1, 1).expand(6, 3, 2, 2))
