"""Image operations on a batch, each sample with its own parameters.

Images are float32 [B, 3, H, W] in [0, 1]. Parameters are tensors on the same device with one row a
sample. No function draws a random number or changes an argument in place. The reference for every
operation is `torchvision.transforms.v2.functional` on float tensors, one image at a time. Unlike
the PIL pipeline of the MoCo v3 code, no operation rounds its result to 8 bits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Images = Tensor | Sequence[Tensor]
"""uint8 [B, 3, H, W], or B tensors uint8 [3, h, w] of any sizes on one device."""

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601 as torchvision writes it; the sum is 0.9999
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_sizes(images: Images) -> NDArray[np.int64]:
    """Return heights and widths [B, 2]; raise ValueError unless the images are as `Images` says."""
    if isinstance(images, Tensor):
        _check_image("images", images, "[B, 3, H, W]")
        return np.tile(np.array(images.shape[2:], dtype=np.int64), (len(images), 1))
    if not images:
        raise ValueError("images must hold one image or more, got an empty list")
    for row, image in enumerate(images):
        _check_image(f"images[{row}]", image, "[3, h, w]")
    return np.array([image.shape[1:] for image in images], dtype=np.int64)


def _check_image(name: str, image: Tensor, shape: str) -> None:
    dimensions = shape.count(",") + 1
    fits = image.ndim == dimensions and image.shape[-3] == 3 and image.numel() > 0
    if not fits or image.dtype != torch.uint8:
        raise ValueError(
            f"{name} must be uint8 of shape {shape} and not empty, "
            f"got {image.dtype} of shape {list(image.shape)}"
        )


def resize_by_size(images: Images, resize: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Resize images with one call for all images of one size; return [B, 3, S, S].

    `resize(batch, rows)` gets float32 [n, 3, H, W] in [0, 1] and the places [n] of its images.
    """
    if isinstance(images, Tensor):
        return resize(to_float(images), torch.arange(len(images), device=images.device))
    places: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    device = images[0].device
    rows = [torch.tensor(same).to(device, non_blocking=True) for same in places.values()]
    batches = (torch.stack([images[place] for place in same]) for same in places.values())
    parts = [resize(to_float(batch), row) for batch, row in zip(batches, rows, strict=True)]
    # `together` is ordered by size; put every image back at its place in the batch.
    together = torch.cat(parts)
    return torch.empty_like(together).index_copy_(0, torch.cat(rows), together)


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 to float32 in [0, 1]."""
    # In memory, rows come before channels: apply_separable needs this layout, and it costs nothing
    # here, since the conversion copies in any case.
    rows_first = images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return rows_first.div_(255.0).transpose(1, 2)


def triangle_weights(start: Tensor, length: Tensor, out_size: int, in_size: int) -> Tensor:
    """Return matrices [B, out_size, in_size] of antialiased bilinear resizing along one axis.

    Row `i` averages the pixels `start ... start + length - 1` (integers [B]) under a triangle
    around the center of output pixel `i`. The triangle reaches one output pixel to either side when
    shrinking and one input pixel when enlarging. Pixels outside the interval have weight 0 and the
    rows sum to 1, which repeats the border pixel.
    """
    # All lengths are in input pixels, counted from `start`; pixel p has its center at p + 0.5.
    scale = length.to(torch.float32)[:, None] / out_size
    center = scale * (torch.arange(out_size, device=start.device) + 0.5)
    pixel = torch.arange(in_size, device=start.device) - start[:, None]
    distance = (pixel[:, None, :] + 0.5 - center[:, :, None]).abs_()
    # The half width is max(scale, 1). When shrinking (scale > 1) the wider triangle is the
    # antialiasing filter; when enlarging it is plain bilinear interpolation.
    weight = (1.0 - distance / scale.clamp(min=1.0)[:, :, None]).clamp_(min=0.0)
    weight *= ((pixel >= 0) & (pixel < length[:, None]))[:, None, :]
    return weight.div_(weight.sum(dim=2, keepdim=True))


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `rows[b] @ images[b, c] @ columns[b].T`: [B, 3, H, W] to [B, 3, S, T].

    `rows` is [B, S, H] and `columns` [B, T, W]; B may be 1 in both to share one matrix. Where TF32
    products are allowed, the result is off by up to 1e-3, a quarter of an 8-bit gray level.
    """
    batch, channels, height, width = images.shape
    # With the channels inside the rows, each product is one wide matrix per sample. This is
    # several times faster than one small matrix per channel.
    half = rows @ images.transpose(1, 2).reshape(batch, height, channels * width)
    half = half.view(batch, -1, width) @ columns.transpose(1, 2)
    return half.view(batch, -1, channels, columns.shape[1]).transpose(1, 2).contiguous()


def crop_resize(images: Tensor, box: Tensor, size: int) -> Tensor:
    """Cut `box` [B, 4] (top, left, height, width in pixels), resize to [B, 3, size, size].

    The cut costs nothing: it is the interval of pixels that the resizing averages.
    """
    top, left, height, width = box.unbind(dim=1)
    rows = triangle_weights(top, height, size, images.shape[2])
    columns = triangle_weights(left, width, size, images.shape[3])
    return apply_separable(images, rows, columns)


def resize_and_center_crop(images: Tensor, shorter: int, size: int) -> Tensor:
    """Resize the shorter side to `shorter`, then cut the central [B, 3, size, size].

    Only the rows and columns that survive the cut are computed.
    """
    matrices = []
    for length in images.shape[2:]:
        resized = int(shorter * length / min(images.shape[2:]))
        start = torch.zeros(1, dtype=torch.int64, device=images.device)
        # One matrix of batch size 1 serves all images, which share their size.
        whole = triangle_weights(start, torch.full_like(start, length), resized, length)
        first = round((resized - size) / 2.0)
        matrices.append(whole[:, first : first + size])
    return apply_separable(images, *matrices)


def luma(images: Tensor) -> Tensor:
    """Return the brightness of each pixel, [B, 1, H, W]."""
    red, green, blue = images.unbind(dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def grayscale(images: Tensor) -> Tensor:
    """Set all three channels to the brightness."""
    return luma(images).expand_as(images).contiguous()


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` [B]: 0 gives black, 1 the image itself."""
    return (images * _per_sample(factor)).clamp_(0.0, 1.0)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean brightness of each image: 0 gives uniform gray, 1 the image itself."""
    return _blend(images, luma(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image: 0 gives gray, 1 the image itself."""
    return _blend(images, luma(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift` [B] turns; keep the saturation and value of HSV.

    With value V, chroma C = V - min and the hue h in sixths of a turn, each channel is
    min + C * trapezoid(h). The saturation C / V, a quotient, is never needed.
    """
    darkest, chroma, hue = _darkest_chroma_hue(images)
    hue = hue.add_(_per_sample(6.0 * shift))
    # Take the hue modulo 6. torch.remainder gives the same and is four times slower.
    hue = hue.sub_(torch.floor(hue / 6.0).mul_(6.0))
    # The trapezoids: each channel is 1 over two sixths, 0 over two, and linear between; red is 1
    # around hue 0, green around 2, blue around 4.
    red = (hue - 3.0).abs_().sub_(1.0)
    green = (hue - 2.0).abs_().neg_().add_(2.0)
    blue = (hue - 4.0).abs_().neg_().add_(2.0)
    ramps = torch.cat([red, green, blue], dim=1).clamp_(0.0, 1.0)
    return ramps.mul_(chroma).add_(darkest).clamp_(0.0, 1.0)


def _darkest_chroma_hue(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return darkest channel, chroma and hue, each [B, 1, H, W].

    The hue is in sixths of a turn, from -1 to 5, and 0 for gray pixels.
    """
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    # torch.aminmax over the channels is forty times slower than this.
    value = torch.maximum(torch.maximum(red, green), blue)
    darkest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - darkest
    # The hue is numerator / chroma, with the numerator of the largest channel: g - b for red,
    # b - r + 2 * chroma for green, r - g + 4 * chroma for blue.
    from_green = (blue - red).add_(chroma, alpha=2.0)
    from_blue = (red - green).add_(chroma, alpha=4.0)
    # The sign is 0 where the channel is the largest and 1 elsewhere, so lerp selects. torch.where
    # gives the same but is not vectorized on the CPU and takes ten times as long.
    numerator = torch.lerp(from_green, from_blue, (value - green).sign_())
    numerator = torch.lerp(green - blue, numerator, (value - red).sign_())
    # The numerator of gray pixels is 0, so any divisor but 0 gives hue 0.
    return darkest, chroma, numerator.div_(chroma.clamp(min=torch.finfo(torch.float32).tiny))


def blur_kernel(sigma: Tensor, radius: int) -> Tensor:
    """Return weights [B, 2 * radius + 1], `exp(-(d / sigma)**2 / 2)` at distance `d`, of sum 1.

    `sigma` [B] is in pixels and must be positive.
    """
    # softmax is exp over its sum, and no sigma underflows: the largest exponent is 0.
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax((tap / sigma[:, None]).square().mul_(-0.5), dim=1)


def blur_matrices(sigma: Tensor, radius: int, size: int) -> Tensor:
    """Return matrices [B, size, size] of a Gaussian filter along one axis with reflected borders.

    Row `i` holds `blur_kernel` around pixel `i`.

    Raises ValueError unless `0 <= radius < size`: reflection reaches `size - 1` pixels.
    """
    if not 0 <= radius < size:
        raise ValueError(f"radius must be from 0 to {size - 1} at size {size}, got {radius}")
    kernel = blur_kernel(sigma, radius)
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    # The pixel that each tap reads: -1 is reflected to 1, and `size` to `size - 2`.
    source = (torch.arange(size, device=sigma.device)[:, None] + tap).abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    # Add, not copy: near a border two taps read the same pixel.
    matrices = kernel.new_zeros(len(sigma), size, size)
    shape = (len(sigma), size, 2 * radius + 1)
    return matrices.scatter_add_(2, source.expand(shape), kernel[:, None].expand(shape))


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur square images [B, 3, S, S] with a Gaussian of `sigma` [B] pixels, cut at `radius`.

    The MoCo v3 code calls PIL's GaussianBlur. It also takes the standard deviation, but it replaces
    the Gaussian by three box filters of the same variance, repeats the border pixel instead of
    reflecting, and rounds to 8 bits.
    """
    matrices = blur_matrices(sigma, radius, images.shape[3])
    return apply_separable(images, matrices, matrices)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above `threshold`."""
    # A weight of 0 or 1 makes lerp an exact torch.where that is vectorized on the CPU.
    return torch.lerp(images, 1.0 - images, (images >= threshold).to(images.dtype))


def flip(images: Tensor) -> Tensor:
    """Mirror left and right."""
    return images.flip(3)


def normalize(images: Tensor) -> Tensor:
    """Subtract the ImageNet mean of each channel and divide by its standard deviation."""
    mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = images.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return (images - mean).div_(std)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return factor * images + (1 - factor) * other, in [0, 1]; a factor above 1 extrapolates."""
    ratio = _per_sample(factor)
    return (images * ratio).add_(other * (1.0 - ratio)).clamp_(0.0, 1.0)


def _per_sample(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
