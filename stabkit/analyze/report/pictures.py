"""Turn figures into PNG inside a page."""

import base64
import gc
import io
import warnings
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from stabkit.analyze.plots.style import RC, as_written

DPI = 144
CSS_DPI = 96


@dataclass(frozen=True)
class Picture:
    """A picture: a data address, its size in CSS pixels, and what it shows in words."""

    address: str
    width: int
    height: int
    alt: str


def picture(figure: Figure, alt: str) -> Picture:
    """Return a figure as PNG of at most 256 colors, which is enough for lines on white.

    The memory of the figure is free again if the caller does not keep it.
    """
    file = io.BytesIO()
    with mpl.rc_context(RC), warnings.catch_warnings():
        # names may be in any script; letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        as_written(figure).savefig(file, format="png", dpi=DPI)
    with Image.open(file) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    few.save(packed, format="png", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
    del figure
    gc.collect()  # the parts of a figure refer to each other: tens of MiB would wait for this
    width, height = (round(pixels * CSS_DPI / DPI) for pixels in few.size)
    return Picture(address, width, height, alt)
