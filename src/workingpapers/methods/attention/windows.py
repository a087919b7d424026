"""Causal attention to the last keys alone, in time linear in the length."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from workingpapers.methods.attention import listed
from workingpapers.methods.attention.fused import EVEN, fused_attention, joined
from workingpapers.methods.attention.padding import unseen


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention to the last `window` keys, the query's own included, in time linear in T.

    Blocks of c queries read their c + window - 1 keys as overlapping views, all blocks of a head in one call.

    Args:
        q, k, v: (B, H_q, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d_v); the queries are the last T_q of the keys.
        window: how many keys a query sees at most.
        scale: factor of the scores; None takes d^-1/2.
        key_mask: (B, T_k) booleans, False for padding left or right of a row's real tokens; None without padding.

    Returns:
        out (B, H_q, T_q, d_v) and lse (B, H_q, T_q).
    """
    block = min(64, max(16, window // 4))  # larger ones score more hidden pairs, smaller ones keep the kernel waiting
    if key_mask is not None and q.shape[2] >= block:
        return _by_row(q, k, v, window, scale, key_mask)
    if q.shape[2] >= block and listed.available(q, k, v):
        seen = listed.of_window(q.shape[2], k.shape[2], window, device=q.device)
        return listed.attended(q, k, v, seen, scale=scale)
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    head = min(length, max(0, window - past))  # queries that still see the first key
    body = (length - head) // block * block
    parts = [_slice(q, k, v, 0, head, window, scale, key_mask)] if head or length == 0 else []
    if body:
        parts.append(_blocks(q, k, v, head, head + body, window, block, scale))
    if head + body < length:
        parts.append(_slice(q, k, v, head + body, length, window, scale, key_mask))
    return joined(parts, dim=2)


def _slice(
    q: Tensor, k: Tensor, v: Tensor, begin: int, end: int, window: int, scale: float | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend with the queries from `begin` to `end`, to what their windows hold together."""
    past = k.shape[2] - q.shape[2]
    low, high = max(0, past + begin - window + 1), past + end
    mask = None if key_mask is None else key_mask[:, None, None, low:high]
    if high - low > window:
        band = _band(end - begin, high - low, window, q.device)
        mask = band if mask is None else mask & band
    return fused_attention(
        q[:, :, begin:end], k[:, :, low:high], v[:, :, low:high], causal=high - low <= window, scale=scale, mask=mask
    )


def _blocks(
    q: Tensor, k: Tensor, v: Tensor, begin: int, end: int, window: int, block: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attend with the queries from `begin` to `end`, full blocks whose windows all lie within the keys."""
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    size = min(past + begin + block, math.ceil((block + window - 1) / EVEN) * EVEN)
    band = _band(block, size, window, q.device)
    bias = q.new_zeros(band.shape).masked_fill(~band, -torch.inf)
    parts = []
    for row, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        keys, values = (
            x[row, head // group, past + begin + block - size : past + end].unfold(0, size, block).mT.unsqueeze(1)
            for x in (k, v)
        )
        queries = q[row, head, begin:end].reshape(-1, 1, block, q.shape[3])
        parts.append(fused_attention(queries, keys, values, scale=scale, mask=bias))
    shape = *q.shape[:2], end - begin
    out, lse = (torch.stack(x) for x in zip(*parts, strict=True))
    return out.view(*shape, v.shape[3]), lse.view(shape)


def _band(T_q: int, T_k: int, window: int, device: torch.device) -> Tensor:
    """Return (1, 1, T_q, T_k), True within the window; the last query sees the last key."""
    ones = torch.ones(1, 1, T_q, T_k, dtype=torch.bool, device=device)
    return ones.tril(T_k - T_q).triu(T_k - T_q - window + 1)


def _by_row(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None, key_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend row by row without the padding, which keeps the blocks free of masks of their own."""
    past = k.shape[2] - q.shape[2]
    out, lse = unseen(q, v)
    for row, real in enumerate(key_mask):
        columns = real.nonzero().flatten().tolist()
        if not columns or columns[-1] < past:
            continue
        begin, end = columns[0], columns[-1] + 1
        rows, queries = slice(row, row + 1), slice(max(begin - past, 0), end - past)
        out[rows, :, queries], lse[rows, :, queries] = window_attention(
            q[rows, :, queries], k[rows, :, begin:end], v[rows, :, begin:end], window=window, scale=scale
        )
    return out, lse
