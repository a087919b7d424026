"""HyperAttention: large scores in hashed blocks, all others from a few sampled keys; near-linear in length.

For n queries and s keys of one head, block size b and m samples:

    hash      code(x) = signs of x W,  W (d, r) Gaussian, shared by queries and keys; codes in Gray order, so that
              neighbouring buckets differ in one sign; sort queries and keys by bucket (stable)
    block     query block t of the sorted queries sees key block t of the sorted keys, exactly
    sample    m keys drawn uniformly with replacement stand for the rest: each weighs s / m, and those that lie in the
              query's own block weigh nothing, which keeps the row sum unbiased
    together  w_ij = [same block] + [other block] (s / m) (times j was drawn)
              out_i = sum_j w_ij e^(s_ij) v_j / sum_j w_ij e^(s_ij)           lse_i = log sum_j w_ij e^(s_ij)

Block and sample are one softmax over b + m keys, with log(s / m) added to the sampled scores; that is what merging the
two by their log-sum-exps gives. A causal mask is halved again and again: each half by itself, and the later half on
the earlier one without a mask as above, merged by log-sum-exp. Pieces of fewer than `min_seq_len` queries are exact.

Scores per head: n (b + m) without a mask; C(n) = 2 C(n/2) + (n/2) (b + m) with it. Nothing is trained. It is close to
exact only where attention is spread out or falls on keys similar to the query, and each replaced layer costs quality.

Source: Han et al., "HyperAttention: Long-context Attention in Near-Linear Time", ICLR 2024, arXiv 2310.05869, and the
authors' published code for r, b, m, uniform samples and the exact pieces. Elsewhere the equations are followed where
the code differs: it can count sampled keys of the own block twice, lets padded keys of the last block take part, and
maps codes by the Gray code, where it is the inverse that puts neighbours one sign apart.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import Model, attention_layers, check_inputs, merge
from workingpapers.methods.attention.fused import joined, trainable_attention
from workingpapers.methods.attention.padding import check_key_mask, unseen
from workingpapers.methods.attention.parallel import each


def sort_lsh(x: Tensor, directions: Tensor) -> Tensor:
    """Return the bucket (..., T) in 0..2^r - 1 of each vector of x (..., T, d) for `directions` (d, r).

    Bit k of a bucket is the parity of the first k + 1 signs: the inverse Gray code, by which the sign patterns of
    buckets c and c + 1 differ in exactly one sign.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    signs = (x.to(exact) @ directions.to(x.device, exact) > 0).long()
    bucket = (signs << torch.arange(directions.shape[1] - 1, -1, -1, device=x.device)).sum(dim=-1)
    shift = 1
    while shift < directions.shape[1]:  # parities of 2, 4, 8, ... signs: a scan along so few is slow on a GPU
        bucket ^= bucket >> shift
        shift *= 2
    return bucket


def block_sample_attention(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, samples: Tensor, *, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return out (B, H, n, d_v) and lse (B, H, n) of the unmasked estimate.

    Args:
        q: (B, H, n, d).
        k: (B, G, s, d), G dividing H; heads of a group share the samples.
        v: (B, G, s, d_v).
        directions: (d, r) of the hash.
        samples: (B, G, m) indices of keys; m = 0 leaves the blocks alone, which then stand for everything.
        block_size: b; 0 leaves the samples alone.
        scale: factor of the scores.

    Raises:
        ValueError: see `check_inputs`; NaN and infinity are refused, for sampling would hide them from most rows.
    """
    check_inputs(q, k, v, finite=True)
    group = q.shape[1] // k.shape[1]
    if len(q) == 0:
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])

    def attend(part: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        b, g = part
        heads = q[b, group * g.start : group * g.stop]
        found = _estimate(heads, k[part], v[part], directions, samples[part], block_size, scale)
        return found[0].flatten(0, 1), found[1].flatten(0, 1)

    at_once = max(1, _room(q.device) // max(1, group * q.shape[2] * q.shape[3]))
    groups = min(at_once, k.shape[1])
    parts = each(attend, itertools.product(_cut(k.shape[0], at_once // groups), _cut(k.shape[1], groups)), q, k, v)
    out, lse = joined(parts)
    return out.view(*q.shape[:3], v.shape[3]), lse.view(q.shape[:3])


def _estimate(
    q: Tensor, k: Tensor, v: Tensor, directions: Tensor, samples: Tensor, block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    (batch, groups, count, _), (heads, length), drawn = k.shape, q.shape[1:3], samples.shape[2]
    blocks = math.ceil(count / block_size) if block_size else 1
    rows = math.ceil(length / blocks)
    q_order, k_order = (sort_lsh(x, directions).argsort(dim=-1, stable=True) for x in (q, k))
    q_place, k_place = _inverse(q_order), _inverse(k_order)

    # Which row of q, k and v goes where: (B, G, blocks, H/G, rows), for the heads of a group are more rows of the same
    # key block, and (B, G, blocks, b + m). Row 0 fills what is left over; it is hidden, or its output dropped.
    take_q = F.pad(q_order + _first_row(q), (0, blocks * rows - length))
    take_q = take_q.view(batch, groups, heads // groups, blocks, rows).transpose(2, 3)
    own = F.pad(k_order, (0, blocks * block_size - count)).view(batch, groups, blocks, block_size)
    take_k = torch.cat([own, samples.unsqueeze(2).expand(-1, -1, blocks, -1)], dim=3) + _first_row(k).unsqueeze(3)

    # log(s / m) is added in two parts, for half precision holds neither it nor the sum of both: what the rounded log
    # lacks is taken from the scores of the block instead, and given back to the log-sum-exp.
    weight = math.log(count / drawn) if drawn else 0.0
    coarse = float(torch.tensor(weight, dtype=q.dtype))
    padded = torch.arange(blocks * block_size, device=k.device).view(blocks, block_size) >= count
    home = k_place.gather(-1, samples) // block_size if block_size else torch.full_like(samples, -1)
    counted = home.unsqueeze(2) == torch.arange(blocks, device=k.device)[:, None]
    hidden = torch.cat([padded.expand(batch, groups, -1, -1), counted], dim=3)
    bias = torch.full((block_size + drawn,), coarse, dtype=q.dtype, device=q.device)
    bias[:block_size] = coarse - weight
    bias = bias.masked_fill(hidden, -torch.inf).flatten(0, 2)[:, None, None]

    queries = _take(q, take_q).flatten(0, 2).flatten(1, 2).unsqueeze(1)
    keys, values = (_take(x, take_k).flatten(0, 2).unsqueeze(1) for x in (k, v))
    out, lse = trainable_attention(queries, keys, values, scale, bias=bias)
    address = torch.arange(take_q.numel(), device=q.device).view(take_q.shape).transpose(2, 3).flatten(3).flatten(1, 2)
    back = address.gather(-1, q_place)
    return _take(out, back), lse.flatten().index_select(0, back.flatten()).view(back.shape) + (weight - coarse)


def _room(device: torch.device) -> int:
    """Return how many numbers of queries to sort and gather at a time; on a CPU a group of heads at a time is best."""
    return 0 if device.type == "cpu" else 2**26


def _cut(count: int, size: int) -> list[slice]:
    """Return 0 .. count - 1 in slices of at most `size`."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def _inverse(order: Tensor) -> Tensor:
    """Return where each of 0 .. T - 1 stands in permutations (..., T)."""
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (*) of x (B, H, T, d), numbered through all its vectors, as (*, d)."""
    return x.reshape(-1, x.shape[-1]).index_select(0, rows.flatten()).view(*rows.shape, x.shape[-1])


def _first_row(x: Tensor) -> Tensor:
    """Return the number of each head's first row in x (B, H, T, d), (B, H, 1)."""
    return torch.arange(0, x.shape[0] * x.shape[1] * x.shape[2], x.shape[2], device=x.device).view(*x.shape[:2], 1)


@dataclass(frozen=True)
class HyperAttention:
    """Approximate softmax attention on (B, H, T, d), causal or not, differentiable.

    The same inputs give the same output: hash and samples are drawn anew from `seed` in each call, unless a generator
    is given.

    Args:
        lsh_num_projs: r, the directions of the hash (7, as published: 128 buckets).
        block_size: b, keys of a block (256, as published); 0 for samples alone.
        sample_size: m, sampled keys (256, as published); 0 for blocks alone.
        min_seq_len: pieces of fewer queries are exact (4096, as published); so are those of at most b + m keys, where
            an estimate would save nothing.
        seed: of the directions and the samples.

    Raises:
        ValueError: an option outside its range.
    """

    lsh_num_projs: int = 7
    block_size: int = 256
    sample_size: int = 256
    min_seq_len: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.lsh_num_projs <= 32:
            raise ValueError(f"lsh_num_projs is {self.lsh_num_projs}; allowed: 1 to 32")
        if min(self.block_size, self.sample_size) < 0 or self.block_size + self.sample_size == 0:
            sizes = f"block_size {self.block_size} and sample_size {self.sample_size}"
            raise ValueError(f"{sizes} must be 0 or more, and not both 0")
        if self.min_seq_len < 1:
            raise ValueError(f"min_seq_len is {self.min_seq_len}; it must be 1 or more")

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        causal: bool = True,
        key_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return out (B, H, T, d_v) in the type of q and its log-sum-exp (B, H, T) in float32 at least.

        Rows of a padded batch are treated one by one without their padding, as if each came alone.

        Args:
            q: (B, H, T, d); if causal, the last T of the S positions.
            k, v: (B, G, S, d) and (B, G, S, d_v), G dividing H.
            scale: factor of the scores; None takes d^-1/2.
            causal: hide the keys after each query.
            key_mask: (B, S), False for padding. Padded queries (if causal) come out as 0 with log-sum-exp -inf.
            generator: a CPU generator for hash and samples.

        Raises:
            ValueError: shapes that do not fit, more queries than keys if causal, or NaN and infinity where something
                is estimated (exact pieces pass NaN on).
        """
        check_inputs(q, k, v)
        if causal and q.shape[2] > k.shape[2]:
            raise ValueError(f"causal attention takes at most as many queries as keys; got {q.shape[2]}, {k.shape[2]}")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        draw = Draw(self, q.shape[3], generator)
        if key_mask is None:
            return self._unpadded(q, k, v, scale, causal, draw)
        check_key_mask(key_mask, k.shape[0], k.shape[2])
        out, lse = unseen(q, v)
        for b, keys in enumerate(key_mask):
            rows = keys[k.shape[2] - q.shape[2] :] if causal else torch.ones_like(q[b, 0, :, 0], dtype=torch.bool)
            alone = q[b : b + 1, :, rows], k[b : b + 1, :, keys], v[b : b + 1, :, keys]
            found, found_lse = self._unpadded(*alone, scale, causal, draw)
            out[b, :, rows], lse[b, :, rows] = found[0], found_lse[0]
        return out, lse

    def _unpadded(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        past = k.shape[2] - q.shape[2]
        if not causal or q.shape[2] <= 1:
            return self._unmasked(q, k, v, scale, draw)
        out, lse = self._causal(q, k[:, :, past:], v[:, :, past:], scale, draw)
        if not past:
            return out, lse
        return merge(out, lse, *self._unmasked(q, k[:, :, :past], v[:, :, :past], scale, draw))

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float, draw: Draw) -> tuple[Tensor, Tensor]:
        """Halve the sequence until its pieces are exact, then put them together, all pairs of a level at once.

        Zeros after the end make every half whole; causality hides them from all that is returned.
        """
        length, depth = q.shape[2], self.depth(q.shape[2])
        size = math.ceil(length / 2**depth)
        if size * 2**depth > length:
            q, k, v = (F.pad(x, (0, 0, 0, size * 2**depth - length)) for x in (q, k, v))
        out, lse = trainable_attention(pieces(q, size), pieces(k, size), pieces(v, size), scale, causal=True)
        for _ in range(depth):
            later = pieces(q, 2 * size)[:, :, size:]
            keys, values = (pieces(x, 2 * size)[:, :, :size] for x in (k, v))
            near, near_lse = merge(out[1::2], lse[1::2], *self._unmasked(later, keys, values, scale, draw))
            out, lse = torch.cat([out[::2], near], dim=2), torch.cat([lse[::2], near_lse], dim=2)
            size *= 2
        return out[:, :, :length], lse[:, :, :length]

    def _unmasked(self, q: Tensor, k: Tensor, v: Tensor, scale: float, draw: Draw) -> tuple[Tensor, Tensor]:
        if self.exact(q.shape[2], k.shape[2]):
            return trainable_attention(q, k, v, scale)
        drawn = draw.directions, draw.samples(k)
        return block_sample_attention(q, k, v, *drawn, block_size=self.block_size, scale=scale)

    def exact(self, queries: int, keys: int) -> bool:
        """Return whether so many queries look at so many keys exactly, without a mask."""
        return queries < self.min_seq_len or keys <= self.block_size + self.sample_size

    def depth(self, length: int) -> int:
        """Return how often a causal sequence is halved: as long as one half's view of the other is estimated."""
        half = math.ceil(length / 2)
        return 0 if self.exact(half, half) else 1 + self.depth(half)

    def score_entries(self, length: int, *, causal: bool = True) -> int:
        """Return how many scores a head computes for `length` queries and keys; dense: n^2, or n (n + 1) / 2."""
        budget = self.block_size + self.sample_size
        if not causal:
            return length * (length if self.exact(length, length) else budget)
        depth = self.depth(length)
        size = math.ceil(length / 2**depth)
        return 2**depth * size * (size + 1) // 2 + depth * 2**depth * size // 2 * budget


def apply_hyper_attention(
    model: Model, hyper: HyperAttention | None = None, *, layers: Iterable[int] | None = None
) -> Model:
    """Put HyperAttention into layers of a rotary decoder of transformers; `common.restore` takes it out again.

    Prompts are then processed approximately; tokens decoded one by one, prompts of fewer than twice `min_seq_len`
    tokens and all other layers are exact.

    Args:
        model: see `common.apply`. Changed in place.
        hyper: the options; None takes the defaults. Layer i has a hash and samples of its own, of seed + i.
        layers: which layers, negative ones from the last: `range(-8, 0)` are the last eight, where the paper begins;
            None takes all.

    Returns:
        The model.

    Raises:
        ValueError: a model that `common.check_model` refuses, or a layer that it doesn't have.
    """
    common.check_model(model)
    hyper, count = hyper or HyperAttention(), len(attention_layers(model))
    given = list(range(count) if layers is None else layers)
    absent = [i for i in given if not -count <= i < count]
    if absent:
        raise ValueError(f"layers holds {absent}; {type(model).__name__} has layers 0 to {count - 1}")
    chosen = {i % count: replace(hyper, seed=hyper.seed + i % count) for i in given}
    return common.apply(model, "hyper-attention", partial(_attention, chosen=chosen))


@torch.compiler.disable  # tracing takes long and gains nothing
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    module: Any,
    chosen: dict[int, HyperAttention],
    **kwargs: Any,
) -> Tensor:
    if q.shape[2] == 1:
        mask = None if key_mask is None else key_mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    hyper = chosen.get(module.layer_idx, HyperAttention(min_seq_len=sys.maxsize))
    return hyper(q, k, v, scale=scale, key_mask=key_mask)[0]


class Draw:
    """What one call draws at random: directions (d, r) once, then samples for each estimate.

    Args:
        hyper: the options.
        width: d.
        generator: where from; None takes the seed of the options.
    """

    def __init__(self, hyper: HyperAttention, width: int, generator: torch.Generator | None = None) -> None:
        self.generator = torch.Generator().manual_seed(hyper.seed) if generator is None else generator
        self.directions = torch.randn(width, hyper.lsh_num_projs, generator=self.generator)
        self.count = hyper.sample_size

    def samples(self, k: Tensor) -> Tensor:
        """Return which keys of k (B, G, s, d) stand for all of them, (B, G, m)."""
        return torch.randint(k.shape[2], (*k.shape[:2], self.count), generator=self.generator).to(k.device)


def pieces(x: Tensor, size: int) -> Tensor:
    """Cut (B, H, P size, d) into (B P, H, size, d)."""
    batch, heads, length, width = x.shape
    return x.reshape(batch, heads, length // size, size, width).transpose(1, 2).flatten(0, 1)
