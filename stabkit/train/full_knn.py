"""The full kNN protocol: the whole training set is the bank, the whole held-out set asks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**26  # held at once, 256 MiB: an ImageNet bank leaves room for 52 queries


def full_knn(
    query_QD: Tensor,
    bank_MD: Tensor,
    labels_M: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> dict[int, Tensor]:
    """[Q] predicted classes for each k, as `knn_predict` gives them, from one search.

    Selection costs more than the product of features, so the nearest max(k) are found once and
    every smaller k is a prefix of them. A k above the bank's size is capped at it.
    """
    query, bank = F.normalize(query_QD.float(), dim=1), F.normalize(bank_MD.float(), dim=1)
    used = sorted({min(k, len(bank)) for k in ks})
    chunk = max(1, SIMILARITIES // len(bank))
    parts: dict[int, list[Tensor]] = {k: [] for k in used}
    for rows in torch.split(query, chunk):
        nearest, index = (rows @ bank.T).topk(used[-1], dim=1)
        # relative to the nearest, so that no temperature overflows
        weight = ((nearest - nearest[:, :1]) / temperature).exp()
        classes = labels_M[index]
        for k in used:
            votes = torch.zeros(len(rows), num_classes, device=query.device)
            votes.scatter_add_(1, classes[:, :k], weight[:, :k])
            parts[k].append(votes.argmax(dim=1))
    return {k: torch.cat(part) for k, part in parts.items()}
