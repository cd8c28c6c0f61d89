"""The largest logit and the entropies of an attention, without holding all of its logits.

Shapes: B samples, H heads, T queries, S keys.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Logits held at once: 16 MiB each for the logits, their probabilities and the entropies.
CHUNK = 2**22


def widened(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def logits_of(
    query_BHTd: Tensor,
    key_BGSd: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> Iterator[Tensor]:
    """Yield what the softmax of an attention sees, in chunks [B, H, some of T, S]; -inf if masked.

    G key heads are each shared by H/G query heads. `mask` broadcasts to [B, H, T, S]; booleans
    (true takes part) or numbers to add. `causal`: query i sees keys 0 to i.
    """
    query, key = widened(query_BHTd), widened(key_BGSd).transpose(-2, -1)
    samples, heads, queries, _ = query.shape
    keys = key.shape[-1]
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if mask is not None:
        mask = mask.expand(samples, heads, queries, keys)
    rows = max(1, CHUNK // (samples * heads * keys))  # queries a chunk
    for start in range(0, queries, rows):
        # the query is scaled, not the product, which has more elements
        logits = (query[:, :, start : start + rows] * scale) @ key
        if mask is not None:
            part = mask[:, :, start : start + rows]
            if part.dtype == torch.bool:
                part = torch.zeros_like(logits).masked_fill(~part, -math.inf)
            logits = logits + part
        if causal:
            # query i of all may see keys 0 to i; this chunk begins at query `start`
            future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(future.triu(start + 1), -math.inf)
        yield logits


def in_chunks(logits_BHTS: Tensor) -> Iterator[Tensor]:
    """Yield logits that the model computed itself, in the same chunks."""
    rows = max(1, CHUNK // (logits_BHTS[:, :, :1].numel()))
    for start in range(0, logits_BHTS.shape[2], rows):
        yield widened(logits_BHTS[:, :, start : start + rows])


def summary(chunks: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest logit, and [H] entropies -Σ A ln A / ln S, mean of samples and queries.

    ln S is the largest entropy of S keys, so the result is from 0 (a single key is looked at) to
    1 (all keys equally). A query that may see no key at all does not count. With a single key
    there is nothing to spread over: entropy 1.
    """
    largest, entropies, counts, keys = [], [], [], 0
    for logits in chunks:
        keys = logits.shape[-1]
        largest.append(logits.amax())
        blind = (logits == -math.inf).all(dim=-1)  # its softmax is 0/0
        entropy = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)  # entr(0) is 0
        entropies.append(entropy.masked_fill(blind, 0).sum(dim=(0, 2)))
        counts.append((~blind).sum(dim=(0, 2)))
    mean = torch.stack(entropies).sum(dim=0) / torch.stack(counts).sum(dim=0).clamp(min=1)
    spread = mean / math.log(keys) if keys > 1 else torch.ones_like(mean)
    return torch.stack(largest).amax(), spread


def with_heads(logits: Tensor, heads: int | None) -> Tensor:
    """Return logits of any rank as [B, H, T, S], for a module that says how many heads it has.

    Four axes stay as they are. Further axes between heads and queries (windows, groups of keys)
    are told apart by their sizes. With three axes, samples and heads may share the first one.
    """
    if logits.dim() == 2:
        return logits[None, None]
    if logits.dim() == 4 and logits.shape[0] == 1 and heads and logits.shape[1] % heads == 0:
        logits = logits[0]  # torch's attention puts an axis in front of three
    if logits.dim() == 3:
        merged = heads if heads and logits.shape[0] % heads == 0 else 1
        return logits.reshape(-1, merged, *logits.shape[1:])
    while logits.dim() > 4:
        if logits.shape[1] != heads and logits.shape[1] * logits.shape[2] == heads:
            logits = logits.flatten(1, 2)  # heads in groups of the same keys
        elif logits.shape[1] != heads and logits.shape[-3] == heads:
            logits = logits.flatten(0, 1)
        else:
            logits = logits.movedim(1, 2).flatten(0, 1)
    return logits
