"""HiP by its definition: node by node, all scores at hand. What tests compare with, and a kernel before its first use.

See `hip` for the method and its source. Equal scores keep the earlier node.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import Tensor

from workingpapers.methods.attention import common

if TYPE_CHECKING:
    from workingpapers.methods.attention.hip import HiPAttention


def naive_hip_mask(hip: HiPAttention, q: Tensor, k: Tensor) -> Tensor:
    """Return (B, H, T, S), True where `hip` attends."""
    (batch, heads, length, _), past = q.shape, k.shape[2] - q.shape[2]
    mask = common.causal_mask(length, k.shape[2]).repeat(batch, heads, 1, 1)
    for (b, h, begin), leaves in naive_hip_search(hip, q, k).items():
        for block in set(range(hip._candidates(past + begin))) - leaves:
            first = hip.sinks + block * hip.block_k
            mask[b, h, begin : begin + hip.block_q, first : first + hip.block_k] = False
    return mask


def naive_hip_search(hip: HiPAttention, q: Tensor, k: Tensor) -> dict[tuple[int, int, int], set[int]]:
    """Return the key blocks that are seen between sinks and window, by sequence, head and a query block's first."""
    (batch, heads, length, _), past, found = q.shape, k.shape[2] - q.shape[2], {}
    scores = q @ common.repeat_heads(k, heads).mT
    for b, h, begin in itertools.product(range(batch), range(heads), range(0, length, hip.block_q)):
        end = min(begin + hip.block_q, length)
        best = scores[b, h, list(range(end - 1, begin - 1, -hip.query_stride))].amax(dim=0)
        total = max(0, hip._candidates(past + begin))
        of_block = best[hip.sinks : hip.sinks + total * hip.block_k].view(total, hip.block_k).amax(dim=1).tolist()
        found[b, h, begin] = _naive_search(hip, of_block)
    return found


def _naive_search(hip: HiPAttention, scores: list[float]) -> set[int]:
    """Return the blocks that a search over blocks of these scores ends with."""
    n, total = hip.top_k // hip.block_k, len(scores)
    bounds = [total * j // n for j in range(n + 1)]
    nodes = list(itertools.pairwise(bounds)) if total > n else [(j, j + 1) for j in range(total)]
    while any(end - start > 1 for start, end in nodes):  # first block, block after the last
        halves = [half for start, end in nodes for half in ((start, (start + end) // 2), ((start + end) // 2, end))]
        best = []
        for start, end in halves:
            if start < end:
                best.append((-scores[(start + end) // 2 if hip.center else start], start, end))
        nodes = sorted((start, end) for _, start, end in sorted(best)[:n])
    return {start for start, _ in nodes}


def naive_hip_attention(
    hip: HiPAttention, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `hip` does without padding: dense attention under `naive_hip_mask`."""
    return common.dense_attention(q, k, v, scale=scale, mask=naive_hip_mask(hip, q, k), return_lse=True)
