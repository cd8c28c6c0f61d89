"""The one entry to image data, and which images make up a step."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stabkit.train.data.image_cache import cached
from stabkit.train.data.image_set import ImageSet, held, kept, taken
from stabkit.train.randomness import permutation

if TYPE_CHECKING:
    from stabkit.config import DataConfig

__all__ = ["ImageSet", "batch_index", "load_data"]

# Which images a cap keeps must not depend on the run's seed, or seeds would not compare.
_CAP_SEED = 0


def load_data(cfg: DataConfig, seed: int, cache: str | None = None) -> tuple[ImageSet, ImageSet]:
    """The training and the held-out split of ``cfg``; no image belongs to both.

    ``seed``, that of the run, changes nothing: runs that differ in it compare on the same images.
    Held-out images come from the published held-out split (stl10: its labelled `train` and `test`).
    ``num_train`` and ``num_heldout`` are the size of `synthetic` and a cap for the others. Sets of
    one image size that fit 1 GiB are decoded here (`synthetic`: drawn when asked for) and held,
    others are decoded on every load or, given the folder ``cache``, once for all runs that name it.

    Raises ValueError where files are missing or unreadable, naming the file and what it should be,
    and where the cache cannot be written.
    """
    train, heldout = _splits(cfg)
    if cfg.name == "synthetic":
        shape = (3, cfg.image_size, cfg.image_size)
        return kept(train, shape), kept(heldout, shape)
    return (
        cached(held(_capped(train, cfg.num_train)), cache),
        cached(held(_capped(heldout, cfg.num_heldout)), cache),
    )


def _splits(cfg: DataConfig) -> tuple[ImageSet, ImageSet]:
    # Imported on demand: each source has a dependency that the others do without.
    if cfg.name == "synthetic":
        from stabkit.train.data.synthetic import synthetic_sets

        return synthetic_sets(cfg.num_train, cfg.num_heldout, cfg.image_size)
    if not cfg.path:
        raise ValueError(f"data.path is missing: {cfg.name} needs the folder that holds the images")
    if cfg.name == "parquet":
        from stabkit.train.data.parquet_files import parquet_sets

        return parquet_sets(cfg.path)
    from stabkit.train.data.image_files import folder_sets, torchvision_sets

    if cfg.name == "imagefolder":
        return folder_sets(cfg.path)
    return torchvision_sets(cfg.name, cfg.path, cfg.download)


def _capped(images: ImageSet, cap: int | None) -> ImageSet:
    if not cap or cap >= len(images):
        return images
    return taken(images, permutation(_CAP_SEED, 0, len(images))[:cap])


def batch_index(seed: int, step: int, n: int, batch: int) -> tuple[int, NDArray[np.int64]]:
    """Epoch of a global ``step`` (from 0) and the samples of its batch, int64 [batch].

    A pure function, so a resumed run needs no loader state. Every epoch has ``n // batch`` steps
    and leaves out the ``n % batch`` last samples of its own permutation.
    """
    if batch < 1 or n < batch:
        raise ValueError(f"batch {batch} does not fit a set of {n} images: it must be 1 to {n}")
    if step < 0:
        raise ValueError(f"step must be 0 or more, got {step}")
    epoch, position = divmod(step, n // batch)
    # A copy, since the cached order is shared by every later call.
    return epoch, _order(seed, epoch, n)[position * batch : (position + 1) * batch].copy()


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, n)
