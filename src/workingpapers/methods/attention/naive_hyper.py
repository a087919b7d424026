"""HyperAttention by its definition: a loop over the queries, and dense softmax attention whose terms are weighted."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.hyper import Draw, HyperAttention, pieces, sort_lsh


def naive_block_sample_weights(q: Tensor, k: Tensor, directions: Tensor, samples: Tensor, block_size: int) -> Tensor:
    """Return the weights w (B, H, n, s) of `block_sample_attention`, by the definition: a loop over the queries."""
    (batch, groups, count, _), (heads, length) = k.shape, q.shape[1:3]
    blocks = math.ceil(count / block_size) if block_size else 1
    rows, weights = math.ceil(length / blocks), torch.zeros(batch, heads, length, count)
    for b, h in itertools.product(range(batch), range(heads)):
        g = h // (heads // groups)
        q_buckets, k_buckets = (sort_lsh(x, directions).tolist() for x in (q[b, h], k[b, g]))
        drawn = samples[b, g].bincount(minlength=count)
        q_home = {i: place // rows for place, i in enumerate(sorted(range(length), key=q_buckets.__getitem__))}
        ranked = sorted(range(count), key=k_buckets.__getitem__)
        k_home = torch.tensor([ranked.index(j) // block_size if block_size else -1 for j in range(count)])
        for i in range(length):
            weights[b, h, i] = torch.where(k_home == q_home[i], 1.0, drawn * count / max(1, len(samples[b, g])))
    return weights


def naive_hyper_attention(
    hyper: HyperAttention, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what `hyper` does without padding, by the definition: dense softmax attention whose terms are weighted.

    The samples come from the same seed in the same order; causal needs as many queries as keys.
    """
    draw = Draw(hyper, q.shape[3])

    def unmasked(q: Tensor, k: Tensor) -> Tensor:
        if hyper.exact(q.shape[2], k.shape[2]):
            return torch.ones(*q.shape[:3], k.shape[2])
        return naive_block_sample_weights(q, k, draw.directions, draw.samples(k), hyper.block_size)

    if not causal:
        weights = unmasked(q, k)
    else:
        length, depth = q.shape[2], hyper.depth(q.shape[2])
        size = math.ceil(length / 2**depth)
        padded_q, padded_k = (F.pad(x, (0, 0, 0, size * 2**depth - length)) for x in (q, k))
        weights = torch.kron(torch.eye(2**depth), torch.ones(size, size).tril()).repeat(*q.shape[:2], 1, 1)
        for n in (size * 2**level for level in range(depth)):
            # One draw serves all pairs of a level, sequence by sequence.
            later, earlier = pieces(padded_q, 2 * n)[:, :, n:], pieces(padded_k, 2 * n)[:, :, :n]
            for i, block in enumerate(unmasked(later, earlier)):
                b, start = divmod(i, size * 2**depth // (2 * n))
                weights[b, :, start * 2 * n + n : (start + 1) * 2 * n, start * 2 * n : start * 2 * n + n] = block
        weights = weights[:, :, :length, :length]
    return dense_attention(q, k, v, scale=scale, causal=False, mask=weights.to(q.dtype).log(), return_lse=True)
