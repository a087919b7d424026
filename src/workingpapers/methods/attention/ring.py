"""Ring attention: exact attention over a sequence that is spread over P processes.

Each process keeps the queries of its share of c = T / P tokens (a few more or fewer where T is no multiple). Blocks of
keys and values travel round the ring, from each process to the next, and meet every query once; a running softmax makes
the result exact. Step t = 0 .. P-1 of process p sees block j = (p - t) mod P:

    out_j, lse_j = attention(q_p, k_j, v_j)                (B, H_q, c, d_v) and (B, H_q, c), piece by piece
    out, lse     = merge(out, lse, out_j, lse_j)           starting from out 0, lse -inf
    k, v         -> process p + 1, while the step computes

Backward is a second round. With P_ij = exp(scale q_i . k_j - lse_i) and D_i = dout_i . out_i - dlse_i,

    dv_j = P^T dout      dS = P (dout v_j^T - D)      dq = scale dS k_j, summed here      dk_j = scale dS^T q

and dk_j, dv_j travel with their block: after P hops they are home. Probabilities are computed again, never stored.

Causal attention wastes half of the score pairs. With contiguous shares the last process would do most of the other
half; in the zig-zag layout the sequence is cut into 2 P pieces and process p holds pieces p and 2P - 1 - p, so that
all compute the same number of pairs (`score_entries`). Pieces that see nothing are skipped.

Packed sequences: `segment_ids` confine attention to tokens with equal ids; `sequences.pack_examples` makes them, with
positions that restart and weights by which every example counts as it would alone.

Memory of a process: its q, out and gradients, three blocks of k and v (its own, the one at hand, the one arriving; in
backward the same of dk and dv), and scores of `chunk` x `chunk`: O(c) for any T. A pass sends (P - 1) c H_kv (d + d_v)
numbers per process, backward P c H_kv (d + d_v) more. The total work does not fall.

`apply(model)` puts it into a rotary decoder of transformers that runs on `shard`s of the input, forward and backward.
Not supported there: decoding from a sharded cache, padding (give segment_ids), dropout.

Source: Liu, Zaharia and Abbeel, "Ring Attention with Blockwise Transformers for Near-Infinite Context", ICLR 2024,
arXiv 2310.01889; Liu et al., "World Model on Million-Length Video And Language With Blockwise RingAttention", ICLR
2025, arXiv 2402.08268 (packing, weights). The zig-zag layout is not theirs; it is known from later
implementations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import check_inputs, merge, repeat_heads, restore
from workingpapers.methods.attention.fused import fused_attention
from workingpapers.methods.attention.ring_process import Ring, wait
from workingpapers.methods.attention.sequences import (
    Group,
    Layout,
    exchanged,
    gather,
    place,
    positions,
    shard,
    whole_length,
)

__all__ = [
    "apply",
    "attend_sharded",
    "naive_ring_attention",
    "restore",
    "ring_attention",
]


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: Group = None,
    causal: bool = True,
    scale: float | None = None,
    segment_ids: Tensor | None = None,
    layout: Layout = "zigzag",
    chunk: int = 512,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the whole sequence, of which every process gives its share and gets the outputs of its share.

    Every process of the group must call it, with the share that `shard` gives it of one sequence of any length. Without
    a process group it is blockwise attention in one process. Differentiable once.

    Args:
        q, k, v: (B, H_q, c, d), (B, H_kv, c, d), (B, H_kv, c, d_v), the share.
        group: the processes, in ring order; None takes the default group.
        causal: a query sees keys up to its own position (default), or all of them.
        scale: factor of the scores; None takes d^-1/2.
        segment_ids: (B, c) integers; a query sees only keys with its own id. None: all are one segment.
        layout: which tokens a process holds: "zigzag" (default; balanced) or "contiguous".
        chunk: at most this many queries and keys meet at a time (512).
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        (B, H_q, c, d_v) in the dtype of q; with `return_lse` also (B, H_q, c) in float32 (float64 for float64).

    Raises:
        ValueError: see `check_inputs`; processes that disagree, or shares that `shard` does not give; an option out of
            range.
    """
    check_inputs(q, k, v)
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"ring attention needs as many queries as keys; got {q.shape[2]} and {k.shape[2]}")
    if segment_ids is not None and (segment_ids.shape != (q.shape[0], q.shape[2]) or segment_ids.is_floating_point()):
        expected = (q.shape[0], q.shape[2])
        raise ValueError(f"segment_ids must be integers {expected}; got {segment_ids.dtype} {tuple(segment_ids.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be 1 or more")
    rank, size = place(group)
    length = _agreed_length(q, k, v, segment_ids, group, causal, layout)
    ring = Ring(group, rank, size, length, causal, q.shape[-1] ** -0.5 if scale is None else scale, layout, chunk)
    out, lse = _RingAttention.apply(q, k, v, segment_ids, ring)  # type: ignore[no-untyped-call]
    return (out, lse) if return_lse else out


def _agreed_length(
    q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor | None, group: Group, causal: bool, layout: Layout
) -> int:
    """Return T, refusing shares that don't fit together, which would otherwise hang or be read wrongly."""
    options = causal, segment_ids is not None, layout == "zigzag", q.element_size()
    numbers = [q.shape[2], *q.shape[:2], q.shape[3], k.shape[1], v.shape[3], *map(int, options)]
    table = exchanged(numbers, q.device, group)
    if any(row[1:] != table[0][1:] for row in table):
        raise ValueError(
            "processes disagree on (c, B, H_q, d, H_kv, d_v, causal, segments, zigzag, bytes of a number), of which "
            f"only c may differ: {table}"
        )
    return whole_length([row[0] for row in table], layout)


def naive_ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    size: int,
    causal: bool = True,
    scale: float | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """The recurrence by its definition: every host of a ring of `size` in turn, in one process, contiguous shares.

    Host p keeps a running maximum m, denominator l and numerator o per query, and updates them with block
    (p - t) mod size at step t.

    Args:
        q, k, v: (B, H_q, T, d), (B, H_kv, T, d), (B, H_kv, T, d_v), whole sequences.
        size: the number of hosts.
        causal, scale, segment_ids: as in `ring_attention`, for the whole sequence.

    Raises:
        ValueError: see `check_inputs`.
    """
    check_inputs(q, k, v)
    at = [positions(q.shape[2], rank=p, size=size, layout="contiguous").to(q.device) for p in range(size)]
    outputs = []
    keys, values = (repeat_heads(x, q.shape[1]) for x in (k, v))
    for p in range(size):
        queries = q[:, :, at[p]]
        numerator = torch.zeros(*queries.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
        denominator = torch.zeros_like(queries[..., :1])
        maximum = torch.full_like(denominator, -torch.inf)
        for t in range(size):
            j = (p - t) % size
            if len(at[j]) == 0:
                continue
            scores = queries @ keys[:, :, at[j]].mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            if causal:
                scores = scores.masked_fill(at[p][:, None] < at[j], -torch.inf)
            if segment_ids is not None:
                other = segment_ids[:, None, at[p], None] != segment_ids[:, None, None, at[j]]
                scores = scores.masked_fill(other, -torch.inf)
            new = torch.maximum(maximum, scores.amax(-1, keepdim=True))  # finite: at step 0 a query sees itself
            shrink, weights = torch.exp(maximum - new), torch.exp(scores - new)
            numerator = numerator * shrink + weights @ values[:, :, at[j]]
            denominator = denominator * shrink + weights.sum(-1, keepdim=True)
            maximum = new
        outputs.append(numerator / denominator)
    return torch.cat(outputs, dim=2)


def attend_sharded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    group: Group = None,
    causal: bool = True,
    scale: float | None = None,
    segment_ids: Tensor | None = None,
    layout: Layout = "zigzag",
) -> Tensor:
    """Attend over whole tensors, the same in every process, each doing its share; return the whole output.

    It shows the way `shard`, `ring_attention`, `gather`; for memory's sake keep tensors sharded. No gradients.

    Args:
        q, k, v: (B, H_q, T, d), (B, H_kv, T, d), (B, H_kv, T, d_v).
        group, causal, scale, segment_ids, layout: as in `ring_attention`, the ids (B, T).

    Raises:
        ValueError: see `ring_attention`.
    """
    q, k, v = (shard(x, dim=2, group=group, layout=layout) for x in (q, k, v))
    if segment_ids is not None:
        segment_ids = shard(segment_ids, dim=1, group=group, layout=layout)
    out: Any = ring_attention(q, k, v, group=group, causal=causal, scale=scale, segment_ids=segment_ids, layout=layout)
    return gather(out, dim=2, group=group, layout=layout)


def apply(model: common.Model, *, group: Group = None, layout: Layout = "zigzag", chunk: int = 512) -> common.Model:
    """Put ring attention into a rotary decoder of transformers; `restore(model)` undoes it.

    Every process holds the model and calls it with its `shard` of the input ids, `use_cache=False`, and, for packed
    sequences, its shards of `position_ids` and `segment_ids`. Without `position_ids` those of the layout are used. The
    logits are those of its tokens. Gradients of the parameters are the share of its loss: sum them over processes.
    Shift labels before sharding, since the next token may be another process's.

    Args:
        model: see `common.apply`.
        group, layout, chunk: as in `ring_attention`.

    Raises:
        ValueError: see `common.check_model`; while running, padding masks and decoding from a cache.
    """
    attention = partial(_attention, group=group, layout=layout, chunk=chunk)
    return common.apply(model, "ring", attention, prepare=partial(_prepare, group=group, layout=layout))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    group: Group,
    layout: Layout,
    chunk: int,
    **kwargs: Any,
) -> Tensor:
    if key_mask is not None:
        raise ValueError("ring attention takes no padding mask; give segment_ids, with an id of its own for padding")
    if q.shape[2] != k.shape[2]:
        raise ValueError("ring attention does not decode from a cache; call the model with use_cache=False")
    segment_ids = kwargs.get("segment_ids")
    out: Any = ring_attention(q, k, v, group=group, scale=scale, segment_ids=segment_ids, layout=layout, chunk=chunk)
    return out


def _prepare(module: nn.Module, inputs: dict[str, Any], *, group: Group, layout: Layout) -> dict[str, Any]:
    tokens = inputs["inputs_embeds" if inputs.get("input_ids") is None else "input_ids"]
    rank, size = place(group)  # lengths are exchanged whatever a process was given, lest it waits for others
    length = whole_length([held for (held,) in exchanged([tokens.shape[1]], tokens.device, group)], layout)
    if inputs.get("position_ids") is None:
        inputs["position_ids"] = positions(length, rank=rank, size=size, layout=layout)[None].to(tokens.device)
    if inputs.get("attention_mask") is None:  # else jumps in the positions are taken for packed sequences
        inputs["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    return inputs


class _RingAttention(torch.autograd.Function):
    """One round of the keys and values forward; one more, with the gradients of the keys and values, backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segment_ids: Tensor | None, ring: Ring
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(*q.shape[:3], v.shape[3], dtype=exact, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=exact, device=q.device)
        for source, (keys, values, *other) in ring.blocks(k, v, segment_ids):
            for rows, cols, mask in ring.pairs(source, segment_ids, other, q.device):
                part = fused_attention(q[:, :, rows], keys[:, :, cols], values[:, :, cols], scale=ring.scale, mask=mask)
                out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *part)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, segment_ids)
        ctx.ring = ring
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, segment_ids = ctx.saved_tensors
        ring: Ring = ctx.ring
        exact = lse.dtype
        grad_out = grad_out.to(exact)
        delta = (grad_out * out.to(exact)).sum(-1) - grad_lse
        dq = torch.zeros_like(q, dtype=exact)
        arriving: list[Tensor] = []
        requests: list[Any] = []
        for source, (keys, values, *other) in ring.blocks(k, v, segment_ids):
            dk, dv = (torch.zeros_like(x, dtype=exact) for x in (keys, values))
            for rows, cols, mask in ring.pairs(source, segment_ids, other, q.device):
                at = (slice(None), slice(None), rows)
                to = (slice(None), slice(None), cols)
                block = (q[at].to(exact), keys[to].to(exact), values[to].to(exact))
                parts = _gradients(*block, grad_out[at], lse[at], delta[at], ring.scale, mask)
                for total, where, part in zip((dq, dk, dv), (at, to, to), parts, strict=True):
                    total[where] += part
            wait(requests)
            for total, part in zip((dk, dv), arriving, strict=False):  # what the processes before this one added
                total += part
            arriving, requests = ring.pass_on([dk, dv], source, tag=3)
        wait(requests)
        dk, dv = arriving
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, lse: Tensor, delta: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a chunk of queries and a chunk of keys add to dq, dk and dv, given the lse over all keys."""
    # Query heads in groups, (B, H_kv, group, ..): each group reads one head of keys and values.
    q, grad_out, lse, delta = (x.reshape(len(x), k.shape[1], -1, *x.shape[2:]) for x in (q, grad_out, lse, delta))
    weights = torch.exp(torch.einsum("bhgqd,bhkd->bhgqk", q, k) * scale - lse[..., None])
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None], 0.0)
    dv = torch.einsum("bhgqk,bhgqe->bhke", weights, grad_out)
    dS = weights * (torch.einsum("bhgqe,bhke->bhgqk", grad_out, v) - delta[..., None]) * scale
    dq = torch.einsum("bhgqk,bhkd->bhgqd", dS, k).flatten(1, 2)
    return dq, torch.einsum("bhgqk,bhgqd->bhkd", dS, q), dv
