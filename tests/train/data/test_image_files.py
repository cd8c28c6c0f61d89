import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stabkit.rundir import LeftOutWarning
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import ImageSet
from stabkit.train.data.load import load_data

NAMES = ("cat", "dog", "gnu")


def load(name: str, path: Path | str, **settings: Any) -> tuple[ImageSet, ImageSet]:
    defaults = {"image_size": 32, "num_train": 0, "num_heldout": 0, "download": False}
    return load_data(SimpleNamespace(name=name, path=str(path), **{**defaults, **settings}))  # type: ignore[arg-type]


def pixels(value: int, height: int = 5, width: int = 5) -> NDArray[np.uint8]:
    """Return [H, W, 3] with distinct values, so that a transpose would show."""
    ramp = np.arange(height * width * 3).reshape(height, width, 3)
    return ((ramp + 7 * value) % 256).astype(np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_shard(
    file: Path,
    images: list[Any],
    labels: list[Any],
    columns: tuple[str, str] = ("image", "label"),
    names: tuple[str, ...] | None = NAMES,
    plain: bool = False,
    label_type: pa.DataType | None = None,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not plain:
        images = [{"bytes": image, "path": None} for image in images]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            columns[0]: pa.array(images, kind),
            columns[1]: pa.array(labels, label_type or pa.int64()),
        }
    )
    if names is not None:
        features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        content = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": content})
    pq.write_table(table, file)


def write_pair(root: Path, **settings: Any) -> None:
    write_shard(
        root / "train.parquet", [png(pixels(i)) for i in range(6)], [0, 1, 2] * 2, **settings
    )
    write_shard(
        root / "test.parquet", [png(pixels(9 + i)) for i in range(3)], [2, 1, 0], **settings
    )


def assert_holds(images: ImageSet, values: list[int]) -> None:
    loaded = images.load(np.arange(len(images)))
    assert isinstance(loaded, torch.Tensor)
    expected = np.stack([pixels(value).transpose(2, 0, 1) for value in values])
    np.testing.assert_array_equal(loaded.numpy(), expected)


@pytest.mark.parametrize("folder", ["plain", "with space", "quo'te\"s", "größe-画像", "br[a]ck*"])
@pytest.mark.parametrize("inside", [".", "data"])
def test_parquet_round_trip(tmp_path: Path, folder: str, inside: str) -> None:
    write_pair(tmp_path / folder / inside)
    train, heldout = load("parquet", tmp_path / folder)
    assert train.classes == heldout.classes == NAMES
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert heldout.labels.tolist() == [2, 1, 0]
    assert train.labels.dtype == np.int64
    assert_holds(train, [0, 1, 2, 3, 4, 5])
    assert_holds(heldout, [9, 10, 11])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("columns", [("img", "fine_label"), ("image", "labels")])
def test_parquet_column_layouts(tmp_path: Path, plain: bool, columns: tuple[str, str]) -> None:
    write_pair(tmp_path, plain=plain, columns=columns)
    assert_holds(load("parquet", tmp_path)[1], [9, 10, 11])


def test_parquet_shards_join_in_order_of_name(tmp_path: Path) -> None:
    for shard, values in enumerate([[4, 5], [6], [7, 8, 9]]):
        file = tmp_path / "data" / f"train-{shard:05}-of-00003.parquet"
        write_shard(file, [png(pixels(v)) for v in values], [v % 3 for v in values])
    write_shard(tmp_path / "data" / "validation-0.parquet", [png(pixels(1))], [1])
    train, _ = load("parquet", tmp_path)
    assert_holds(train, [4, 5, 6, 7, 8, 9])
    assert train.labels.tolist() == [1, 2, 0, 1, 2, 0]


def test_parquet_validation_is_preferred_to_an_unlabeled_test_split(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_shard(tmp_path / "test.parquet", [png(pixels(0))], [-1])
    write_shard(tmp_path / "validation.parquet", [png(pixels(42))], [1])
    assert_holds(load("parquet", tmp_path)[1], [42])


def test_parquet_without_metadata_names_classes_by_label(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [png(pixels(0))] * 3, [20, 3, 100], names=None)
    write_shard(tmp_path / "test.parquet", [png(pixels(1))] * 2, [100, 3], names=None)
    train, heldout = load("parquet", tmp_path)
    assert train.classes == heldout.classes == ("3", "20", "100")
    assert train.labels.tolist() == [1, 0, 2]
    assert heldout.labels.tolist() == [2, 0]
    write_shard(tmp_path / "test.parquet", [png(pixels(1))] * 2, [100, 4], names=None)
    with pytest.raises(DataError, match=r"test\.parquet: row 1: label 4 .* 3 classes"):
        load("parquet", tmp_path)


def test_parquet_images_of_several_sizes_come_as_a_list(tmp_path: Path) -> None:
    shapes = [(5, 5), (4, 6), (5, 5)]
    images = [png(pixels(i, *shape)) for i, shape in enumerate(shapes)]
    write_shard(tmp_path / "train.parquet", images, [0, 1, 2])
    write_shard(tmp_path / "test.parquet", [png(pixels(3))], [0])
    train, _ = load("parquet", tmp_path)
    loaded = train.load(np.array([1, 2, 0]))
    assert isinstance(loaded, list)
    for image, i in zip(loaded, [1, 2, 0], strict=True):
        np.testing.assert_array_equal(image.numpy(), pixels(i, *shapes[i]).transpose(2, 0, 1))


def test_gray_palette_and_alpha_images_become_rgb(tmp_path: Path) -> None:
    gray = Image.fromarray(pixels(0)[:, :, 0])
    rgba = Image.fromarray(pixels(1)).convert("RGBA")
    palette = Image.fromarray(np.zeros((5, 5, 3), np.uint8)).convert("P")
    for i, image in enumerate([gray, rgba, palette]):
        for split in ("train", "val"):
            folder = tmp_path / split / f"class {i}"
            folder.mkdir(parents=True)
            image.save(folder / "one.png")
    loaded = load("imagefolder", tmp_path)[0].load(np.arange(3))
    assert isinstance(loaded, torch.Tensor)
    np.testing.assert_array_equal(loaded[0].numpy(), np.stack([pixels(0)[:, :, 0]] * 3))
    np.testing.assert_array_equal(loaded[1].numpy(), pixels(1).transpose(2, 0, 1))
    assert not loaded[2].any()


def test_caps_keep_a_fixed_subset(tmp_path: Path) -> None:
    values = list(range(30))
    write_shard(
        tmp_path / "train.parquet", [png(pixels(v)) for v in values], [v % 3 for v in values]
    )
    write_shard(
        tmp_path / "test.parquet", [png(pixels(v)) for v in values], [v % 3 for v in values]
    )
    drawn = []
    for cap in (4, 9, 100):
        train, heldout = load("parquet", tmp_path, num_train=cap, num_heldout=2)
        assert (len(train), len(heldout)) == (min(cap, 30), 2)
        first = (torch.as_tensor(train.load(np.arange(4)))[:, 0, 0, 0] // 7).tolist()
        drawn.append(first)
        if cap < 30:
            np.testing.assert_array_equal(train.labels[:4], np.array(first) % 3)
    assert drawn[0] == drawn[1] != list(range(4))
    assert drawn[2] == list(range(4))  # a cap above the size changes nothing


GOOD = [png(pixels(0)), png(pixels(1))]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"labels": [0, None]}, "row 1: label is null"),
        ({"labels": [-1, 0]}, "row 0: label is -1"),
        ({"labels": [0, 3]}, "row 1: label 3 .* 3 classes"),
        ({"labels": [0.0, 1.0], "label_type": pa.float32()}, "label is float; .* integers"),
        ({"labels": ["a", "b"], "label_type": pa.string()}, "label is string; .* integers"),
        ({"columns": ("picture", "label")}, "no column image or img; .* picture, label"),
        ({"columns": ("image", "target")}, "no column label or .* image, target"),
        ({"images": [GOOD[0], None], "plain": True}, "row 1: image is null"),
        ({"images": [None, GOOD[0]]}, "row 0: image is null"),
        ({"images": [], "labels": []}, "no rows"),
        ({"images": [GOOD[0], b"not an image"]}, "row 1: not an image .*cannot identify"),
        ({"images": [GOOD[0], GOOD[0][:-30]]}, "row 1: not an image .*"),
        ({"images": [GOOD[0], b""]}, "row 1: not an image"),
        ({"names": ("x", "y", "z")}, "class names .* are not those of"),
    ],
)
def test_bad_parquet_content_is_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    write_pair(tmp_path)
    write_shard(tmp_path / "test.parquet", **{"images": GOOD, "labels": [0, 1], **settings})
    with pytest.raises(DataError, match=said) as caught:
        load("parquet", tmp_path)
    assert str(tmp_path / "test.parquet") in str(caught.value)


def test_a_struct_that_is_itself_null_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": GOOD[0], "path": None}, None], kind)
    pq.write_table(pa.table({"image": image, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: row 1: image is null"):
        load("parquet", tmp_path)


def test_row_of_a_corrupt_image_counts_within_its_shard(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "train.parquet").unlink()
    write_shard(tmp_path / "train-0.parquet", GOOD, [0, 1])
    write_shard(tmp_path / "train-1.parquet", [GOOD[0], b"broken"], [0, 1])
    with pytest.raises(DataError, match=r"train-1\.parquet: row 1: not an image"):
        load("parquet", tmp_path)


def test_a_damaged_image_of_a_set_decoded_on_every_load_is_found_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    """A set of several sizes is not decoded before the training."""
    write_pair(tmp_path)
    sound = [png(pixels(0)), png(pixels(1, 4, 6))] * 512  # the chunk that shows their sizes
    write_shard(tmp_path / "train.parquet", [*sound, b"broken"], [0] * 1025)
    train, _ = load("parquet", tmp_path)
    assert len(train.load(np.arange(1024))) == 1024
    with pytest.raises(DataError, match=r"train\.parquet: row 1024: not an image"):
        train.load(np.array([3, 1024]))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"certainly no Parquet file" * 9])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    write_pair(tmp_path)
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet"):
        load("parquet", tmp_path)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("train", r"no train\*\.parquet"), ("test", r"no validation\*\.parquet or")],
)
def test_missing_parquet_split(tmp_path: Path, missing: str, said: str) -> None:
    write_pair(tmp_path)
    (tmp_path / f"{missing}.parquet").unlink()
    with pytest.raises(DataError, match=said) as caught:
        load("parquet", tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {"train": "test", "test": "train"}[missing] + ".parquet" in str(caught.value)


@pytest.mark.parametrize("name", ["parquet", "imagefolder"])
def test_missing_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="nowhere' does not exist"):
        load(name, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file' is a file; .* folder"):
        load(name, tmp_path / "file")


def test_one_file_cannot_be_both_splits(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "test.parquet").unlink()
    (tmp_path / "test.parquet").symlink_to(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: is also a file of the training split"):
        load("parquet", tmp_path)


def write_folder(root: Path, heldout: str = "val") -> None:
    for split in ("train", heldout):
        for label, name in enumerate(["zèbre 1", "Ant", "b'ee\""]):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, suffix in enumerate(["png", "BMP"]):
                value = 10 * label + i + (100 if split != "train" else 0)
                Image.fromarray(pixels(value)).save(folder / f"im'age {i}.{suffix}")


@pytest.mark.parametrize("heldout", ["val", "validation", "test"])
def test_folder_round_trip(tmp_path: Path, heldout: str) -> None:
    write_folder(tmp_path / "ördner", heldout)
    train, other = load("imagefolder", tmp_path / "ördner")
    assert train.classes == other.classes == ("Ant", "b'ee\"", "zèbre 1")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert_holds(train, [10, 11, 20, 21, 0, 1])
    assert_holds(other, [110, 111, 120, 121, 100, 101])


def test_a_folder_is_read_with_its_subfolders_and_without_other_files(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "Ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "Ant" / "._im'age 0.png").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    deep = tmp_path / "train" / "Ant" / "images"
    deep.mkdir()
    Image.fromarray(pixels(55)).save(deep / "deep.png")
    with pytest.warns(LeftOutWarning, match=r"1 file left out, the first is Ant/notes.txt"):
        train, _ = load("imagefolder", tmp_path)
    assert train.classes == ("Ant", "b'ee\"", "zèbre 1")
    assert_holds(train, [10, 11, 55, 20, 21, 0, 1])


def test_heldout_classes_keep_the_numbers_of_training(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "val" / "Ant").iterdir():
        file.unlink()
    (tmp_path / "val" / "Ant").rmdir()
    assert load("imagefolder", tmp_path)[1].labels.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("unreadable", ["train", "Ant", "images"])
def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "Ant" / "images").mkdir()
    scan, list_names = os.scandir, os.listdir

    def refused(path: Any) -> None:
        if Path(os.fspath(path)).name == unreadable:
            raise PermissionError(13, "Permission denied", os.fspath(path))

    def scan_or_refuse(path: Any) -> Any:
        refused(path)
        return scan(path)

    def list_or_refuse(path: Any) -> list[str]:
        refused(path)
        return list_names(path)

    monkeypatch.setattr(os, "scandir", scan_or_refuse)
    monkeypatch.setattr(os, "listdir", list_or_refuse)  # what Path.iterdir calls in Python 3.11
    with pytest.raises(DataError, match=rf"data\.path .*: cannot be read .*{unreadable}'"):
        load("imagefolder", tmp_path)


def empty_class(root: Path) -> str:
    (root / "train" / "Ant2").mkdir()
    return "Ant2"


def unknown_class(root: Path) -> str:
    (root / "val" / "Ant").rename(root / "val" / "Aunt")
    return "Aunt"


def no_heldout(root: Path) -> str:
    (root / "val").rename(root / "valid")
    return "'train', 'valid'"


def no_train(root: Path) -> str:
    (root / "train").rename(root / "Training")
    return "'Training'"


def no_classes(root: Path) -> str:
    for folder in list((root / "val").iterdir()):
        folder.rename(root / folder.name)
    Image.fromarray(pixels(0)).save(root / "val" / "loose.png")
    return "loose.png"


def corrupt(root: Path) -> str:
    (root / "val" / "Ant" / "im'age 1.BMP").write_bytes(b"broken")
    return "im'age 1.BMP"


def same_folder(root: Path) -> str:
    (root / "val").rename(root / "gone")
    (root / "val").symlink_to(root / "train", target_is_directory=True)
    return "same folder"


@pytest.mark.parametrize(
    "break_it",
    [empty_class, unknown_class, no_heldout, no_train, no_classes, corrupt, same_folder],
)
def test_bad_folders_are_named(tmp_path: Path, break_it: Any) -> None:
    write_folder(tmp_path)
    named = break_it(tmp_path)
    with pytest.raises(
        ValueError, match=r"expected|has no|not in|not an image|same folder"
    ) as caught:
        load("imagefolder", tmp_path)
    assert named in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_absent_torchvision_set_says_how_to_fetch_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} .*data\.download=true") as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    asked = []

    def fake(root: str, train: bool, download: bool) -> SimpleNamespace:
        asked.append((root, train, download))
        values = [1, 2, 3] if train else [4, 5]
        data = np.stack([pixels(value) for value in values])
        return SimpleNamespace(data=data, targets=[v % 3 for v in values], classes=list(NAMES))

    monkeypatch.setattr(f"torchvision.datasets.{name.upper()}", fake)
    train, heldout = load(name, tmp_path, download=True)
    assert asked == [(str(tmp_path), True, True), (str(tmp_path), False, True)]
    assert_holds(train, [1, 2, 3])
    assert_holds(heldout, [4, 5])
    assert heldout.labels.tolist() == [1, 2]
    assert heldout.classes == NAMES


def test_stl10_conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake(root: str, split: str, download: bool) -> SimpleNamespace:
        values = {"train": [1, 2, 3], "test": [4, 5]}[split]
        data = np.stack([pixels(value).transpose(2, 0, 1) for value in values])
        return SimpleNamespace(data=data, labels=np.array(values, np.uint8) % 3, classes=NAMES)

    monkeypatch.setattr("torchvision.datasets.STL10", fake)
    train, heldout = load("stl10", tmp_path)
    assert_holds(train, [1, 2, 3])
    assert_holds(heldout, [4, 5])
    assert heldout.labels.tolist() == [1, 2]
    assert heldout.labels.dtype == np.int64


CIFAR10 = os.environ.get("STABKIT_CIFAR10", "")


@pytest.mark.skipif(
    not CIFAR10, reason="STABKIT_CIFAR10 is not set: a folder with CIFAR-10 Parquet"
)
def test_real_cifar10() -> None:
    train, heldout = load("parquet", CIFAR10)
    assert (len(train), len(heldout)) == (50_000, 10_000)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(heldout.labels).tolist() == [1000] * 10
    mean = torch.as_tensor(train.load(np.arange(50_000))).float().mean((0, 2, 3)) / 255
    # The published channel means of the training set; JPEG and rounding move them by much less.
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-3)
