"""From a step's number to its batch: read by the host one step ahead, made into views in turn."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.config import RunConfig
from stabkit.train.data.image_ops import image_sizes
from stabkit.train.data.image_set import Images, moved
from stabkit.train.data.load import ImageSet, batch_index
from stabkit.train.data.views import ViewParams, apply_view, sample_view_params
from stabkit.train.parallel.reduce import own_rows


@dataclass(frozen=True)
class Read:
    """What the host does for a batch: decoded images of its `own` rows and how to augment them."""

    step: int
    images: Images
    params: tuple[ViewParams, ViewParams]
    labels: NDArray[np.int64]  # [batch]
    ids: NDArray[np.int64]  # [batch]: places in the data set
    own: slice


@dataclass(frozen=True)
class Batch:
    """What one step is made of; a function of (seed, step) and the data alone.

    Views are of the `own` rows, which this process computes; labels and ids of the whole batch.
    """

    view1: Tensor
    view2: Tensor
    labels: Tensor
    ids: Tensor
    own: slice


def read_batch(config: RunConfig, images: ImageSet, step: int) -> Read:
    epoch, index = batch_index(config.seed, step, len(images), config.train.batch)
    own = own_rows(len(index))
    loaded = images.load(index[own])
    sizes = image_sizes(loaded)
    scale, sigma = config.views.min_scale, config.views.blur_sigma
    first = sample_view_params(config.seed, epoch, index[own], 1, sizes, scale, sigma)
    second = sample_view_params(config.seed, epoch, index[own], 2, sizes, scale, sigma)
    return Read(step, loaded, (first, second), images.labels[index], index, own)


def make_batch(config: RunConfig, read: Read, device: torch.device) -> Batch:
    images, size = moved(read.images, device), config.data.image_size
    view1, view2 = (apply_view(images, params, size) for params in read.params)
    labels, ids = (torch.from_numpy(array).to(device) for array in (read.labels, read.ids))
    return Batch(view1, view2, labels, ids, read.own)


class ReadAhead:
    """Reads the next step's batch in a thread while this step's is trained on.

    Nothing to save: a batch follows from its step. An error in reading comes up at its own step.
    """

    def __init__(self, config: RunConfig, images: ImageSet) -> None:
        self._config, self._images = config, images
        self._thread = ThreadPoolExecutor(1, "stabkit-read")
        self._ahead: dict[int, Future[Read]] = {}

    def take(self, step: int) -> Read:
        now = self._ahead.pop(step, None) or self._start(step)
        if step + 1 < self._config.train.steps:
            self._ahead[step + 1] = self._start(step + 1)
        return now.result()

    def _start(self, step: int) -> Future[Read]:
        return self._thread.submit(read_batch, self._config, self._images, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)
