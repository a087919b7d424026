"""Softplus attention: length-scaled softplus of the cosine, then only above-average weights, raised to a power.

Softmax makes scores positive and makes them sum to one; the second is what matters. Row i sees N_i keys (masked ones
don't count), d is the head width:

    stage 1, LSSA    a_ij = softplus(s log N_i cos(q_i, k_j)),       a_i <- a_i / sum_j a_ij,       s = log d
    stage 2, LSSAR   w_ij = relu(N_i a_ij - O_i)^p,                  w_i <- w_i / sum_j w_ij
    output           sum_j w_ij v_j

N_i a_ij is a weight relative to the equal share, so with O = 1 exactly the keys above average survive, and the power
keeps the row sharp however many keys there are. O is 0 in the first rows, where few keys are seen. A model is trained
with it; p = 15 extrapolates, p = 3 is best at the training length. Without stage 2 it extrapolates little better than
softmax. There are no parameters. No fused kernel exists: time is quadratic, memory (in inference) is a slab of rows.

Source: Gao, Spratling and Gionfrida, "Softplus Attention with Re-weighting Boosts Length Extrapolation in Large
Language Models", arXiv 2501.13428 (ICML 2026). The cosine is that of the later revisions; `qk_norm=False` is the first
one's q.k / sqrt(d).
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import Model, causal_mask, check_inputs
from workingpapers.methods.attention.padding import check_key_mask

UNIFORM = 1e-4
"""A row in which no key exceeds its offset by more than this attends to nothing: its output is zero, and so is its
gradient. This stands for the small constant in the published denominator, which would do the same at a threshold that
depends on p. It is far above the rounding of float32 and bounds the gradient of the power by p / 1e-4."""

SLAB = 2**23
"""Scores held at a time, 32 MiB in float32 for each of the handful of arrays that a slab of rows needs."""


def softplus_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    power: float | None = 15.0,
    qk_norm: bool = True,
    causal: bool = True,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    offset: float = 1.0,
    warm_rows: int = 3,
) -> Tensor:
    """Return the attended values, (B, H, T, d_v), in the type of `q`; the weights are taken in float32 or wider.

    Differentiable in q, k and v. Rows that see no key, and rows of equal weights when re-weighted, are zero.

    Args:
        q: (B, H, T, d) queries, rotated already. With fewer queries than keys they are the last T positions, as in
            decoding with a cache.
        k: (B, G, S, d) keys; G divides H.
        v: (B, G, S, d_v) values.
        power: p of stage 2 (15, the published choice for extrapolation); None stops after stage 1.
        qk_norm: cosine (True) or plain product of q and k.
        causal: hide the keys after each query.
        key_mask: (B, S), True where a key is a real token; None takes all.
        scale: s, the factor of log N; None takes log d for cosines and log(d) / sqrt(d) for products.
        offset: O, in equal shares (1: keys above average survive).
        warm_rows: rows that see at most so many keys have offset 0 (3, as published).

    Raises:
        ValueError: shapes that don't fit, or an option outside its range.
    """
    check_inputs(q, k, v)
    _check_power(power)
    if causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"causal attention takes at most as many queries as keys; got {q.shape[2]}, {k.shape[2]}")
    if key_mask is not None:
        check_key_mask(key_mask, k.shape[0], k.shape[2])
    exact = torch.promote_types(q.dtype, torch.float32)
    groups, width = k.shape[1], q.shape[-1]
    if 0 in (q.shape[2], k.shape[2]):
        return q.new_zeros(*q.shape[:3], v.shape[3])
    if scale is None:
        scale = math.log(width) if qk_norm else math.log(width) / math.sqrt(width)
    queries = q.to(exact).reshape(q.shape[0], groups, q.shape[1] // groups, *q.shape[2:])
    keys, values = k.to(exact), v.to(exact)
    if qk_norm:
        queries, keys = F.normalize(queries, dim=-1, eps=1e-6), F.normalize(keys, dim=-1, eps=1e-6)
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    step = max(1, SLAB // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    slabs = []
    for start in range(0, length, step):
        end = min(start + step, length)
        seen = past + end if causal else k.shape[2]
        visible = _visible(end - start, seen, causal, key_mask, q.device)
        scores = queries[..., start:end, :] @ keys[:, :, None, :seen].transpose(-1, -2)
        weights = _weights(scores * scale, visible, power, offset, warm_rows)
        slabs.append(weights @ values[:, :, None, :seen])
    return torch.cat(slabs, dim=-2).flatten(1, 2).to(q.dtype)


def _check_power(power: float | None) -> None:
    if power is not None and not power > 0:
        raise ValueError(f"power is {power!r}; it must be positive, or None for no re-weighting")


def _weights(scores: Tensor, visible: Tensor, power: float | None, offset: float, warm_rows: int) -> Tensor:
    """Return the weights of scaled scores (B, G, H/G, T, S), in which each row sums to 1 or is zero.

    The rows of stage 2 are divided by their largest excess before the power, which cancels in the end and keeps the
    power from overflowing; so that divisor needs no gradient.
    """
    count = visible.sum(dim=-1, keepdim=True).to(scores.dtype)
    positive = F.softplus(scores * count.clamp(min=1.0).log()).masked_fill(~visible, 0.0)
    total = positive.sum(dim=-1, keepdim=True)
    weights = positive / total.masked_fill(count == 0, 1.0)
    if power is None:
        return weights
    excess = F.relu(count * weights - offset * (count > warm_rows))
    peak = excess.detach().amax(dim=-1, keepdim=True)
    dead = peak <= UNIFORM  # not a number is not dead: it must reach the output
    sharp = (excess / peak.masked_fill(dead, 1.0)).masked_fill(dead, 0.0) ** power
    return sharp / sharp.sum(dim=-1, keepdim=True).masked_fill(dead, 1.0)


def _visible(T_q: int, T_k: int, causal: bool, key_mask: Tensor | None, device: torch.device) -> Tensor:
    """Return (B or 1, 1, 1, T_q, T_k), True where a query sees a key."""
    visible = causal_mask(T_q, T_k, device) if causal else torch.ones(T_q, T_k, dtype=torch.bool, device=device)
    return visible[None, None, None] if key_mask is None else visible & key_mask[:, None, None, None, :T_k]


def apply_softplus_attention(
    model: Model,
    *,
    power: float | None = 15.0,
    qk_norm: bool = True,
    reweight_at: Literal["train", "eval"] = "train",
) -> Model:
    """Put softplus attention into every layer of a rotary decoder of transformers; `common.restore` takes it out.

    For a model that is to be trained with it, or was: a model trained with softmax does not survive the change. Save
    the weights as usual and call this again after loading them. Decoding with a cache gives what prefill gives.

    Args:
        model: see `common.apply`. Changed in place.
        power, qk_norm: see `softplus_attention`. With `qk_norm=False` the model's own factor of the scores is kept.
        reweight_at: "train" re-weights always, as in the published models; "eval" only while `model.training` is
            off, for a model trained with stage 1 alone.

    Returns:
        The model.

    Raises:
        ValueError: a model that `common.check_model` refuses, or an option outside its range.
    """
    if reweight_at not in ("train", "eval"):
        raise ValueError(f"reweight_at is {reweight_at!r}; allowed: 'train', 'eval'")
    _check_power(power)
    attention = partial(_attention, power=power, qk_norm=qk_norm, reweight_at=reweight_at)
    return common.apply(model, "softplus-attention", attention)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    module: nn.Module,
    power: float | None,
    qk_norm: bool,
    reweight_at: Literal["train", "eval"],
    **kwargs: Any,
) -> Tensor:
    now = None if reweight_at == "eval" and module.training else power
    factor = math.log(q.shape[-1]) * (1.0 if qk_norm else scale)
    return softplus_attention(q, k, v, power=now, qk_norm=qk_norm, key_mask=key_mask, scale=factor)


def naive_softplus_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    power: float | None = 15.0,
    qk_norm: bool = True,
    causal: bool = True,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    offset: float = 1.0,
    warm_rows: int = 3,
) -> Tensor:
    """Return what `softplus_attention` does, by the definition: one row at a time, the power taken as it is written."""
    batch, heads, length, width = q.shape
    if scale is None:
        scale = math.log(width) if qk_norm else math.log(width) / math.sqrt(width)
    out = torch.zeros(batch, heads, length, v.shape[-1], dtype=v.dtype)
    for b, h, i in itertools.product(range(batch), range(heads), range(length)):
        group, position = h // (heads // k.shape[1]), i + k.shape[2] - length
        seen = [j for j in range(k.shape[2]) if (not causal or j <= position) and (key_mask is None or key_mask[b, j])]
        if not seen:
            continue
        keys, n = k[b, group, seen], len(seen)
        products = F.cosine_similarity(q[b, h, i], keys, dim=-1) if qk_norm else keys @ q[b, h, i]
        weights = F.softplus(scale * math.log(n) * products)
        weights = weights / weights.sum()
        if power is not None:
            excess = (n * weights - (offset if n > warm_rows else 0.0)).relu()
            weights = excess**power / (excess**power).sum() if excess.max() > UNIFORM else torch.zeros_like(excess)
        out[b, h, i] = weights @ v[b, group, seen]
    return out
