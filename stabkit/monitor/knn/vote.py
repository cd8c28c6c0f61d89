"""Weighted k-nearest-neighbor classification (Wu et al. 2018).

Shapes: Q queries, M entries of the bank, D features, k neighbors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**26  # held at once, 256 MiB: with an ImageNet bank those of 52 queries
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
    """Return the predicted classes [Q]: votes exp(cos/temperature) of the k nearest bank entries.

    `k` is capped at the size of the bank. With ids given, an entry never votes on its own image
    (the free bank holds other views of it). Source: Wu et al. 2018, section 3.4.
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
    """Return what `knn_predict` gives for each k (capped, in ascending order), from one search.

    The nearest max(k) are found once; every smaller k votes with the first of them.
    """
    ids = None if query_id_Q is None or bank_id_M is None else (query_id_Q, bank_id_M)
    used = sorted({min(k, len(bank_MD)) for k in ks})
    cosine, index = nearest(query_QD, bank_MD, used[-1], ids)
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


@torch.no_grad()
def nearest(
    query_QD: Tensor, bank_MD: Tensor, k: int, ids: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosines and places [Q, k] of the k nearest bank entries, nearest first.

    `ids`: of the queries [Q] and of the bank [M]. The cosine of an entry with the query's own id is
    -inf, so it comes last and its vote weighs exp(-inf) = 0. `torch.topk` decides among equals.
    """
    query = F.normalize(query_QD.float(), dim=1)
    bank = F.normalize(bank_MD.float(), dim=1)
    rows = max(1, SIMILARITIES // len(bank))
    cosines, places = [], []
    for start in range(0, len(query), rows):
        similarity = query[start : start + rows] @ bank.T
        if ids is not None:
            similarity.masked_fill_(ids[0][start : start + rows, None] == ids[1], -torch.inf)
        cosine, place = similarity.topk(k, dim=1)
        cosines.append(cosine)
        places.append(place)
        del similarity  # else the next chunk is made while this one is still held
    return torch.cat(cosines), torch.cat(places)
