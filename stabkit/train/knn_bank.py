"""The kNN bank that costs the training nothing: the features of its own latest batches.

Shapes: B images, D features.
"""

import torch
from torch import Tensor

from stabkit.monitor.knn.vote import knn_predict


class KnnBank:
    """Hold the latest training features, first in first out (MoCo v3, appendix A).

    The features were computed for the training step, so the bank costs no forward pass.
    """

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        self.features = torch.zeros(size, dim, device=device)
        self.labels = torch.zeros(size, dtype=torch.int64, device=device)
        self.ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.added = 0  # in all; from it follow how many are held and where the oldest is

    def __len__(self) -> int:
        return min(self.added, len(self.features))

    def add(self, feature_BD: Tensor, label_B: Tensor, id_B: Tensor) -> None:
        """Replace the oldest entries; a batch larger than the bank leaves its last entries."""
        size = len(self.features)
        skip = max(0, len(label_B) - size)
        place = (torch.arange(skip, len(label_B), device=self.ids.device) + self.added) % size
        self.features[place] = feature_BD[skip:].float()
        self.labels[place] = label_B[skip:]
        self.ids[place] = id_B[skip:]
        self.added += len(label_B)

    def predict(self, query_BD: Tensor, id_B: Tensor, num_classes: int, k: int, t: float) -> Tensor:
        """Return the classes [B] voted by the entries held, never by the query's own image."""
        n = len(self)
        return knn_predict(
            query_BD, self.features[:n], self.labels[:n], num_classes, k, t, id_B, self.ids[:n]
        )

    def state_dict(self) -> dict[str, Tensor | int]:
        return {
            "features": self.features,
            "labels": self.labels,
            "ids": self.ids,
            "added": self.added,
        }

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        for name in ("features", "labels", "ids"):
            getattr(self, name).copy_(state[name])
        self.added = int(state["added"])
