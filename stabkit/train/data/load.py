"""Load the image data of a run, and choose the images of each step."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stabkit.config import DataConfig
from stabkit.printing import counted
from stabkit.train.data.errors import DataError
from stabkit.train.data.image_cache import disk_cached
from stabkit.train.data.image_set import ImageSet, in_memory, lazily_cached, subset
from stabkit.train.randomness import permutation

__all__ = ["ImageSet", "batch_index", "load_data"]

# A cap keeps the same images for every seed of a run, or runs of different seeds would not compare.
_CAP_SEED = 0


def load_data(config: DataConfig, cache: str | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the training split and the held-out split of `config`; they share no image.

    They depend on no seed: runs that differ only in the seed train on the same images. Held-out
    images come from the published held-out split (stl10: its labeled `train` and `test`).
    `num_train` and `num_heldout` are the size of a `synthetic` set and a cap on any other set.

    A set whose images have one size and fit 1 GiB is decoded here and kept in memory; a `synthetic`
    set of that size is drawn as its images are asked for. Any other set is decoded on every load
    or, given the folder `cache`, once for all runs that name this folder.

    Raises DataError when files are missing or unreadable, and when the cache cannot be written. The
    message names the file and what it should be. A set that is decoded on every load is not decoded
    here, so its damaged images are found later, by the load that asks for them.
    """
    try:
        return _load(config, cache)
    except OSError as error:
        raise DataError(
            f"data.path {config.path!r}: cannot be read ({error}); "
            "make its files readable, or name another folder"
        ) from error


def _load(config: DataConfig, cache: str | None) -> tuple[ImageSet, ImageSet]:
    train, heldout = _splits(config)
    if config.name == "synthetic":
        shape = (3, config.image_size, config.image_size)
        return lazily_cached(train, shape), lazily_cached(heldout, shape)
    return (
        disk_cached(in_memory(_capped(train, config.num_train)), cache),
        disk_cached(in_memory(_capped(heldout, config.num_heldout)), cache),
    )


def _splits(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    # Import on demand: each source has a dependency that the other sources do without.
    if config.name == "synthetic":
        from stabkit.train.data.synthetic import synthetic_sets

        return synthetic_sets(config.num_train, config.num_heldout, config.image_size)
    if not config.path:
        raise DataError(
            f"data.path is missing: {config.name} needs the folder that holds the images"
        )
    if config.name == "parquet":
        from stabkit.train.data.parquet_files import parquet_sets

        return parquet_sets(config.path)
    if config.name == "tar":
        from stabkit.train.data.tar_files import tar_sets

        return tar_sets(config.path)
    from stabkit.train.data.image_files import folder_sets, torchvision_sets

    if config.name == "imagefolder":
        return folder_sets(config.path)
    return torchvision_sets(config.name, config.path, config.download)


def _capped(images: ImageSet, cap: int | None) -> ImageSet:
    if not cap or cap >= len(images):
        return images
    return subset(images, permutation(_CAP_SEED, 0, len(images))[:cap])


def batch_index(seed: int, step: int, n: int, batch: int) -> tuple[int, NDArray[np.int64]]:
    """Return the epoch of a global `step` (from 0) and the samples of its batch, int64 [batch].

    This is a pure function, so a resumed run needs no loader state. Every epoch has `n // batch`
    steps and leaves out the last `n % batch` samples of its own permutation.
    """
    if batch < 1 or n < batch:
        raise ValueError(
            f"batch {batch} does not fit a set of {counted(n, 'image')}: it must be 1 to {n}"
        )
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    epoch, position = divmod(step, n // batch)
    # Return a copy, since every later call of this epoch shares the cached order.
    return epoch, _order(seed, epoch, n)[position * batch : (position + 1) * batch].copy()


# Two epochs: the batch that is read ahead may belong to the next one.
@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, n)
