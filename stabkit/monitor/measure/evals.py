"""Evaluations of the model, as a Monitor is told of them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def correct_bits(predicted: Any, labels: Any) -> NDArray[np.bool_]:
    """Return for each of n samples whether its predicted class is right, [n].

    Takes whatever holds classes: tensors, arrays, lists. Raises ValueError for shapes that differ.
    """
    predicted, labels = torch.as_tensor(predicted), torch.as_tensor(labels)
    if predicted.shape != labels.shape or not predicted.numel():
        raise ValueError(
            f"log_eval: predicted {list(predicted.shape)} and labels {list(labels.shape)} must be "
            "the classes of the same samples, one or more"
        )
    bits: NDArray[np.bool_] = (predicted == labels.to(predicted.device)).flatten().cpu().numpy()
    return bits
