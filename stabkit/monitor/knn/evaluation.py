"""The kNN evaluation of a model in the middle of its training.

Shapes: D features, n samples.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stabkit.monitor.guard import Guard
from stabkit.monitor.knn.knn import KNN, takes_model
from stabkit.monitor.knn.samples import Samples, check_together, read_samples
from stabkit.monitor.knn.vote import knn_predict
from stabkit.monitor.probe.attention_logits import widened
from stabkit.monitor.probe.probe import looking
from stabkit.monitor.probe.undisturbed import devices_of, same_draws, undisturbed, unwrap_model
from stabkit.store.schema import METRIC


class Evaluated(NamedTuple):
    """One evaluation: for each query whether it was right, [n], and how long it took."""

    correct: NDArray[np.bool_]
    seconds: float


class KnnEvaluation:
    """Evaluates `model` on the samples of `knn`, which it reads when it is made.

    The training is left as it was, as by a probe (`probe.looking`). `others`: modules outside of
    the model that `embed` may run, such as a teacher. Raises TypeError or ValueError for samples
    that cannot be evaluated.
    """

    def __init__(self, knn: KNN, model: nn.Module, others: Sequence[nn.Module]) -> None:
        self._knn, self._model = knn, model
        self._takes_model = knn.embed is None or takes_model(knn.embed)
        self._embed = unwrap_model(knn.embed) if isinstance(knn.embed, nn.Module) else knn.embed
        own = [self._embed] if isinstance(self._embed, nn.Module) else []
        self._others = [*map(unwrap_model, others), *own]
        if isinstance(model, DistributedDataParallel) and not self._takes_model and not own:
            raise ValueError(  # the wrapper would wait for processes that do not evaluate
                "KNN: with DistributedDataParallel embed must take the model that it is handed: "
                "`lambda model, images: ...`"
            )
        with same_draws(devices_of(model)):
            bank, queries = (read_samples(n, getattr(knn, n)) for n in ("bank", "queries"))
        check_together(bank, queries)
        classes = torch.unique(torch.cat([bank.labels, queries.labels]))
        self.bank, self.queries = (
            Samples(one.inputs, torch.searchsorted(classes, one.labels)) for one in (bank, queries)
        )
        known = torch.isin(self.queries.labels, self.bank.labels)
        self._strangers = int((~known).sum())
        self.num_classes, self.k = len(classes), min(knn.k, len(bank.labels))
        self.temperature = knn.temperature
        self._last: int | None = None  # step of the last evaluation that was tried
        self._is_off = False

    def is_due(self, step: int, at_end: bool = False) -> bool:
        """Return whether to evaluate the weights after `step` updates."""
        if self._is_off or step == self._last:
            return False
        return at_end or step % self._knn.every == 0

    def evaluate(self, step: int, guard: Guard) -> Evaluated | None:
        """Evaluate the model as it is; return None when that failed, which `guard` says once.

        After an error there are no further evaluations; after features that are not finite there
        are.
        """
        if self._last is None and self._strangers:
            guard.noticed(
                f"{METRIC} classes",
                f"KNN: {self._strangers} of {len(self.queries.labels)} queries are of classes that "
                "the bank does not hold, and can never be right",
            )
        self._last = step
        try:
            return self._evaluated()
        except FloatingPointError as error:
            guard.noticed(f"{METRIC} features", f"{error}: this evaluation is left out")
        except Exception as error:
            self._is_off = True
            guard.signal_failed(METRIC, error)
        return None

    def _evaluated(self) -> Evaluated:
        with ExitStack() as stack:
            model = stack.enter_context(looking(self._model))
            for module in self._others:
                stack.enter_context(undisturbed(module))
            stack.enter_context(torch.no_grad())
            began = time.perf_counter()  # `looking` has waited for the device
            device = devices_of(model)[0]
            bank = self._features(model, "bank", self.bank.inputs, device)
            queries = self._features(model, "queries", self.queries.inputs, device)
            predicted = knn_predict(
                queries, bank, self.bank.labels.to(device), self.num_classes, self.k,
                self.temperature,
            )  # fmt: skip
            correct = (predicted.cpu() == self.queries.labels).numpy()
            return Evaluated(correct, time.perf_counter() - began)

    def _features(
        self, model: nn.Module, name: str, inputs: Tensor, device: torch.device
    ) -> Tensor:
        """Return the features [n, D] of all images, at least float32."""
        parts = []
        for images in torch.split(inputs, self._knn.batch_size):
            features = self._of(model, images.to(device, non_blocking=True))
            is_tensor = isinstance(features, Tensor)
            if not is_tensor or features.dim() != 2 or len(features) != len(images):
                got = f"shape {list(features.shape)}" if is_tensor else type(features).__name__
                raise ValueError(
                    f"KNN: the features of {len(images)} images are {got}; needed is "
                    f"[{len(images)}, D]. Give KNN(embed=...) a function of model and images that "
                    "returns it, as `lambda model, images: model(images).mean(dim=1)` for "
                    "[n, tokens, D]"
                )
            parts.append(widened(features))
        whole = torch.cat(parts)
        wrong = int((~whole.isfinite().all(dim=1)).sum())
        if wrong:
            raise FloatingPointError(
                f"KNN: features of {wrong} of {len(whole)} images of the {name} are not finite"
            )
        return whole

    def _of(self, model: nn.Module, images: Tensor) -> Tensor:
        if self._embed is None:
            features: Tensor = model(images)
        elif self._takes_model:
            features = self._embed(model, images)
        else:
            features = self._embed(images)
        return features
