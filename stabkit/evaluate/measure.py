"""The methods of `stabkit evaluate`; each takes the same inputs and returns predicted classes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from stabkit.evaluate.config import EvaluateConfig, Method
from stabkit.evaluate.features import encode_set
from stabkit.evaluate.finetune import finetune
from stabkit.evaluate.linear_probe import linear_probe, table
from stabkit.monitor.knn.vote import knn_predict_each
from stabkit.train.data.load import ImageSet


@dataclass(frozen=True)
class Result:
    """Predicted classes of every held-out image.

    `k` and `temperature` are those of a kNN, and 0 for other methods. `facts` go to the log.
    """

    predicted: Tensor
    k: int = 0
    temperature: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """The inputs of every method."""

    backbone: nn.Module
    train: ImageSet
    heldout: ImageSet
    config: EvaluateConfig
    device: torch.device
    say: Callable[[str], None]

    @cached_property
    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features and labels of the training split, then of the held-out split.

        They are computed once, for all methods that leave the backbone as it is.
        """
        size = self.config.data.image_size
        return (
            *encode_set(self.backbone, self.train, size, self.device),
            *encode_set(self.backbone, self.heldout, size, self.device),
        )


def _knn(inputs: Inputs) -> list[Result]:
    bank, labels, queries, _ = inputs.features
    knn, classes = inputs.config.knn, len(inputs.train.classes)
    found = knn_predict_each(queries, bank, labels, classes, knn.k, knn.temperature)
    return [Result(found[k], k, knn.temperature, {"k": k, "bank": len(bank)}) for k in found]


def _linear(inputs: Inputs) -> list[Result]:
    linear, classes, say = inputs.config.linear, len(inputs.train.classes), inputs.say
    probe = linear_probe(*inputs.features, classes, linear, inputs.config.seed)
    say("linear probe on cached features: augmentation is off, features are standardized;")
    say(f"the rate is chosen on {linear.choose_on:.0%} of the training images, then all are used")
    for line in table(probe):
        say(line)
    if len(linear.lr) > 1 and probe.best in (0, len(linear.lr) - 1):
        say("the chosen rate is an end of linear.lr: a wider range may do better")
    facts = {"lr": probe.lrs[probe.best], "choosing": probe.choosing, "heldout": probe.heldout}
    return [Result(probe.predicted, facts=facts)]


def _finetune(inputs: Inputs) -> list[Result]:
    config, device = inputs.config, inputs.device
    size, epochs = config.data.image_size, config.finetune.epochs

    def report(epoch: int, loss: float) -> None:
        inputs.say(f"fine-tuning: epoch {epoch + 1} of {epochs}, loss {loss:.3f}")

    model = finetune(
        inputs.backbone, inputs.train, size, config.finetune, config.seed, device, report
    )
    logits, _ = encode_set(model, inputs.heldout, size, device)
    return [Result(logits.argmax(dim=1))]


# In this order: fine-tuning comes last, since it moves the weights.
MEASURE: dict[Method, Callable[[Inputs], list[Result]]] = {
    "knn": _knn,
    "linear": _linear,
    "finetune": _finetune,
}
