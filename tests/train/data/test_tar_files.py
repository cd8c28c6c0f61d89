"""Read tar shards in WebDataset's layout, and refuse damaged and hostile ones by name."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stabkit.cli import main
from stabkit.rundir import LeftOutWarning
from stabkit.train.data.errors import DataError
from stabkit.train.data.load import load_data
from tests.conftest import SMALL
from tests.train.data.test_image_cache import assert_same_images
from tests.train.data.test_image_files import assert_holds, load, pixels, png

Members = list[tuple[str, bytes]]
GOOD: Members = [("0.png", png(pixels(0))), ("0.cls", b"3")]


def write_tar(file: Path, members: Members, links: list[tarfile.TarInfo] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for info in links or []:
            tar.addfile(info)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def samples(values: list[int], labels: list[int]) -> Members:
    """Return PNGs and labels with keys of their own; every second label comes first."""
    members: Members = []
    for value, label in zip(values, labels, strict=True):
        pair = [(f"some/{value}.PNG", png(pixels(value))), (f"some/{value}.cls", b"%d\n" % label)]
        members += pair if value % 2 else pair[::-1]
    return members


def write_set(root: Path) -> Path:
    write_tar(root / "train" / "shard-000001.tar", samples([7, 4], [20, 3]))
    write_tar(root / "train" / "shard-000000.tar", samples([0, 1, 2], [3, 20, 100]))
    write_tar(root / "val" / "shard-000000.tar", samples([9, 8], [100, 3]))
    return root


def test_round_trip_in_order_of_the_shards_and_their_members(tmp_path: Path) -> None:
    train, heldout = load("tar", write_set(tmp_path / "größe 1"))
    assert train.classes == heldout.classes == ("3", "20", "100")
    assert train.labels.tolist() == [0, 1, 2, 1, 0]
    assert heldout.labels.tolist() == [2, 0]
    assert_holds(train, [0, 1, 2, 7, 4])
    assert_holds(heldout, [9, 8])


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_and_long_names(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarfile.TarFile, "format", kind)
    name = "ö" * 20 + "/" + "x" * (60 if kind == tarfile.USTAR_FORMAT else 200)
    for split in ("train", "val"):
        members = [(f"{name}.png", png(pixels(5))), (f"{name}.cls", b"0")]
        write_tar(tmp_path / split / "a.tar", members)
    assert_holds(load("tar", tmp_path)[0], [5])


def test_the_cache_gives_the_same_images(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    write_tar(root / "train" / "z.tar", [("wide.png", png(pixels(1, 4, 9))), ("wide.cls", b"3")])
    config = load_config(root)
    plain, cached = load_data(config)[0], load_data(config, str(tmp_path / "cache"))[0]
    assert plain.encoded
    assert not cached.encoded
    assert_same_images(cached, plain)
    write_tar(root / "train" / "z.tar", [("wide.png", png(pixels(2, 4, 9))), ("wide.cls", b"3")])
    again = load_data(config, str(tmp_path / "cache"))[0]
    assert torch.equal(again.load(np.array([5]))[0], load_data(config)[0].load(np.array([5]))[0])


def load_config(root: Path) -> Any:
    return SimpleNamespace(name="tar", path=str(root), image_size=8, num_train=0, num_heldout=0)


def test_other_members_are_counted(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    folder = tarfile.TarInfo("some")
    folder.type = tarfile.DIRTYPE
    others: Members = [
        ("0.json", b"{}"),
        ("._0.png", b"x"),
        ("__meta__", b"x"),
        ("0.seg.png", b"x"),
    ]
    write_tar(root / "train" / "z.tar", [*others, *GOOD], [folder])
    with pytest.warns(LeftOutWarning, match=r"4 members left out, the first is z.tar: 0.json"):
        train, _ = load("tar", root)
    assert_holds(train, [0, 1, 2, 7, 4, 0])


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([*GOOD, ("a.png", b"x")], "a.png: has no label, a member a.cls"),
        ([*GOOD, ("a.cls", b"3")], "a.cls: has no image, such as a.jpg"),
        ([*GOOD, GOOD[0]], "0.png: is a second image beside 0.png"),
        ([*GOOD, ("0.jpg", b"x")], "0.jpg: is a second image beside 0.png"),
        ([*GOOD, GOOD[1]], "0.cls: is a second label of 0"),
        ([GOOD[0], ("0.cls", b"cat")], "0.cls: holds b'cat'; expected a label such as 42"),
        ([GOOD[0], ("0.cls", b"-1")], "0.cls: holds b'-1'"),
        ([GOOD[0], ("0.cls", b"")], "0.cls: holds b''"),
        ([GOOD[0], ("0.cls", b"3" + b" " * 999)], "0.cls: holds b'3 "),
        ([GOOD[0], ("0.cls", b"4")], "0.png: label 4 is not one of the 3 classes.* 3 to 100"),
        ([("/0.png", b"x")], "/0.png: lies outside the folder"),
        ([("a/../../0.png", b"x")], r"a/../../0.png: lies outside the folder"),
        ([("notes.txt", b"x")], "has no images"),
        ([("0.png", b"broken"), GOOD[1]], "0.png: not an image that Pillow can decode"),
    ],
)
def test_a_bad_member_is_named(tmp_path: Path, members: Members, said: str) -> None:
    shard = write_tar(write_set(tmp_path) / "val" / "bad.tar", members)
    with pytest.raises(DataError, match=said) as caught:
        load("tar", tmp_path)[1].load(np.arange(3))
    assert str(caught.value).startswith(str(shard))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "0.png: is a link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "0.png: is a link to '/etc/passwd'"),
        (tarfile.FIFOTYPE, "0.png: is not a file"),
        (tarfile.CHRTYPE, "0.png: is not a file"),
    ],
)
def test_a_link_or_device_is_refused(tmp_path: Path, kind: bytes, said: str) -> None:
    link = tarfile.TarInfo("0.png")
    link.type, link.linkname = kind, "/etc/passwd"
    write_tar(write_set(tmp_path) / "train" / "bad.tar", GOOD, [link])
    with pytest.raises(DataError, match=rf"bad\.tar: {said}"):
        load("tar", tmp_path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """Cut a shard at each block, and within blocks: no cut gives a smaller set in silence."""
    shard = write_set(tmp_path) / "train" / "shard-000000.tar"
    whole = shard.read_bytes()
    last = len(whole.rstrip(b"\0"))
    for length in sorted({*range(0, last, 512), *range(100, last, 512), last}):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"shard-000000\.tar: (cannot be read|is cut off)"):
            load("tar", tmp_path)


def test_damage_is_noticed(tmp_path: Path) -> None:
    shard = write_set(tmp_path) / "train" / "shard-000000.tar"
    whole = shard.read_bytes()
    second = 512 * (1 + 1)  # its header: a label of one block comes before
    negative = bytearray(whole)
    negative[second + 124 : second + 136] = b"\xff" * 10 + b"\xf0\x00"
    header = negative[second : second + 512]
    header[148:156] = b" " * 8
    negative[second + 148 : second + 156] = b"%06o\0 " % sum(header)
    damaged = whole[:second] + b"?" + whole[second + 1 :]
    for content, said in [
        (damaged, "is damaged or several tar files in one: after 1,024 bytes"),
        (whole + whole, "is damaged or several tar files in one"),
        (bytes(negative), "has -4096 bytes|cannot be read"),
        (b"no tar file" * 99, "cannot be read as a plain tar file"),
    ]:
        shard.write_bytes(content)
        with pytest.raises(DataError, match=rf"shard-000000\.tar: .*({said})"):
            load("tar", tmp_path)


def test_a_packed_tar_file_is_refused(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    with tarfile.open(root / "train" / "packed.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"packed\.tar: cannot be read as a plain tar file"):
        load("tar", root)


@pytest.mark.parametrize("what", ["folder", "none"])
def test_no_shards(tmp_path: Path, what: str) -> None:
    root = write_set(tmp_path)
    (root / "val" / "shard-000000.tar").unlink()
    if what == "folder":
        (root / "val" / "shard-000000.tar").mkdir()
    with pytest.raises(DataError, match=r"val: has no tar files|shard-000000\.tar: is not a file"):
        load("tar", root)


def test_a_shard_that_is_written_or_replaced_later_is_noticed(tmp_path: Path) -> None:
    root = write_set(tmp_path)
    shard = root / "train" / "z.tar"

    def write(file: Path, value: int) -> Path:
        return write_tar(file, [("w.png", png(pixels(value, 4, 9))), ("w.cls", b"3")])

    def cut() -> None:
        shard.write_bytes(shard.read_bytes()[:560])

    for act in (cut, lambda: write(tmp_path / "new.tar", 2).replace(shard)):
        write(shard, 1)
        train, _ = load("tar", root)
        train.load(np.arange(6))
        act()
        with pytest.raises(DataError, match=r"z\.tar: w\.png: .*put the old one back"):
            train.load(np.array([5]))
        train.load(np.arange(5))


@pytest.mark.lengthy
def test_a_run_trains_on_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_set(tmp_path / "set")
    words = ["data.name=tar", f"data.path={root}", "train.batch=2", "train.steps=5"]
    assert main(["train", "tiny", "--run-dir", str(tmp_path / "run"), *SMALL, *words]) == 0
    capsys.readouterr()
