"""The kernel of `listed` on a GPU, in Triton: keys are read where they lie, so time is that of the scores.

It wants Triton and an NVIDIA GPU since Ampere, or Triton's interpreter, anywhere, for tests. It has run on an H100.

Source: the online softmax in tiles is that of Dao, "FlashAttention-2", ICLR 2024, arXiv 2307.08691.
"""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from workingpapers.methods.attention.listed import Listed, Lists

TILE = 64
"""Keys at a time, at most."""


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether the kernel is made for such tensors on such a device.

    That takes Triton, and d and d_v of at most 256 (float32: 128); float32, or more than 128, only where a block of
    threads has 227 KiB of shared memory, as on H100 and B200.
    """
    half, width = q.dtype in (torch.float16, torch.bfloat16), max(q.shape[-1], v.shape[-1])
    if not (half or q.dtype == torch.float32) or width > (256 if half else 128) or not _installed():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return q.dtype != torch.bfloat16  # the interpreter multiplies its bits as if they were integers
    if not q.is_cuda or torch.version.hip:
        return False
    major = torch.cuda.get_device_capability(q.device)[0]
    return major in (9, 10) or (major >= 8 and half and width <= 128)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, seen: Listed, lists: Lists, scale: float) -> None:
    """Write out and lse."""
    from workingpapers.methods.attention.triton_kernels import attend

    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    near, listed, columns, offsets = lists
    (batch, heads, queries, d), length, d_v, blocks = q.shape, k.shape[2], v.shape[3], near.shape[2]
    padded, padded_v = (max(16, 1 << (n - 1).bit_length()) for n in (d, d_v))
    # Three stages of keys and values in at most 96 KiB of shared memory, where 16 keys fit in that.
    room = 2**15 // ((padded + padded_v) * q.element_size())
    tile_k = max(16, min(TILE, 1 << room.bit_length() >> 1))
    tile_q = max(16, min(128, 1 << (min(seen.block_q, seen.lead + queries) - 1).bit_length()))
    tiles = math.ceil(seen.block_q / tile_q)
    lines = columns.shape[2] + offsets.shape[2] > 0
    bounds, shown = (near, near), near  # which are not read without lines
    if lines:
        first = length - queries - seen.lead
        starts = torch.arange(first, first + blocks * seen.block_q, seen.block_q, device=q.device, dtype=torch.int32)
        bounds = _bounds(columns, near.minimum(starts) - 1), _bounds(offsets, starts.expand_as(near))
        shown = _shown(columns, offsets, length)
    with torch.cuda.device(q.device if q.is_cuda else -1):
        attend[(blocks * tiles, batch * heads)](
            *(q, k, v, out, lse, near, listed, _skip(listed), columns, bounds[0], offsets, bounds[1], shown),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, heads // k.shape[1], queries, length, blocks),
            *(seen.block_q, seen.lead, seen.sinks, seen.reach),
            *(listed.shape[3], columns.shape[2], offsets.shape[2], scale * math.log2(math.e)),
            *(
                listed.shape[3] > 0,
                lines,
                seen.block_k,
                tiles,
                tile_q,
                tile_k,
                d,
                d_v,
                padded,
                padded_v,
            ),
            num_warps=8 if tile_q > 64 else 4,
            num_stages=3,
        )


def _skip(entries: Tensor) -> Tensor:
    """Return how many entries of each list are none, anything for lists that are not read."""
    return (entries < 0).sum(dim=-1, dtype=torch.int32) if entries.shape[-1] else entries


def _bounds(entries: Tensor, last: Tensor) -> Tensor:
    """Return (B, H, M + 1) how many entries of (B, H, n) are none, then how many are at most `last` (B, H, M)."""
    last = F.pad(last, (1, 0), value=-1)
    if entries.shape[2] == 0:
        return torch.zeros_like(last)
    return torch.searchsorted(entries, last, right=True, out_int32=True)


def _shown(columns: Tensor, offsets: Tensor, length: int) -> Tensor:
    """Return (B, H, T + 1) bytes, 1 at the distances that offsets show."""
    if columns.shape[2] == 0:
        return columns.new_zeros(1, dtype=torch.uint8)
    shown = columns.new_zeros(*columns.shape[:2], length + 1, dtype=torch.uint8)
    return shown.scatter_(2, offsets.clamp(0, length).long(), 1)  # a distance of 0 or T is never asked for
