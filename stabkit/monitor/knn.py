"""Weighted k-nearest-neighbour classification (Wu et al. 2018) and the free training-time bank."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**26  # held at once, 256 MiB: an ImageNet bank leaves room for 52 queries


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
    query, bank = F.normalize(query_QD.float(), dim=1), F.normalize(bank_MD.float(), dim=1)
    used = sorted({min(k, len(bank)) for k in ks})
    chunk = max(1, SIMILARITIES // len(bank))
    parts: dict[int, list[Tensor]] = {k: [] for k in used}
    for start in range(0, len(query), chunk):
        similarity = query[start : start + chunk] @ bank.T
        if query_id_Q is not None and bank_id_M is not None:
            same = query_id_Q[start : start + chunk, None] == bank_id_M
            similarity = similarity.masked_fill(same, float("-inf"))
        nearest, index = similarity.topk(used[-1], dim=1)
        # relative to the nearest, so that no temperature overflows
        weight = ((nearest - nearest[:, :1].clamp(min=-1)) / temperature).exp()
        classes = labels_M[index]
        for k in used:
            votes = torch.zeros(len(nearest), num_classes, device=query.device)
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
