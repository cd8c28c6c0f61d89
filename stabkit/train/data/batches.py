"""Turn a step number into a batch: a thread reads one step ahead, the device makes the views."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stabkit.config import RunConfig
from stabkit.config.branch import batch_of
from stabkit.train.data.image_ops import image_sizes
from stabkit.train.data.image_set import Images, moved
from stabkit.train.data.load import ImageSet, batch_index
from stabkit.train.data.view_params import ViewParams, sample_both_views
from stabkit.train.data.views import apply_view
from stabkit.train.parallel.reduce import own_rows


@dataclass(frozen=True)
class Read:
    """The host's part of a batch: the decoded images of its `own` rows and how to augment them."""

    step: int
    images: Images
    params: tuple[ViewParams, ViewParams]
    labels: NDArray[np.int64]  # [batch]
    ids: NDArray[np.int64]  # [batch]: places in the data set
    own: slice


@dataclass(frozen=True)
class Batch:
    """The input of one step; a function of (seed, step) and the data alone.

    The views hold the `own` rows, which this process computes. Labels and ids hold the whole batch.
    """

    view1: Tensor
    view2: Tensor
    labels: Tensor
    ids: Tensor
    own: slice


def read_batch(config: RunConfig, images: ImageSet, step: int) -> Read:
    """Decode the images of a step and draw the parameters of their views, all on the host."""
    number = batch_of(config.branch, step)
    epoch, index = batch_index(config.seed, number, len(images), config.train.batch)
    own = own_rows(len(index))
    loaded = images.load(index[own])
    scale, sigma = config.views.min_scale, config.views.blur_sigma
    sizes = image_sizes(loaded)
    params = sample_both_views(config.seed, epoch, index[own], sizes, scale, sigma)
    return Read(step, loaded, params, images.labels[index], index, own)


def make_batch(config: RunConfig, read: Read, device: torch.device) -> Batch:
    """Move what was read to `device` and make both views there."""
    images, size = moved(read.images, device), config.data.image_size
    view1, view2 = (apply_view(images, params, size) for params in read.params)
    labels, ids = (torch.from_numpy(array).to(device) for array in (read.labels, read.ids))
    return Batch(view1, view2, labels, ids, read.own)


class ReadAhead:
    """Read the batch of the next step in a thread while this step trains.

    There is no state to save: a batch follows from its step. An error in reading is raised by the
    `take` of the step that it belongs to.
    """

    def __init__(self, config: RunConfig, images: ImageSet) -> None:
        self._config, self._images = config, images
        self._thread = ThreadPoolExecutor(1, "stabkit-read")
        self._ahead: dict[int, Future[Read]] = {}

    def take(self, step: int) -> Read:
        """Return what was read for `step`, and start to read the step after it."""
        now = self._ahead.pop(step, None) or self._start(step)
        if step + 1 < self._config.end:
            self._ahead[step + 1] = self._start(step + 1)
        return now.result()

    def _start(self, step: int) -> Future[Read]:
        return self._thread.submit(read_batch, self._config, self._images, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)
