import math
import random
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from stabkit.train.data.view_params import ViewParams, sample_view_params
from stabkit.train.data.views import apply_view, plain_view, two_views

EPS = torch.finfo(torch.float32).eps
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Chance that one healthy statistic fails. The seeds are fixed, so a test that passes stays passed.
ALPHA = 1e-4
MANY = 20_000

GOLDEN_BOX = [[2, 4, 22, 28], [26, 112, 345, 278], [0, 34, 9, 12]]
GOLDEN_ORDER = [[2, 1, 0, 3], [0, 3, 2, 1], [0, 2, 3, 1]]
GOLDEN_HUE = [0.08382016870563946, -0.02496821575307371, 0.006008286264912833]
GOLDEN_FLIP = [True, False, False]

View = Literal[1, 2]


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    noise = torch.randint(0, 256, (count, 3, height, width), generator=generator)
    return noise.to(torch.uint8)


def params(view: View, count: int = MANY, size: tuple[int, int] = (32, 32)) -> ViewParams:
    return sample_view_params(0, 0, np.arange(count), view, np.tile(size, (count, 1)))


def rows_of(chosen: ViewParams, rows: NDArray[np.int64]) -> ViewParams:
    values = {f.name: getattr(chosen, f.name) for f in fields(chosen)}
    radius = values.pop("blur_radius")
    return ViewParams(**{k: v[rows] for k, v in values.items()}, blur_radius=radius)


def assert_same_params(left: ViewParams, right: ViewParams) -> None:
    for field in fields(ViewParams):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name))


@pytest.mark.parametrize("view", [1, 2])
def test_params_of_a_sample_do_not_depend_on_its_batch(view: View) -> None:
    sample = np.array([40, 3, 17, 2**33])
    sizes = np.array([[32, 32], [375, 500], [8, 90], [224, 224]])
    together = sample_view_params(1, 2, sample, view, sizes)
    for rows in (np.array([2]), np.array([3, 0, 1])):
        some = sample_view_params(1, 2, sample[rows], view, sizes[rows])
        assert_same_params(some, rows_of(together, rows))


def test_seed_epoch_and_view_each_change_the_draw() -> None:
    sizes = np.full((50, 2), 64)
    coordinates: list[tuple[int, int, View]] = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]
    hues = [
        sample_view_params(seed, epoch, np.arange(50), view, sizes).hue
        for seed, epoch, view in coordinates
    ]
    assert len(np.unique(np.concatenate(hues))) == 200


@pytest.mark.parametrize(
    ("view", "blur", "solarize"), [(1, MANY, 0), (2, 0.1, 0.2)], ids=["view1", "view2"]
)
def test_rates(view: View, blur: float, solarize: float) -> None:
    drawn = params(view)
    check_rate(drawn.jitter, 0.8)
    check_rate(drawn.gray, 0.2)
    check_rate(drawn.flip, 0.5)
    if view == 1:
        assert (drawn.blur_sigma > 0).all()
        assert not drawn.solarize.any()
    else:
        check_rate(drawn.blur_sigma > 0, blur)
        check_rate(drawn.solarize, solarize)


def check_rate(mask: NDArray[np.bool_], rate: float) -> None:
    assert stats.binomtest(int(mask.sum()), len(mask), rate).pvalue > ALPHA


@pytest.mark.parametrize("view", [1, 2])
def test_factors_are_uniform_in_their_ranges(view: View) -> None:
    drawn = params(view)
    check_uniform(drawn.brightness, 0.6, 1.4)
    check_uniform(drawn.contrast, 0.6, 1.4)
    check_uniform(drawn.saturation, 0.8, 1.2)
    check_uniform(drawn.hue, -0.1, 0.1)
    check_uniform(drawn.blur_sigma[drawn.blur_sigma > 0], 0.1, 2.0)
    codes = drawn.order @ np.array([64, 16, 4, 1])
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts).pvalue > ALPHA


def check_uniform(values: NDArray[np.float64], low: float, high: float) -> None:
    assert low <= values.min()
    assert values.max() <= high
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > ALPHA


def test_decisions_are_independent_of_each_other() -> None:
    drawn = params(2)
    masks = [drawn.jitter, drawn.gray, drawn.blur_sigma > 0, drawn.solarize, drawn.flip]
    values = [drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue, params(1).hue]
    whole = [
        drawn.order[:, 0],
        drawn.box[:, 2],
    ]  # one side of the box only, since its sides depend on each other
    columns = np.array([*masks, *values, *whole, params(1).flip], dtype=np.float64)
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    pairs = len(columns) * (len(columns) - 1) / 2
    assert np.abs(correlation).max() < stats.norm.isf(ALPHA / pairs / 2) / math.sqrt(MANY)


def test_blur_range_and_crop_scale_can_be_set() -> None:
    sizes = np.full((2000, 2), 100)
    drawn = sample_view_params(0, 0, np.arange(2000), 1, sizes, 0.5, blur_sigma=(0.3, 0.9))
    assert 0.3 <= drawn.blur_sigma.min() < drawn.blur_sigma.max() <= 0.9
    assert drawn.blur_radius == 3
    area = drawn.box[:, 2] * drawn.box[:, 3] / 10_000
    # A side of at least 61 pixels is off by half a pixel: 0.8 % in each.
    assert 0.5 * (1 - 0.017) < area.min() < 0.52


SIDES = [(4, 4), (4, 300), (300, 4), (5, 7), (8, 8), (32, 32), (33, 47), (64, 48), (224, 224)]
SIDES += [(375, 500), (500, 375), (1, 1), (1, 50), (17, 500)]


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("min_scale", [0.08, 0.001, 1.0])
def test_boxes_lie_inside_the_image(size: tuple[int, int], min_scale: float) -> None:
    sizes = np.tile(size, (3000, 1))
    box = sample_view_params(0, 0, np.arange(3000), 1, sizes, min_scale).box
    assert box[:, :2].min() >= 0
    assert box[:, 2:].min() >= 1
    assert (box[:, :2] + box[:, 2:] <= sizes).all()


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (100, 200), (60, 150)])
def test_boxes_are_distributed_like_those_of_torchvision(size: tuple[int, int]) -> None:
    count = 3000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.empty(3, *size)
        scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
        drawn = [RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(count)]
    expected, ours = np.array(drawn), params(1, count, size).box
    for left, right in [
        (expected[:, 2] * expected[:, 3], ours[:, 2] * ours[:, 3]),
        (expected[:, 2] / expected[:, 3], ours[:, 2] / ours[:, 3]),
        (expected[:, 0], ours[:, 0]),
        (expected[:, 1], ours[:, 1]),
    ]:
        assert stats.ks_2samp(left, right).pvalue > ALPHA


def test_every_offset_that_fits_is_equally_likely() -> None:
    box = params(1, MANY, (8, 12)).box
    for axis, side in ((0, 8), (1, 12)):
        for length in range(3, side + 1):
            offset = box[box[:, 2 + axis] == length, axis]
            counts = np.bincount(offset, minlength=side - length + 1)
            assert len(counts) == side - length + 1
            if len(counts) > 1 and len(offset):
                assert stats.chisquare(counts).pvalue > ALPHA


def test_golden_draw() -> None:
    # A change here changes every experiment: old runs could no longer be resumed or reproduced.
    drawn = sample_view_params(0, 0, np.arange(3), 2, np.array([[32, 32], [375, 500], [9, 80]]))
    assert drawn.box.tolist() == GOLDEN_BOX
    assert drawn.order.tolist() == GOLDEN_ORDER
    assert drawn.hue.tolist() == GOLDEN_HUE
    assert drawn.flip.tolist() == GOLDEN_FLIP


def test_the_fallback_box_equals_that_of_torchvision() -> None:
    sides = [1, 2, 3, 4, 7, 10, 31, 32, 50, 99, 333]
    sizes = np.array([(h, w) for h in sides for w in sides])
    box = sample_view_params(0, 0, np.arange(len(sizes)), 1, sizes, min_scale=1.0).box
    aspect = np.geomspace(3 / 4, 4 / 3, 2001)
    compared = 0
    for row, (height, width) in enumerate(sizes):
        # A try of the whole area rarely fits. Leave out the sizes where it may fit.
        fits_height = np.rint(np.sqrt(height * width / aspect)) <= height
        if (fits_height & (np.rint(np.sqrt(height * width * aspect)) <= width)).any():
            continue
        compared += 1
        blank = torch.empty(3, height, width)
        expected = RandomResizedCrop.get_params(blank, [1.0, 1.0], [3 / 4, 4 / 3])
        assert box[row].tolist() == list(expected)
    assert compared > 80


def torchvision_view(image: Tensor, p: ViewParams, row: int, size: int) -> Tensor:
    bilinear, box = InterpolationMode.BILINEAR, p.box[row].tolist()
    x = image.to(torch.float32) / 255
    x = reference.resized_crop(x, *box, [size, size], bilinear, antialias=True)
    jitter: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
        (reference.adjust_brightness, p.brightness[row]),
        (reference.adjust_contrast, p.contrast[row]),
        (reference.adjust_saturation, p.saturation[row]),
        (reference.adjust_hue, p.hue[row]),
    ]
    for kind in p.order[row] if p.jitter[row] else []:
        operation, factor = jitter[kind]
        x = operation(x, float(factor))
    if p.gray[row]:
        x = reference.rgb_to_grayscale(x, num_output_channels=3)
    if p.blur_sigma[row] > 0:
        radius = min(p.blur_radius, size - 1)
        x = reference.gaussian_blur(x, [2 * radius + 1] * 2, [float(p.blur_sigma[row])] * 2)
    if p.solarize[row]:
        x = reference.solarize(x, 128 / 255)
    if p.flip[row]:
        x = reference.horizontal_flip(x)
    result: Tensor = reference.normalize(x, MEAN, STD)
    return result


@pytest.mark.parametrize(
    ("count", "height", "width", "size"),
    [(160, 32, 32, 32), (40, 8, 8, 8), (40, 8, 8, 4), (24, 40, 70, 32), (6, 224, 224, 224)],
)
@pytest.mark.parametrize("view", [1, 2])
def test_a_view_equals_the_chain_of_torchvisions_operations(
    count: int, height: int, width: int, size: int, view: View
) -> None:
    batch, p = images(count, height, width), params(view, count, (height, width))
    result = apply_view(batch, p, size)
    expected = torch.stack([torchvision_view(x, p, row, size) for row, x in enumerate(batch)])
    # Crop 2 * max(H, W) * EPS, hue 24 EPS, blur and the rest 24 EPS (see test_image_ops); then
    # brightness, contrast and saturation multiply by 1.4 * 1.4 * 1.2 and the norm by 1 / 0.224.
    tolerance = (2 * max(height, width) + 48) * EPS * 2.36 / 0.224
    difference = (result - expected).abs()
    # A value that rounds across the threshold t of the solarization jumps by 2 t - 1.
    jump = (2 * 128 / 255 - 1) / 0.224 + tolerance
    assert (difference > tolerance).float().mean() < 1e-5
    assert difference.max() < (jump if view == 2 else tolerance)


@pytest.mark.parametrize("mask", ["jitter", "gray", "solarize", "flip"])
def test_an_operation_on_all_samples_then_on_some(mask: str) -> None:
    # Whole batches take a short cut, whose result must be writable for the next operation.
    batch, p = images(3, 16, 16), params(2, 3, (16, 16))
    some = np.array([True, False, False])
    p = replace(p, jitter=some, gray=some, solarize=some, flip=some, blur_sigma=some * 0.5)
    everywhere: dict[str, Any] = {mask: np.full(3, True)}
    p = replace(p, **everywhere)
    expected = torch.stack([torchvision_view(x, p, row, 16) for row, x in enumerate(batch)])
    # As in test_a_view_equals_the_chain_of_torchvisions_operations.
    tolerance = (2 * 16 + 48) * EPS * 2.36 / 0.224
    torch.testing.assert_close(apply_view(batch, p, 16), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [4, 8, 32, 224])
def test_output_is_contiguous_float_on_any_size(size: int) -> None:
    for height, width in [(8, 8), (32, 32), (4, 90), (1, 1)]:
        batch = images(3, height, width)
        for view in (*two_views(batch, 0, 0, np.arange(3), size), plain_view(batch, size)):
            assert view.shape == (3, 3, size, size)
            assert view.dtype == torch.float32
            assert view.is_contiguous()
            assert view.isfinite().all()


def test_a_view_does_not_depend_on_the_rest_of_the_batch() -> None:
    batch, sample = images(64, 32, 32), np.arange(64)
    together = torch.stack(two_views(batch, 0, 0, sample, 32), dim=1)
    order = np.random.default_rng(0).permutation(64)
    shuffled = torch.stack(two_views(batch[order], 0, 0, sample[order], 32), dim=1)
    half = torch.stack(two_views(batch[:31], 0, 0, sample[:31], 32), dim=1)
    # A matrix product may sum in another order for another number of samples; a mean or a blur of
    # values below 1 then differs by a few EPS, the norm multiplies by 4.5.
    tolerance = 16 * EPS * 2.36 / 0.224
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=tolerance)
    torch.testing.assert_close(half, together[:31], rtol=0, atol=tolerance)


def test_two_views_are_the_two_draws() -> None:
    batch, sample = images(20, 32, 32), np.arange(100, 120)
    first, second = two_views(batch, 5, 3, sample, 16, 0.3, (0.1, 1.0))
    views: list[tuple[View, Tensor]] = [(1, first), (2, second)]
    for view, result in views:
        p = sample_view_params(5, 3, sample, view, np.full((20, 2), 32), 0.3, (0.1, 1.0))
        assert torch.equal(result, apply_view(batch, p, 16))


def test_list_of_equal_sizes_is_the_batch() -> None:
    batch, sample = images(16, 24, 40), np.arange(16)
    assert torch.equal(
        torch.stack(two_views(list(batch), 0, 0, sample, 32)),
        torch.stack(two_views(batch, 0, 0, sample, 32)),
    )
    assert torch.equal(plain_view(list(batch), 32), plain_view(batch, 32))


def test_list_of_different_sizes_is_one_image_at_a_time() -> None:
    sizes = [(8, 8), (37, 20), (8, 8), (375, 500), (20, 37)]
    mixed = [images(1, *size)[0] for size in sizes]
    together = torch.stack(two_views(mixed, 0, 0, np.arange(5), 32))
    plain = plain_view(mixed, 32)
    for row, image in enumerate(mixed):
        alone = torch.stack(two_views([image], 0, 0, np.array([row]), 32))
        tolerance = 16 * EPS * 2.36 / 0.224
        torch.testing.assert_close(together[:, row : row + 1], alone, rtol=0, atol=tolerance)
        torch.testing.assert_close(plain[row : row + 1], plain_view([image], 32))


def test_plain_view_of_the_wanted_size_is_only_normalized() -> None:
    batch = images(5, 32, 32)
    expected = reference.normalize(batch.to(torch.float32) / 255, MEAN, STD)
    assert torch.equal(plain_view(batch, 32), expected)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (256, 256), (32, 32)])
@pytest.mark.parametrize(("size", "shorter"), [(224, 256), (32, 37), (96, 110)])
def test_plain_view_is_resize_256_crop_224(
    height: int, width: int, size: int, shorter: int
) -> None:
    if height == width == size:
        return
    batch = images(2, height, width)
    expected = reference.resize(batch.double() / 255, [shorter], antialias=True)
    expected = reference.normalize(reference.center_crop(expected, [size, size]), MEAN, STD)
    tolerance = (max(height, width) + 8) * EPS / 0.224
    torch.testing.assert_close(plain_view(batch, size), expected.float(), rtol=0, atol=tolerance)


def test_global_generators_and_inputs_are_left_alone() -> None:
    batch = images(8, 32, 32)
    kept = batch.clone()
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    two_views(batch, 0, 0, np.arange(8), 32)
    plain_view(batch, 16)
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert before == after
    assert torch.equal(batch, kept)


def test_autocast_does_not_lower_the_precision() -> None:
    batch, sample = images(8, 32, 32), np.arange(8)
    full = torch.stack([*two_views(batch, 0, 0, sample, 16), plain_view(batch, 16)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = torch.stack([*two_views(batch, 0, 0, sample, 16), plain_view(batch, 16)])
    assert torch.equal(mixed, full)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"images must be uint8 .* got torch.float32"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"got torch.uint8 of shape \[2, 8, 8, 3\]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got torch.uint8 of shape \[3, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "not empty"),
        ([], "got an empty list"),
        ([torch.zeros(3, 8, 8)], r"images\[0\] must be uint8 of shape \[3, h, w\]"),
    ],
)
def test_bad_images_are_refused(batch: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_views(batch, 0, 0, np.arange(2), 8)
    with pytest.raises(ValueError, match=message):
        plain_view(batch, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": 3}, "view must be 1 or 2, got 3"),
        ({"min_scale": 0.0}, "min_scale must be above 0 and at most 1, got 0.0"),
        ({"min_scale": 1.5}, "min_scale must be above 0 and at most 1, got 1.5"),
        ({"blur_sigma": (0.0, 2.0)}, "blur_sigma must be"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma must be"),
        ({"sizes": np.full((3, 2), 8)}, r"each of 2 samples, got shape \(3, 2\)"),
        ({"sizes": np.array([[8, 0], [8, 8]])}, "smallest value 0"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    arguments = {"sample": np.arange(2), "view": 1, "sizes": np.full((2, 2), 8)}
    with pytest.raises(ValueError, match=message):
        sample_view_params(0, 0, **(arguments | change))  # type: ignore[arg-type]


def test_params_of_other_images_are_refused() -> None:
    p = params(1, 4, (32, 32))
    with pytest.raises(ValueError, match="params are for 4 samples but there are 3 images"):
        apply_view(images(3, 32, 32), p, 8)
    with pytest.raises(ValueError, match=r"must lie in its image of size \[5, 5\]"):
        apply_view(images(4, 5, 5), p, 8)
