"""Turn figures into PNG inside a page."""

import base64
import io
import warnings
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from stabkit.analyze.plots.style import RC, arranged, as_written

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
    """Return a figure as PNG of at most 256 colors, which is enough for lines on white."""
    file = io.BytesIO()
    with mpl.rc_context(RC), warnings.catch_warnings():
        # names may be in any script; letters that the font lacks are drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        with arranged(as_written(figure)) as box:
            figure.savefig(file, format="png", dpi=DPI, bbox_inches=box)
    with Image.open(file) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    few.save(packed, format="png", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
    width, height = (round(pixels * CSS_DPI / DPI) for pixels in few.size)
    return Picture(address, width, height, alt)
