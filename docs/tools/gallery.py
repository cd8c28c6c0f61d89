"""Write docs/gallery.md and its pictures: python docs/tools/gallery.py [NAME ...]

The pictures show planted runs (`planted.py`); `tutorial` is made by the loop of the tutorial. They
have few colors and pixels, so that they stay small in the repository.
"""

import os
import re
import runpy
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

import stabkit
from stabkit.analyze.plots import PLOTS
from stabkit.analyze.plots.style import RC

DOCS = Path(__file__).parents[1]
PICTURES = DOCS / "figures" / "gallery"
WIDTH = 1400  # pixels
HEAD = """# Gallery

Every figure of `stabkit analyze --plot NAME`, with the command that makes it. A command writes a
PNG, a PDF and, as CSV, the table that is drawn. In Python, `runs.plot("knn")` returns the figure
([from Python](python.md#figures)). All of them are in the report too, where they apply.

The runs below are planted, not trained: `docs/tools/planted.py` makes them up, with events at known
places. Figures with a panel for each run show one seed of three. Like this page, the pictures are
made by `python docs/tools/gallery.py`.
"""
ONE_SEED = ("event-zoom", "grad-norms", "knn", "layer-map", "loss", "signals")


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for name, plot in PLOTS.items():
        about = plot.about[0].upper() + plot.about[1:]
        command = f"stabkit analyze runs/lr_grid --plot {name}"
        parts.append(
            f"## {name}\n\n{about}. {plot.look}\n\n```\n{command}\n```\n\n"
            f"![{about}](figures/gallery/{name}.png)\n"
        )
    return "\n".join(parts)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from planted import plant_grid, plant_optimizers

    chosen = sys.argv[1:] or [*PLOTS, "tutorial"]
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        plant_grid(Path(folder, "grid"))
        plant_optimizers(Path(folder, "optimizers"))
        grid, optimizers = (stabkit.load(Path(folder, name)) for name in ("grid", "optimizers"))
        for name in (name for name in PLOTS if name in chosen):
            runs = optimizers if name == "optimizer" else grid
            runs = runs.where(seed=0) if name in ONE_SEED else runs
            write(runs.plot(name), PICTURES / f"{name}.png")
        if "tutorial" in chosen:
            tutorial(Path(folder))
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


def tutorial(folder: Path) -> None:
    """Run the first block of the tutorial, and draw the run that it makes."""
    found = re.search(
        r"^```python\n(.*?)^```$", (DOCS / "tutorial.md").read_text("utf-8"), re.M | re.S
    )
    assert found
    (folder / "damaged.py").write_text(found[1])
    here = Path.cwd()
    os.chdir(folder)
    try:
        runpy.run_path("damaged.py")["train"]("runs/plain/1", seed=1)
        write(
            stabkit.open_run("runs/plain/1").plot("event-zoom"), DOCS / "figures" / "tutorial.png"
        )
    finally:
        os.chdir(here)


def write(figure: Figure, path: Path) -> None:
    """Write a picture of at most `WIDTH` pixels with 128 colors."""
    png = BytesIO()
    with mpl.rc_context(RC):
        figure.savefig(png, format="png", dpi=min(130, WIDTH / figure.get_figwidth()))
    Image.open(png).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
