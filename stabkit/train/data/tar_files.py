"""Read labeled images from tar files in the layout of WebDataset: KEY.jpg beside KEY.cls.

A file is indexed once and never unpacked: an image is read from its place in its file. Images are
drawn from all files alike, so they need not be shuffled when the files are written.
"""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from stabkit.printing import counted
from stabkit.rundir import left_out
from stabkit.train.data.decoding_process import ByteRange, file_state
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_files import SUFFIXES, existing_folder, split_folders
from stabkit.train.data.image_set import ImageSet, class_ranks, encoded_set, file_stamp

_LABEL = re.compile(rb"\s*([0-9]{1,9})\s*")
_LONGEST_LABEL = 64  # bytes of a .cls file


@dataclass(frozen=True, eq=False)
class _TarShard:
    """One file: the members that are images, and for each where it is and its label as stored."""

    file: Path
    state: tuple[int, int]
    names: list[str]
    places: NDArray[np.int64]  # [N, 2]: first byte, length
    labels: NDArray[np.int64]  # [N]


def tar_sets(path: str) -> tuple[ImageSet, ImageSet]:
    """Read `path`/train/*.tar and `path`/val/*.tar (or validation, test).

    The images are those of all shards in the order of their names. The classes are the labels that
    occur in training, as text. Raises DataError for a file that is not a whole, plain tar file, for
    a member that is a link, a device or outside the folder, for an image without label, a label
    without image, and a held-out label that training does not have.
    """
    train, heldout = (_shards(folder) for folder in split_folders(existing_folder(path)))
    values = np.unique(np.concatenate([shard.labels for shard in train]))
    return _joined(train, values), _joined(heldout, values)


def _joined(shards: list[_TarShard], values: NDArray[np.int64]) -> ImageSet:
    """Return one set of several shards; `values` are the stored labels of the classes, sorted."""
    names = [name for shard in shards for name in shard.names]
    places = np.concatenate([shard.places for shard in shards])
    counts = [len(shard.names) for shard in shards]
    files = np.repeat(np.arange(len(shards)), counts)

    def source(i: int) -> ByteRange:
        shard, (start, length) = shards[files[i]], places[i].tolist()
        return ByteRange(str(shard.file), start, length, shard.state)

    def where(i: int) -> str:
        return f"{shards[files[i]].file}: {names[i]}"

    labels = np.concatenate([shard.labels for shard in shards])
    return encoded_set(
        class_ranks(labels, values, where),
        tuple(str(value) for value in values),
        source,
        where,
        lambda: file_stamp(shards[0].file.parent, [shard.file for shard in shards]),
    )


def _shards(folder: Path) -> list[_TarShard]:
    files = sorted(folder.glob("*.tar"))
    if not files:
        raise DataError(f"{folder}: has no tar files (*.tar); unpack those that end in .tar.gz")
    shards, others = [], list[str]()
    for file in files:
        if not file.is_file():  # opening a pipe would wait forever
            raise DataError(f"{file}: is not a file")
        shard, skipped = _shard(file)
        shards.append(shard)
        others += [f"{file.name}: {name}" for name in skipped]
    if others:
        what = f"the first is {others[0]}; read are .cls and {', '.join(SUFFIXES)}"
        left_out(folder, what, counted(len(others), "member"))
    return shards


def _shard(file: Path) -> tuple[_TarShard, list[str]]:
    """Return the images of a file in its order, and the names of its other members."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    others: list[str] = []
    with file.open("rb") as content:
        state = file_state(content)
        for member in _members(file, content):
            key, suffix = _key(member.name)
            if suffix != ".cls" and suffix not in SUFFIXES:
                others.append(member.name)
                continue
            if key in (labels if suffix == ".cls" else images):
                what = f"label of {key}" if suffix == ".cls" else f"image beside {images[key].name}"
                raise DataError(f"{file}: {member.name}: is a second {what}; keep one")
            if suffix == ".cls":
                labels[key] = _label(f"{file}: {member.name}", content, member)
            else:
                images[key] = member
    for key, member in images.items():
        if key not in labels:
            raise DataError(f"{file}: {member.name}: has no label, a member {key}.cls")
    for key in labels:
        if key not in images:
            raise DataError(f"{file}: {key}.cls: has no image, such as {key}.jpg")
    if not images:
        raise DataError(f"{file}: has no images ({', '.join(SUFFIXES)})")
    names = [member.name for member in images.values()]
    places = np.array([(member.offset_data, member.size) for member in images.values()], np.int64)
    stored = np.array([labels[key] for key in images], np.int64)
    return _TarShard(file, state, names, places, stored), others


def _key(name: str) -> tuple[str, str]:
    """Return what images and labels have in common, and the suffix; as WebDataset, cut at a dot.

    The dot is the first of the last part of the name. A hidden file has neither: macOS leaves
    ._NAME.jpg beside NAME.jpg.
    """
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return (folder + slash + key, dot + suffix.lower()) if key else (name, "")


def _label(place: str, file: BinaryIO, member: tarfile.TarInfo) -> int:
    file.seek(member.offset_data)
    content = file.read(min(member.size, _LONGEST_LABEL + 1))
    found = _LABEL.fullmatch(content)
    if not found or len(content) > _LONGEST_LABEL:
        raise DataError(f"{place}: holds {content[:20]!r}; expected a label such as 42")
    return int(found[1])


def _members(shard: Path, file: BinaryIO) -> list[tarfile.TarInfo]:
    """Return the files of a tar file; refuse what is damaged, packed or not a plain file."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = _walked(shard, tar)
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{shard}: cannot be read as a plain tar file ({error})") from error
    _check_end(shard, file, end)
    return members


def _walked(shard: Path, tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        if problem := _problem(member):
            raise DataError(f"{shard}: {member.name}: {problem}; write the tar file without it")
        if not member.isdir():
            members.append(member)
    return members


def _problem(member: tarfile.TarInfo) -> str:
    if member.size < 0:  # would lead back to a header that was read before, forever
        return f"has {member.size} bytes"
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "lies outside the folder of the tar file"
    if member.issparse():
        return "is a sparse file, whose bytes are not in one piece"
    if not (member.isreg() or member.isdir()):
        return "is not a file"
    return ""


def _check_end(shard: Path, file: BinaryIO, end: int) -> None:
    """Raise DataError unless only zeros follow the last member: tarfile stops at a bad header."""
    file.seek(end)
    rest = file.read(1024)
    if len(rest) < 512:
        raise DataError(f"{shard}: is cut off: it has no end mark; copy it again")
    while rest:
        if rest.strip(b"\0"):
            raise DataError(
                f"{shard}: is damaged or several tar files in one: after {end:,} bytes, where its "
                "members seem to end, more follows"
            )
        rest = file.read(2**20)
