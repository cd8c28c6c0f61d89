"""Weighted k-nearest-neighbour classification (Wu et al. 2018) and the free training-time bank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stabkit.train.nearest import nearest

VOTES = 2**24  # held at once: weights, or sums of classes


def knn_predict(
    query_QD: Tensor,
    bank_MD: Tensor,
    labels_M: Tensor,
    num_classes: int,
    k: int,
    temperature: float,
    query_id_Q: Tensor | None = None,
    bank_id_M: Tensor | None = None,
) -> Tensor:
    """[Q] predicted classes: votes exp(cos/temperature) of the k nearest bank entries.

    `k` is capped at the bank. With ids given, an entry never votes on its own image (the free
    bank holds other views of it). Source: Wu et al. 2018, section 3.4.
    """
    found = knn_predict_each(
        query_QD, bank_MD, labels_M, num_classes, [k], temperature, query_id_Q, bank_id_M
    )
    return found.popitem()[1]


def knn_predict_each(
    query_QD: Tensor,
    bank_MD: Tensor,
    labels_M: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
    query_id_Q: Tensor | None = None,
    bank_id_M: Tensor | None = None,
) -> dict[int, Tensor]:
    """`knn_predict` for each k (as capped, in order) from one search.

    Selection costs more than the product of features, so the nearest max(k) are found once and
    every smaller k is a prefix of them.
    """
    ids = None if query_id_Q is None or bank_id_M is None else (query_id_Q, bank_id_M)
    used = sorted({min(k, len(bank_MD)) for k in ks})
    cosine, index = nearest(query_QD, bank_MD, used, ids)
    chunk = max(1, VOTES // max(num_classes, used[-1]))
    parts: dict[int, list[Tensor]] = {k: [] for k in used}
    for near, place in zip(torch.split(cosine, chunk), torch.split(index, chunk), strict=True):
        # relative to the nearest, so that no temperature overflows
        weight = ((near - near[:, :1].clamp(min=-1)) / temperature).exp()
        classes = labels_M[place]
        for k in used:
            votes = torch.zeros(len(near), num_classes, device=near.device)
            votes.scatter_add_(1, classes[:, :k], weight[:, :k])
            parts[k].append(votes.argmax(dim=1))
    return {k: torch.cat(part) for k, part in parts.items()}


class KnnBank:
    """First-in-first-out bank of training features already computed (MoCo v3, appendix A)."""

    def __init__(self, size: int, dim: int, device: torch.device) -> None:
        self.features = torch.zeros(size, dim, device=device)
        self.labels = torch.zeros(size, dtype=torch.int64, device=device)
        self.ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.added = 0  # ever; the fill and the place of the oldest entry follow from it

    def __len__(self) -> int:
        return min(self.added, len(self.features))

    def add(self, feature_BD: Tensor, label_B: Tensor, id_B: Tensor) -> None:
        """Newest entries replace the oldest; of a batch larger than the bank the last remain."""
        size = len(self.features)
        skip = max(0, len(label_B) - size)
        place = (torch.arange(skip, len(label_B), device=self.ids.device) + self.added) % size
        self.features[place] = feature_BD[skip:].float()
        self.labels[place] = label_B[skip:]
        self.ids[place] = id_B[skip:]
        self.added += len(label_B)

    def predict(self, query_BD: Tensor, id_B: Tensor, num_classes: int, k: int, t: float) -> Tensor:
        """[B] classes voted by the entries held; never by the query's own image."""
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
