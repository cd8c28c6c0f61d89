"""Read pictures of every mode, and find which files count as pictures."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from stabkit.cli import main
from stabkit.rundir import LeftOutWarning
from stabkit.train.data.errors import DataError
from stabkit.train.data.pixels import rgb_planes
from tests.conftest import SMALL
from tests.train.data.test_image_files import load, write_folder

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def through_file(image: Image.Image, suffix: str) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    image.save(buffer, format=Image.registered_extensions()[suffix])
    return rgb_pixels(Image.open(buffer))


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the planes as [H, W, 3]."""
    planes = [np.frombuffer(plane, np.uint8) for plane in rgb_planes(image)]
    return np.stack(planes, 1).reshape(image.height, image.width, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_give_the_same_pixels_as_8_bits(suffix: str) -> None:
    wide = through_file(Image.fromarray(GRAY.astype(np.uint16) * 257), suffix)
    np.testing.assert_array_equal(wide, through_file(Image.fromarray(GRAY), suffix))
    assert wide.shape == (16, 16, 3)


def test_16_bits_are_rounded() -> None:
    values = np.array([[0, 128, 129, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    expected = [0, 0, 1, 127, 128, 254, 255, 255]
    assert through_file(Image.fromarray(values), ".png")[0, :, 0].tolist() == expected


def test_floats_from_0_to_1_give_the_same_pixels_as_8_bits() -> None:
    floats = through_file(Image.fromarray(GRAY.astype(np.float32) / 255), ".tif")
    np.testing.assert_array_equal(floats, through_file(Image.fromarray(GRAY), ".tif"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (GRAY.astype(np.float32), "floats from 0 to 255"),
        (GRAY / np.float32(255) - np.float32(0.5), "floats from -0.5 to 0.5"),
        (np.full((2, 2), np.nan, np.float32), "floats from nan to nan"),
        (np.full((2, 2), np.inf, np.float32), "floats from inf to inf"),
        (GRAY.astype(np.int32) * 1000, "32-bit integers from 0 to 255000"),
    ],
)
def test_an_unknown_scale_is_refused_by_name(
    tmp_path: Path, values: NDArray[np.generic], said: str
) -> None:
    write_folder(tmp_path)
    file = tmp_path / "train" / "Ant" / "wide.tif"
    Image.fromarray(values).save(file)
    with pytest.raises(DataError, match=f"Ant/wide.tif: .*{said}"):
        load("imagefolder", tmp_path)


def test_other_modes() -> None:
    """Drop alpha even where it hides a color, look up palettes, convert CMYK."""
    color = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert through_file(color, ".png")[0, 0].tolist() == [10, 20, 30]
    assert through_file(Image.new("LA", (2, 2), (40, 0)), ".png")[0, 0].tolist() == [40] * 3
    assert through_file(Image.new("1", (2, 2), 1), ".png")[0, 0].tolist() == [255] * 3
    assert through_file(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), ".tif")[0, 0].tolist() == [
        255,
        0,
        0,
    ]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    assert rgb_pixels(Image.open(buffer))[0, 0].tolist() == [50, 60, 70]


def test_the_exif_orientation_is_not_applied() -> None:
    image = Image.fromarray(GRAY)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(rgb_pixels(Image.open(buffer))[:, :, 0], GRAY)


@pytest.mark.parametrize("name", ["a.pgm", "a.PGM", "a.jfif", "a.jpe", "a.JPEG", "a.pnm"])
def test_more_suffixes_are_read(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    kind = "JPEG" if "j" in name.lower() else "PPM"
    Image.fromarray(GRAY).save(tmp_path / "train" / "Ant" / name, kind)
    assert len(load("imagefolder", tmp_path)[0]) == 7


def test_linked_folders_are_read_and_circles_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "other").mkdir()
    Image.fromarray(GRAY).save(tmp_path / "other" / "a.png")
    link = tmp_path / "set" / "train" / "Ant" / "link"
    link.symlink_to(tmp_path / "other")
    assert len(load("imagefolder", tmp_path / "set")[0]) == 7
    link.unlink()
    link.symlink_to(tmp_path / "set" / "train")
    with pytest.raises(DataError, match="Ant/link: is a link to a folder that it lies in"):
        load("imagefolder", tmp_path / "set")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    folder = tmp_path / "train" / "Ant"
    (folder / "nosuffix").write_bytes(b"x")
    (folder / "broken.png").symlink_to("nowhere")
    with pytest.warns(LeftOutWarning, match=r"2 files left out, the first is Ant/broken.png"):
        load("imagefolder", tmp_path)


def test_a_decompression_bomb_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "set")
    for pixels in (400, 4000):  # Pillow warns about the first and refuses the second
        file = tmp_path / "set" / "train" / "Ant" / "big.png"
        Image.new("1", (20, pixels // 20)).save(file)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        words = ["data.name=imagefolder", f"data.path={tmp_path / 'set'}", "train.batch=4"]
        run = ["--run-dir", str(tmp_path / f"run {pixels}")]
        assert main(["train", "tiny", *run, *SMALL, *words]) == 2
        err = capsys.readouterr().err
        assert "big.png" in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "missing train-00001-of-00003.parquet"),
        (
            ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
            "more than one version of train",
        ),
        (["train-00000-of-00001-aa", "train-00000-of-00001-bb"], "two files for one shard"),
        (["train-00000-of-00001", "train"], "more than one version of train"),
        (
            ["train-00000-of-00001", "train-00001-of-00001"],
            "train-00001-of-00001.parquet is out of range",
        ),
    ],
)
def test_incomplete_shards_are_refused(tmp_path: Path, names: list[str], said: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GRAY).save(buffer, "PNG")
    table = pa.table({"image": [buffer.getvalue()], "label": [0]})
    for name in [*names, "test-00000-of-00001"]:
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=said):
        load("parquet", tmp_path)
