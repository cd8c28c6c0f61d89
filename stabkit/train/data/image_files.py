"""Read image folders and torchvision's data sets as (train, heldout)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import features

from stabkit.printing import counted, first_of
from stabkit.rundir import left_out
from stabkit.train.data.decoding_process import ByteRange
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_set import ImageSet, encoded_set, file_stamp, from_array

HELDOUT_NAMES = ("validation", "val", "test")
"""The first that exists is the held-out split; ImageNet's test split is public without labels."""

SUFFIXES = tuple(
    sorted(
        {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
        | {".tif", ".tiff", ".webp"}
        | ({".avif"} if features.check("avif") else set())
    )
)


def existing_folder(path: str) -> Path:
    """Return `path` as a folder; raise DataError if it is not one."""
    root = Path(path).expanduser()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.path {str(root)!r} {found}; it must be the folder with the images")
    return root


def folder_sets(path: str) -> tuple[ImageSet, ImageSet]:
    """Read `path`/train/CLASS/… and `path`/val/CLASS/… (or validation, test).

    Images may lie at any depth below CLASS. Classes are the sorted folder names of the training
    split. Raises DataError for a missing split, a split or class without images, and a held-out
    class that training does not have.
    """
    train, heldout = split_folders(existing_folder(path))
    classes = tuple(_class_names(train))
    unknown = sorted(set(_class_names(heldout)) - set(classes))
    if unknown:
        raise DataError(
            f"{heldout / unknown[0]}: class {unknown[0]!r} is not in {train}, "
            f"which has {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        )
    return _folder_set(train, classes), _folder_set(heldout, classes)


def split_folders(root: Path) -> tuple[Path, Path]:
    """Return the folders of the two splits; raise DataError unless they are there and differ."""
    train, heldout = root / "train", _heldout_folder(root)
    if not train.is_dir():
        raise DataError(f"{root}: has no folder 'train'; it holds {_content(root)}")
    if train.samefile(heldout):
        raise DataError(f"{heldout}: is the same folder as {train}; held-out images must differ")
    return train, heldout


def _heldout_folder(root: Path) -> Path:
    for name in HELDOUT_NAMES:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{root}: has no held-out folder, one of {', '.join(HELDOUT_NAMES)}; "
        f"it holds {_content(root)}"
    )


def _class_names(split: Path) -> list[str]:
    names = sorted(p.name for p in split.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(
            f"{split}: has no class folders, expected {split.name}/CLASS/IMAGE; "
            f"it holds {_content(split)}"
        )
    return names


def _folder_set(split: Path, classes: tuple[str, ...]) -> ImageSet:
    files: list[Path] = []
    skipped: list[Path] = []
    labels: list[int] = []
    for name in _class_names(split):
        images, others = _image_files(split / name)
        skipped += others
        files += images
        labels += [classes.index(name)] * len(images)
    if skipped:
        first = f"the first is {skipped[0].relative_to(split)}"
        left_out(split, f"{first}; read are {', '.join(SUFFIXES)}", counted(len(skipped), "file"))
    return encoded_set(
        np.array(labels, np.int64),
        classes,
        lambda i: ByteRange(str(files[i])),
        lambda i: str(files[i]),
        lambda: file_stamp(split, files),
    )


def _image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder, following links, and the files that are not images."""
    # Skip hidden files: macOS leaves ._NAME.jpg beside NAME.jpg.
    found = sorted(p for p in _files_below(folder) if not p.name.startswith("."))
    images = [p for p in found if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not images:
        raise DataError(
            f"{folder}: has no images ({', '.join(SUFFIXES)}); it holds {_content(folder)}"
        )
    return images, sorted(set(found) - set(images))


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that it cannot read

    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(where)
        # os.walk would follow a link to a folder above it forever.
        for inner in folders:
            if (here / inner).is_symlink() and here.resolve().is_relative_to(
                (here / inner).resolve()
            ):
                raise DataError(f"{here / inner}: is a link to a folder that it lies in; remove it")
        yield from (here / name for name in names)


def _content(folder: Path, limit: int = 8) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return first_of(map(repr, names), limit) or "nothing"


def torchvision_sets(
    name: Literal["cifar10", "cifar100", "stl10"], path: str, download: bool
) -> tuple[ImageSet, ImageSet]:
    """Read torchvision's copy of a set under `path`; fetch it only if `download`.

    stl10 gives its labeled `train` (5,000) and `test` (8,000) images. Its `unlabeled` images are
    left out, since the kNN bank needs labels. Raises DataError if the set is absent and may not be
    fetched.
    """
    from torchvision import datasets

    root = str(Path(path).expanduser())
    builders = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}
    splits = []
    for train in (True, False):
        which: dict[str, Any] = {"train": train}
        if name == "stl10":
            which = {"split": "train" if train else "test"}
        try:
            splits.append(_converted(builders[name](root, download=download, **which)))
        except (RuntimeError, OSError) as error:
            remedy = (
                "check the network and that the folder can be written"
                if download
                else "set data.download=true to fetch it, or point data.path to where it is"
            )
            raise DataError(f"{name} was not found in {root!r} ({error}); {remedy}") from error
    return splits[0], splits[1]


def _converted(dataset: Any) -> ImageSet:
    images: NDArray[np.uint8] = np.asarray(dataset.data)
    # CIFAR stores [N, H, W, 3] and targets, STL-10 [N, 3, H, W] and labels.
    if images.shape[1] != 3:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    targets = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return from_array(images, np.asarray(targets, np.int64), tuple(dataset.classes))
