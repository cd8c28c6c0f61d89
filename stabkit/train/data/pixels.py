"""Convert a picture in any of Pillow's modes to 8-bit colors."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Increase it when a picture gives other pixels than before: image caches are then made anew.
PIXELS_VERSION = 2
_GRAY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
# Pillow opens 16-bit gray pictures of these formats as 32-bit integers from 0 to 65535.
_WIDENED = ("PNG", "PPM")


def check_size(image: Image.Image) -> None:
    """Raise ValueError for a picture whose pixels would fill the memory, however small its file."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the {limit:,} that Pillow "
            "considers safe; make it smaller"
        )


def rgb_planes(image: Image.Image) -> list[bytes]:
    """Return red, green and blue, each of H x W bytes; alpha and the EXIF orientation are ignored.

    16-bit gray is scaled by 255 / 65535 and floats from 0 to 1 by 255, both rounded: Pillow's own
    conversion would clip them. Raises ValueError with the range found when the range is another.
    """
    if image.mode in _GRAY_16 or (image.mode == "I" and image.format in _WIDENED):
        wide = np.asarray(image).astype(np.int64)
        # Integer division rounds to nearest with half of the divisor added.
        return _gray((wide * 255 + 32767) // 65535)
    if image.mode == "I" or image.mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if image.mode == "F" and low >= 0 and high <= 1:
            return _gray(np.rint(values.astype(np.float64) * 255))
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its pixels are {kind} from {low:.6g} to {high:.6g}, a scale that is not known; "
            "write it in 8 or 16 bits" + (", or from 0 to 1" if image.mode == "F" else "")
        )
    image.load()
    # convert() would copy a picture that has the wanted mode already.
    colors = image if image.mode == "RGB" else image.convert("RGB")
    # Pillow takes one color out faster than numpy splits three: docs/speed.md.
    return [colors.tobytes("raw", band) for band in "RGB"]


def _gray(values: NDArray[np.generic]) -> list[bytes]:
    return [values.astype(np.uint8).tobytes()] * 3
