"""Compare a cached set with the set itself; kill its builders, let them race or fill the disk."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stabkit.rundir import RunDir
from stabkit.train.data import image_cache
from stabkit.train.data import load as data
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import ImageSet, subset
from stabkit.train.data.load import load_data
from stabkit.train.data.views import two_views
from stabkit.train.loop import train
from tests.conftest import small_config
from tests.train.processes import CONTEXT, exit_codes
from tests.train.test_resume import assert_same_run

SIZES = [(9, 7), (7, 9), (9, 7), (1, 1), (12, 30)]


def make_source(root: Path, count: int = 10, kind: str = "imagefolder") -> Any:
    """Write PNGs and gray JPEGs of several sizes; such sets are never kept in memory."""
    generator = np.random.default_rng(count)
    for split, first in (("train", 0), ("val", 100)):
        for i in range(first, first + count):
            file = root / split / "ab"[i % 2] / f"{i:03}.{'jpg' if i % 3 else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            size = SIZES[i % len(SIZES)]
            noise = generator.integers(0, 256, size if i % 4 == 1 else (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file)
        if kind == "parquet":
            files = sorted((root / split).rglob("*.*"))
            content = {"image": [f.read_bytes() for f in files], "label": [0] * len(files)}
            pq.write_table(pa.table(content), root / f"{split}-0.parquet")
            shutil.rmtree(root / split)
    return SimpleNamespace(name=kind, path=str(root), image_size=8, num_train=0, num_heldout=0)


def assert_same_images(ours: ImageSet, expected: ImageSet) -> None:
    assert len(ours) == len(expected)
    assert np.array_equal(ours.labels, expected.labels)
    everything = np.arange(len(ours))
    for index in (everything, everything[::-1].copy(), everything[[0, 0]], everything[:0]):
        got, wanted = ours.load(index), expected.load(index)
        assert type(got) is type(wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        assert all(image.is_contiguous() for image in got)


def is_from_file(images: ImageSet) -> bool:
    return images.encoded is None


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_batches_and_views_are_the_same_to_the_bit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = make_source(tmp_path / "source", kind=kind), str(tmp_path / "cache")
    plain = load_data(source)
    assert not any(is_from_file(images) for images in plain)
    for again in (False, True):
        if again:
            monkeypatch.setattr(image_cache, "_build", None)
        ours = load_data(source, cache)
        for images, expected in zip(ours, plain, strict=True):
            assert is_from_file(images)
            assert_same_images(images, expected)
    index = np.arange(10)
    views = two_views(ours[0].load(index), 0, 0, index, 8)
    expected_views = two_views(plain[0].load(index), 0, 0, index, 8)
    assert all(torch.equal(a, b) for a, b in zip(views, expected_views, strict=True))


def test_a_cap_keeps_only_its_images(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    source.num_train = 4
    assert_same_images(load_data(source, str(cache))[0], load_data(source)[0])
    source.num_train = 3
    assert_same_images(load_data(source, str(cache))[0], load_data(source)[0])
    assert len(list(cache.glob("*.images"))) == 3  # two caps, and the held-out split once


def test_what_was_loaded_may_be_written_to(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), str(tmp_path / "cache")
    ours = load_data(source, cache)[0]
    for index in (np.arange(3), np.array([0, 0])):
        for image in ours.load(index):
            image.zero_()
    assert_same_images(ours, load_data(source)[0])


def test_sets_in_memory_make_no_cache_file(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    source.num_train = source.num_heldout = 1
    load_data(source, str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def replaced(root: Path) -> None:
    """Write other pixels to a file of the same name and length."""
    file = root / "train" / "a" / "000.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    Image.fromarray(np.full((9, 7, 3), 3, np.uint8)).save(file)
    file.write_bytes(file.read_bytes().ljust(len(content), b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**6))
    assert file.stat().st_size == before.st_size


def renamed(root: Path) -> None:
    (root / "train" / "a" / "000.png").rename(root / "train" / "a" / "900.png")


@pytest.mark.parametrize("change", [replaced, renamed])
def test_a_changed_source_is_decoded_anew(tmp_path: Path, change: Any) -> None:
    source, cache = make_source(tmp_path / "source"), str(tmp_path / "cache")
    load_data(source, cache)
    change(tmp_path / "source")
    assert_same_images(load_data(source, cache)[0], load_data(source)[0])


def shortened(content: bytes) -> bytes:
    return content[:-1]


def lengthened(content: bytes) -> bytes:
    return content + b"\0"


def with_sizes_swapped(content: bytes) -> bytes:
    return content[:56] + content[60:64] + content[56:60] + content[64:]


def of_another_version(content: bytes) -> bytes:
    return content.replace(b"stabkit images 1", b"stabkit images 2")


def counting_too_many(content: bytes) -> bytes:
    return content[:16] + b"\xff" * 8 + content[24:]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage",
    [shortened, lengthened, with_sizes_swapped, of_another_version, counting_too_many, empty],
)
def test_a_damaged_file_is_named_and_made_anew(
    tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    load_data(source, str(cache))
    intact = {file: file.read_bytes() for file in cache.glob("*.images")}
    for file, content in intact.items():
        file.write_bytes(damage(content))
    capsys.readouterr()
    load_data(source, str(cache))
    said = capsys.readouterr().err
    assert all(f"{file}: damaged, " in said for file in intact)
    assert {file: file.read_bytes() for file in cache.glob("*.images")} == intact


def load_in_child(source: Any, cache: Path, before: Callable[..., None], *args: Any) -> None:
    before(*args)
    load_data(source, str(cache))


def exit_codes_of(count: int, source: Any, cache: Path, *before: Any) -> list[int | None]:
    arguments = (source, cache, *before)
    children = [CONTEXT.Process(target=load_in_child, args=arguments) for _ in range(count)]
    for child in children:
        child.start()
    return exit_codes(children)


def dies_half_way() -> None:
    write = image_cache._write_pixels

    def written_in_part(images: ImageSet, sizes: Any, out: Any) -> None:
        write(subset(images, np.arange(4)), sizes[:4], out)
        out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    image_cache._write_pixels = written_in_part


@pytest.mark.processes
def test_the_remains_of_a_killed_builder_are_not_used(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    assert exit_codes_of(1, source, cache, dies_half_way) == [-signal.SIGKILL]
    (left,) = cache.glob(".*.tmp")
    assert left.stat().st_size > 0
    assert_same_images(load_data(source, str(cache))[0], load_data(source)[0])
    assert not list(cache.glob(".*.tmp"))


def builds_once_another_waits(meeting: Path, builds: Path) -> None:
    write, say = image_cache._write_pixels, image_cache._say

    def written_late(*args: Any) -> None:
        meeting.read_bytes()
        with builds.open("a") as file:
            file.write("built\n")
        write(*args)

    def said(line: str) -> None:
        say(line)
        if "waiting" in line:
            meeting.write_bytes(b"")

    image_cache._write_pixels, image_cache._say = written_late, said


@pytest.mark.processes
def test_one_of_two_builders_waits_for_the_other(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    os.mkfifo(tmp_path / "meeting")
    waits = (builds_once_another_waits, tmp_path / "meeting", tmp_path / "builds")
    assert exit_codes_of(2, source, cache, *waits) == [0, 0]
    assert (tmp_path / "builds").read_text() == "built\n" * 2  # once for each split
    assert_same_images(load_data(source, str(cache))[0], load_data(source)[0])


def finds_the_disk_full(said: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    image_cache._CHUNK = 2

    def saved(images: ImageSet, folder: str) -> ImageSet:
        try:
            return image_cache.disk_cached(images, folder)
        except DataError as error:
            said.write_text(str(error))
            raise SystemExit(3) from None

    data.disk_cached = saved


@pytest.mark.processes
def test_a_disk_that_fills_up_is_named_with_what_is_needed(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    full = (finds_the_disk_full, tmp_path / "said")
    assert exit_codes_of(1, source, cache, *full) == [3]
    said = (tmp_path / "said").read_text()
    assert said.startswith("runtime.cache: 10 decoded images need 3,436 bytes in ")
    assert "File too large" in said
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
    assert_same_images(load_data(source, str(cache))[0], load_data(source)[0])


def test_too_small_a_disk_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3435))
    monkeypatch.setattr(image_cache, "_write_pixels", None)
    with pytest.raises(DataError, match=r"need 3,436 bytes in .* which has 3,435 free; name a "):
        load_data(source, str(cache))


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"runtime.cache '.*cache': cannot be used .*a folder"):
        load_data(source, str(tmp_path / "cache"))


def test_an_image_that_cannot_be_decoded_leaves_nothing_behind(tmp_path: Path) -> None:
    source, cache = make_source(tmp_path / "source"), tmp_path / "cache"
    torn = tmp_path / "source" / "train" / "b" / "001.jpg"
    torn.write_bytes(torn.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"001.jpg: not an image that Pillow can decode"):
        load_data(source, str(cache))
    assert not list(cache.glob(".*.tmp")) + list(cache.glob("*.images"))


@pytest.mark.lengthy
def test_a_run_is_the_same_with_and_without_the_cache(tmp_path: Path) -> None:
    make_source(tmp_path / "images", 24)
    words = ["data.name=imagefolder", f"data.path={tmp_path / 'images'}", "train.steps=6"]
    words += ["data.num_train=0", "data.num_heldout=0"]
    train(small_config(*words), RunDir(tmp_path / "decoded"))
    train(small_config(*words, f"runtime.cache={tmp_path / 'cache'}"), RunDir(tmp_path / "cached"))
    assert len([*(tmp_path / "cache").glob("*.images")]) == 2
    assert_same_run(tmp_path / "decoded", tmp_path / "cached")
