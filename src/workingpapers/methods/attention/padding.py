"""Where the real tokens of padded rows are."""

from __future__ import annotations

import torch
from torch import Tensor


def check_key_mask(key_mask: Tensor, batch: int, length: int) -> None:
    """Refuse what is not (B, S) booleans for so many sequences and keys, with a ValueError."""
    if key_mask.shape != (batch, length) or key_mask.dtype != torch.bool:
        needed, got = (batch, length), tuple(key_mask.shape)
        raise ValueError(f"key_mask must be boolean (B, S) = {needed}; got {key_mask.dtype}, {got}")


def first_real(key_mask: Tensor) -> Tensor:
    """Return (B,) the column of the first real token of each row of (B, T) booleans, T in a row without any.

    Raises:
        ValueError: real tokens in more than one run, with padding between them.
    """
    runs = key_mask[:, :1].sum(dim=1) + (key_mask[:, 1:] & ~key_mask[:, :-1]).sum(dim=1)
    if bool((runs > 1).any()):
        raise ValueError(f"rows {(runs > 1).nonzero().flatten().tolist()} have padding between real tokens")
    return (key_mask.cumsum(dim=1) == 0).sum(dim=1)


def real_pieces(q: Tensor, k: Tensor, key_mask: Tensor) -> list[tuple[slice, slice, slice]]:
    """Return the slices (row, queries, keys) of the real tokens of each row that has real queries.

    Args:
        q: (B, H, T, d), the last T of the S positions.
        k: (B, G, S, d).
        key_mask: (B, S) booleans, False for padding left or right of a row's real tokens.

    Raises:
        ValueError: a mask of another shape or type, or padding between real tokens.
    """
    check_key_mask(key_mask, k.shape[0], k.shape[2])
    past, pieces = k.shape[2] - q.shape[2], []
    spans = zip(first_real(key_mask).tolist(), key_mask.sum(dim=1).tolist(), strict=True)
    for row, (begin, count) in enumerate(spans):
        end = begin + count
        if end > max(begin, past):
            pieces.append((slice(row, row + 1), slice(max(0, begin - past), end - past), slice(begin, end)))
    return pieces


def unseen(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of queries that see nothing: zeros (B, H, T, d_v) and -inf (B, H, T)."""
    lse = q.new_full(q.shape[:3], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_zeros(*q.shape[:3], v.shape[3]), lse
