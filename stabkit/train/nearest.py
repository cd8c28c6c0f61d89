"""The k nearest entries of a bank by cosine, without ever holding all cosines."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Ids = tuple[Tensor, Tensor] | None  # of queries [Q] and of the bank [M]

SIMILARITIES = 2**26  # held at once for topk, 256 MiB: an ImageNet bank leaves room for 52 queries
TILE = 2**22  # held at once by the selection on a CPU, 16 MiB: they stay in its last cache
BANK_TILE = 2048  # of a bank beyond WHOLE: tall tiles are where the product is fastest
WHOLE = 8192  # what is selected from whole rows need not be merged
NORMALISED = 2**16  # entries of a bank normalised at once for topk on a CPU
NUMPY_THREADS = 4  # numpy uses one thread: with more than this many, topk is as fast
_THIN = 16  # a product of fewer rows or columns may round otherwise than a larger one
_NOTHING = np.iinfo(np.int64).min  # below every key


@torch.no_grad()
def nearest(
    query_QD: Tensor, bank_MD: Tensor, ks: Sequence[int], ids: Ids = None
) -> tuple[Tensor, Tensor]:
    """Cosines and places [Q, k] of the nearest k = ks[-1] of the bank, nearest first.

    With ids given, the cosine of an entry of the query's own id is -inf. Which of equally near
    entries are taken, for each of the ascending `ks`, is what `torch.topk` does with whole rows: no
    result depends on the way to it.
    """
    query = F.normalize(query_QD.float(), dim=1)
    if query.device.type != "cpu" or torch.get_num_threads() > NUMPY_THREADS:
        return _topk(query, bank_MD, ks[-1], ids)
    found = _largest_keys(query, bank_MD, ks[-1], ids)
    if found is None:
        return _topk(query, bank_MD, ks[-1], ids)
    keys, torn = found
    cosine, index = torch.from_numpy(_cosines(keys)), torch.from_numpy(keys & 0xFFFFFFFF)
    for k in ks[:-1]:
        torn |= (cosine[:, k - 1] == cosine[:, k]).numpy()
    if torn.any():
        torn[:_THIN] = True
        rows = torch.from_numpy(np.flatnonzero(torn))
        own = None if ids is None else (ids[0][rows], ids[1])
        cosine[rows], index[rows] = _topk(query[rows], bank_MD, ks[-1], own)
    return cosine, index


def _topk(query: Tensor, bank_MD: Tensor, k: int, ids: Ids) -> tuple[Tensor, Tensor]:
    size = len(bank_MD)
    chunk = max(1, SIMILARITIES // size)
    # no second copy of a large bank where memory is the machine's
    part = NORMALISED if query.device.type == "cpu" else size
    whole = F.normalize(bank_MD.float(), dim=1) if size <= part else None
    cosines, indices = [], []
    for start in range(0, len(query), chunk):
        some = query[start : start + chunk]
        if whole is not None:
            similarity = some @ whole.T
        else:
            similarity = query.new_empty(len(some), size)
            for left in range(0, size, part):
                bank = F.normalize(bank_MD[left : left + part].float(), dim=1)
                torch.mm(some, bank.T, out=similarity[:, left : left + part])
        if ids is not None:
            similarity.masked_fill_(ids[0][start : start + chunk, None] == ids[1], -torch.inf)
        cosine, index = similarity.topk(k, dim=1)
        cosines.append(cosine)
        indices.append(index)
        del similarity  # before the next is made, or two are held
    return torch.cat(cosines), torch.cat(indices)


def _largest_keys(
    query: Tensor, bank_MD: Tensor, k: int, ids: Ids
) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Keys [Q, k] of the largest cosines, descending, and of which queries the k-th is as near as
    one left out; None when a feature is not a number, or most queries tie: topk is faster then.

    Tile after tile of the product; of each only what reaches a query's k-th largest so far is
    looked at.
    """
    if query.sum().isnan():
        return None
    held = np.full((len(query), k), _NOTHING)
    lost = np.full(len(query), _NOTHING)  # the largest key left out
    size = len(bank_MD)
    # equal shares, so that none is thin
    wide = size if size <= WHOLE else -(-size // -(-size // BANK_TILE))
    high = -(-len(query) // -(-len(query) * wide // TILE))
    # rows begin at whole cache lines: the product takes 1.5 times as long where they do not
    buffer = torch.empty(high, -(-wide // 16) * 16)
    for left in range(0, size, wide):
        bank = F.normalize(bank_MD[left : left + wide].float(), dim=1)
        if bank.sum().isnan():
            return None
        for top in range(0, len(query), high):
            part, own = query[top : top + high], slice(top, top + high)
            tile = buffer[: len(part), : len(bank)]
            torch.mm(part, bank.T, out=tile)
            if ids is not None:
                same = ids[0][own, None] == ids[1][left : left + wide]
                tile.masked_fill_(same, -torch.inf)
            if not _take(tile.numpy(), left, held[own], lost[own]):
                return None
    held.sort(axis=1)
    finite = held[:, 0] >= _key(np.array([-2.0], dtype=np.float32), np.array([0]))
    return held[:, ::-1].copy(), (lost >> 32 == held[:, 0] >> 32) & finite


def _take(
    tile: NDArray[np.float32], left: int, held: NDArray[np.int64], lost: NDArray[np.int64]
) -> bool:
    """Put the largest of a tile into `held`, whose rows are partitioned: the smallest is first.

    False, and nothing is put, when in most rows of a first tile several entries are the k-th.
    """
    rows, width = tile.shape
    k = held.shape[1]
    least = np.fmax(_cosines(held[:, 0]), -np.inf)  # of nothing held, not a number
    crowded = np.arange(rows)
    if left:
        hits, starts = _reaching(tile, least)
        crowded = np.flatnonzero(np.diff(starts) > k)
    if len(crowded) and width > k:
        own = tile[crowded]
        own.partition(width - k, axis=1)
        least[crowded] = own[:, width - k]
    if len(crowded):
        hits, starts = _reaching(tile, least)
    counts = np.diff(starts)
    most = int(counts.max())
    if not most:
        return True
    if left == 0 and width > k and 2 * np.count_nonzero(counts > k) > rows:
        return False
    row = np.arange(rows)
    column = hits - np.repeat(row * width, counts)
    keys = _key(tile[np.repeat(row, counts), column], left + column)
    if left == 0 and most == k == counts.min():
        held[:] = keys.reshape(rows, k)
        held.partition(0, axis=1)
        return True
    both = np.full((rows, k + most), _NOTHING)
    both[:, :k] = held
    place = np.repeat(row * (k + most) + k - starts[:-1], counts) + np.arange(len(hits))
    both.ravel()[place] = keys
    both.partition(most, axis=1)
    held[:] = both[:, most:]
    np.maximum(lost, both[:, :most].max(axis=1), out=lost)
    return True


def _reaching(
    tile: NDArray[np.float32], least: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat places of what is not below its row's `least`, and where those of each row begin."""
    hits = np.flatnonzero(tile >= least[:, None])
    return hits, np.searchsorted(hits, tile.shape[1] * np.arange(len(tile) + 1))


def _key(cosine: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """One integer that sorts as the cosine does, and then by the index."""
    bits = (cosine + np.float32(0)).view(np.int32)  # 0 is added to make -0 a 0
    return ((bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64) << 32) | index


def _cosines(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).view(np.float32)
