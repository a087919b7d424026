"""HiP's search on a GPU, in Triton: all blocks of a call in one launch, keys are read where they lie.

Each block of queries does what `hip` says, with scores of full float32 precision. Of equal scores those of the first
nodes are kept. Memory beside the result does not grow with the length.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workingpapers.methods.attention import triton_blocks
from workingpapers.methods.attention.listed import refused
from workingpapers.methods.attention.naive_hip import naive_hip_search

if TYPE_CHECKING:
    from workingpapers.methods.attention.hip import HiPAttention

TILE = 64
"""Keys at a time, and queries, at most."""


def available(hip: HiPAttention, q: Tensor, k: Tensor) -> bool:
    """Return whether `search` can serve these options and tensors.

    That takes what `triton_blocks` serves, a search for at most 2^13 keys, and that it finds what it should in a small
    case, which is tried once for each device, type, width and options.
    """
    serves = hip.top_k <= 2**13 and triton_blocks.serves(q, k, k)
    return serves and _proven(hip, q.device, q.dtype, q.shape[3])


@cache
def _proven(hip: HiPAttention, device: torch.device, dtype: torch.dtype, d: int) -> bool:
    """Return whether the kernel does what the definition says, in the last queries of a small case; say so if not."""
    queries, candidates = hip.block_q + 1, 3 * hip.top_k  # two blocks that search in two rounds
    length = hip.sinks + candidates + hip.window + queries
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 2, queries, d), (1, 1, length, d)
    # Whole numbers, whose products add up to the same in any precision and order.
    q, k = (torch.randint(-99, 100, s, generator=generator, device="cpu").to(dtype) for s in shapes)
    try:
        found = search(hip, q.to(device), k.to(device), 2).flatten(0, 2).tolist()
        if found != [sorted(leaves) for leaves in naive_hip_search(hip, q.double(), k.double()).values()]:
            raise ArithmeticError("it finds other keys")
    except Exception as error:  # whatever Triton, its compiler or the driver raise
        refused(sys.modules[__name__], device, dtype, d, error)
        return False
    return True


def search(hip: HiPAttention, q: Tensor, k: Tensor, blocks: int) -> Tensor:
    """Return what the last `blocks` query blocks find, (B, H, blocks, n), rising, int32; see `hip`.

    Args:
        hip: the options.
        q, k: (B, H, T_q, d) and (B, G, T, d).
        blocks: how many have more than n candidates.
    """
    from workingpapers.methods.attention.triton_search_kernel import search as kernel

    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k))
    (batch, heads, queries, d), n = q.shape, hip.top_k // hip.block_k
    jobs, dense = batch * heads * blocks, math.ceil(queries / hip.block_q) - blocks
    padded_n, padded_k, padded = _power(n), _power(hip.block_k), max(16, _power(d))
    programs = min(jobs, _programs(q.device))
    found = torch.empty(batch, heads, blocks, n, dtype=torch.int32, device=q.device)
    room = found.new_empty(programs * (5 + 2 * hip.block_k) * padded_n)
    tile_k = min(TILE, 2**14 // (padded * q.element_size()))  # 16 KiB of keys, twice: so that many programs have room
    tile_q = max(16, min(TILE, _power(math.ceil(hip.block_q / hip.query_stride))))
    with torch.cuda.device(q.device if q.is_cuda else -1):
        kernel[(programs,)](
            *(q, k, found, room, *q.stride()[:3], *k.stride()[:3], heads, heads // k.shape[1], queries, k.shape[2]),
            *(dense, blocks, jobs, hip.block_q, hip.query_stride, hip.sinks, hip.window),
            *(n, padded_n, hip.block_k, padded_k, hip.center, tile_q, tile_k, d, padded),
            num_warps=2 if padded_n * padded_k <= 2**9 else 4 if padded_n * padded_k <= 2**11 else 8,
            num_stages=2,
        )
    return found


def _power(n: int) -> int:
    """Return the next power of two."""
    return 1 << (n - 1).bit_length()


def _programs(device: torch.device) -> int:
    """Return how many programs fill a GPU, with enough of them to even out their work."""
    return 32 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
