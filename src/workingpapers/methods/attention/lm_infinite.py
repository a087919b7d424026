"""LM-Infinite: a Λ-shaped mask and a limited distance keep a model fluent beyond its training length.

A model meets three things in long inputs that training never showed it: larger distances, more keys in a softmax, and
text whose first tokens are out of sight. So every query sees the last n_l tokens and the first n_g, and the latter
never farther away than L. With R_p the rotation of position p, t = i - j, and one softmax over both branches,

    local    s_ij = scale (R_i q_i) . (R_j k_j)     where 0 <= t < n_l
    sinks    s_ij = scale (R_L q_i) . (R_0 k_j)     where t >= n_l and j < n_g
    hidden                                          every other pair

Nothing is trained; up to n_l tokens nothing changes. Time and, with `LambdaCache`, decoding memory no longer depend
on what lies between: T (n_l + n_g) scores instead of T^2 / 2, of which the fast path computes T (n_l + n_g + block).
What left the window and is no sink is forgotten. The authors' optional retrieval of some middle keys is not included.

Defaults: n_l = L = the training length; n_g = 10, as published for retrieval and extreme lengths (10 to 100 are alike).
With L > n_l sinks jump to distance L as soon as they leave the window, as in the authors' code.

Queries and keys come here rotated, as a model's cache holds them. Scores depend on differences of positions only, so a
query is turned on by L - i and a sink back by j, i and j counting columns of the batch: neither left padding nor a
shift of all positions matters. Angles are differences in float64 of the float32 angles that the model used.

Source: Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", NAACL 2024, arXiv
2308.16137, section 4, and the authors' code (branches, window of n_l keys including the query's own).
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.attention import common
from workingpapers.methods.attention.common import Model, check_inputs, merge, repeat_heads, rotate
from workingpapers.methods.attention.fused import fused_attention
from workingpapers.methods.attention.padding import check_key_mask, first_real
from workingpapers.methods.attention.parallel import each
from workingpapers.methods.attention.windows import window_attention

ROWS = 2**11
"""Queries at a time on a CPU: what is computed for them stays in caches."""


def lambda_mask(length: int, n_local: int, n_global: int) -> Tensor:
    """Return (T, T) booleans, True where query i may look at key j: in its window, or at one of the first tokens."""
    i, j = torch.arange(length)[:, None], torch.arange(length)
    return (j <= i) & ((i - j < n_local) | (j < n_global))


def score_entries(length: int, n_local: int, n_global: int) -> int:
    """Return how many pairs `lambda_mask` keeps: what a layer has to score per head, at most T (n_local + n_global)."""
    ramp = min(length, n_local)
    late = max(0, length - n_local)  # rows that have left n_local behind them: 1, 2, ... of their first keys are sinks
    few = min(late, n_global)
    return ramp * (ramp + 1) // 2 + late * n_local + few * (few + 1) // 2 + (late - few) * n_global


def lambda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    inv_freq: Tensor,
    n_local: int,
    n_global: int = 10,
    distance_limit: int | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """Attention to the window and to the first tokens, in time linear in T.

    Args:
        q, k, v: (B, H_q, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d), rotated; the queries are the last T_q tokens.
        inv_freq: (r / 2,) angle per position of each pair of dimensions, r <= d; see `common.rotate` for the layout.
        n_local: size of the window, the query's own token included.
        n_global: the number of first real tokens that stay visible.
        distance_limit: L, at which first tokens appear that have left the window; None takes n_local.
        scale: factor of the scores; None takes d^-1/2.
        key_mask: (B, length) booleans, False for padding, on the left or right of each row; None without padding.
        length: how many tokens came so far. None takes T_k; more than T_k says that k and v are those of a
            `LambdaCache`, n_global sinks of each row followed by the last tokens.

    Returns:
        (B, H_q, T_q, d) in the dtype of q; zeros at padding.

    Raises:
        ValueError: shapes that don't fit, more frequencies than d / 2, n_local < 1, n_global < 0, distance_limit <
            n_local, or real tokens in more than one run.
    """
    check_inputs(q, k, v)
    limit = n_local if distance_limit is None else distance_limit
    _check_options(n_local, n_global, limit)
    length = k.shape[2] if length is None else length
    first = 0 if length == k.shape[2] else length - (k.shape[2] - n_global)
    if q.shape[2] > length or (first and not n_global < first <= length - q.shape[2] - n_local + 1):
        raise ValueError(
            f"{q.shape[2]} queries and {k.shape[2]} keys don't fit {length} tokens with n_local={n_local} and "
            f"n_global={n_global}: the cache holds too few or too many"
        )
    if 2 * len(inv_freq) > q.shape[3]:
        d = q.shape[3]
        raise ValueError(f"inv_freq has {len(inv_freq)} frequencies; at most {d // 2} turn {d} numbers")
    if key_mask is not None:
        check_key_mask(key_mask, q.shape[0], length)
    past = length - q.shape[2]
    sinks = _sinks(k, v, first, n_global, key_mask) if length > n_local and n_global > 0 else None
    if sinks:
        keys, values, columns = sinks
        angles = _angles(inv_freq, columns, 0)
        if q.shape[2] == 1:  # instead of the query, the sinks turn by its angle, the other way round
            angles = angles - _angles(inv_freq, columns.new_full((1,), past), limit)
        keys = rotate(keys, angles[:, None])
        if q.shape[2] == 1 and first and k.shape[2] == n_global + n_local and key_mask is None:
            keys = torch.cat([keys, k[:, :, n_global:]], dim=2)  # sees all of them: few operations, which a GPU starts
            return F.scaled_dot_product_attention(q, keys, v, scale=scale, enable_gqa=True)

    def to_sinks(low: int, high: int, all_seen: bool) -> tuple[Tensor, Tensor]:
        queries, rows = torch.arange(past + low, past + high, device=q.device), q[:, :, low:high]
        rows = rows if q.shape[2] == 1 else rotate(rows, _angles(inv_freq, queries, limit))
        if all_seen:
            return fused_attention(rows, keys, values, scale=scale)
        visible = queries[:, None] - columns[:, None, :] >= n_local  # (B or 1, rows, n_global)
        if key_mask is not None:
            visible = visible & key_mask.gather(1, columns.clamp(max=length - 1))[:, None, :]
        return fused_attention(rows, keys, values, scale=scale, mask=visible[:, None])

    step = ROWS if q.device.type == "cpu" else max(1, q.shape[2])

    def attend(low: int) -> list[Tensor]:
        high = min(low + step, q.shape[2])
        tail_mask = None if key_mask is None else key_mask[:, first : past + high]
        near = (x[:, :, n_global if first else 0 : past + high + k.shape[2] - length] for x in (k, v))
        out, lse = window_attention(q[:, :, low:high], *near, window=n_local, scale=scale, key_mask=tail_mask)
        if not sinks or low == high:
            return [out]
        # Before `late` all sinks are in the window, from `full` on none is, without padding: it moves them within rows.
        late = min(max(low, n_local - past), high)
        full = high if key_mask is not None else min(max(low, n_local - past + n_global - 1), high)
        parts = [out[:, :, : late - low]] if late > low else []
        for begin, end in itertools.pairwise(sorted({late, full, high})):
            rows = slice(begin - low, end - low)
            parts.append(merge(out[:, :, rows], lse[:, :, rows], *to_sinks(begin, end, begin == full))[0])
        return parts

    parts = list(itertools.chain(*each(attend, range(0, max(1, q.shape[2]), step), q, k, v)))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out if key_mask is None else out.masked_fill(~key_mask[:, None, -q.shape[2] :, None], 0.0)


def _sinks(k: Tensor, v: Tensor, first: int, n_global: int, key_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and columns (B or 1, n) of the sinks."""
    if key_mask is None:
        columns = torch.arange(min(n_global, k.shape[2]), device=k.device)[None]
        return k[:, :, :n_global], v[:, :, :n_global], columns
    columns = first_real(key_mask)[:, None] + torch.arange(n_global, device=k.device)
    return sinks_of(k, columns, first, n_global), sinks_of(v, columns, first, n_global), columns


def sinks_of(keys: Tensor, columns: Tensor, first: int, n_global: int) -> Tensor:
    """Return the keys (or values) of the sinks of each row.

    Args:
        keys: (B, H, n, d): either columns 0 to n - 1 (first = 0), or n_global sinks followed by columns from `first`.
        columns: (B, n_global) the columns of each row's sinks; columns that have not come yet give any key.
        first: the first column after the sinks.
        n_global: the number of sinks.

    Returns:
        (B, H, n_global, d).
    """
    tail = keys[:, :, n_global:] if first else keys
    index = (columns - first).clamp(0, tail.shape[2] - 1)[:, None, :, None]
    found = tail.gather(2, index.expand(tail.shape[0], tail.shape[1], n_global, tail.shape[3]))
    return torch.where((columns < first)[:, None, :, None], keys[:, :, :n_global], found) if first else found


def _angles(inv_freq: Tensor, positions: Tensor, target: int) -> Tensor:
    """Return (..., r / 2), the angles that turn what sits at `positions` on to `target`."""
    used = positions[..., None].float() * inv_freq.float()  # as the model computes them, rounding included
    return target * inv_freq.double() - used


def _check_options(n_local: int, n_global: int, limit: int) -> None:
    if n_local < 1 or n_global < 0:
        raise ValueError(f"need n_local >= 1 and n_global >= 0; got n_local={n_local}, n_global={n_global}")
    if limit < n_local:
        raise ValueError(f"distance_limit must be n_local={n_local} or more, not within the window; got {limit}")


def naive_lambda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    inv_freq: Tensor,
    n_local: int,
    n_global: int = 10,
    distance_limit: int | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The definition, pair by pair, on queries and keys that are *not* rotated: T^2 d memory.

    Args:
        q, k, v: (B, H_q, T, d), (B, H_kv, T, d), (B, H_kv, T, d), not rotated.
        inv_freq, n_local, n_global, distance_limit, scale: as in `lambda_attention`.
        key_mask: (B, T) booleans, False for padding; any pattern.

    Returns:
        (B, H_q, T, d); zeros at padding.
    """
    length, limit = q.shape[2], n_local if distance_limit is None else distance_limit
    real = torch.ones(q.shape[0], length, dtype=torch.bool) if key_mask is None else key_mask
    t = torch.arange(length)[:, None] - torch.arange(length)
    distance = torch.where(t < n_local, t, limit)
    each = q[:, :, :, None].expand(-1, -1, -1, length, -1)
    turned = rotate(each, distance[..., None] * inv_freq.double())  # (B, H, T, T, d): q_i at its distance from k_j
    scores = torch.einsum("bhijd,bhjd->bhij", turned, repeat_heads(k, q.shape[1]))
    number = real.cumsum(dim=1) - 1  # the how-manieth real token of its row
    sees = (t >= 0) & ((t < n_local) | (number[:, None, :] < n_global)) & real[:, None, :] & real[:, :, None]
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.masked_fill(~sees[:, None], -torch.inf).softmax(dim=-1).masked_fill(~sees[:, None], 0.0)
    return weights @ repeat_heads(v, q.shape[1])


def apply(model: Model, *, n_local: int | None = None, n_global: int = 10, distance_limit: int | None = None) -> Model:
    """Let a rotary decoder of transformers read on beyond its training length; `common.restore` undoes it.

    Caches that are new or empty become a `LambdaCache`, in `generate` too, so decoding takes constant memory.

    Args:
        model: see `common.apply`. Changed in place.
        n_local: size of the window; None takes `config.max_position_embeddings`, the training length.
        n_global, distance_limit: as in `lambda_attention`.

    Returns:
        The model.

    Raises:
        ValueError: a model that `common.check_model` refuses, one whose frequencies change with the length (rope types
            dynamic and longrope) or whose rotation pairs other dimensions than Llama's, or an option out of range.
    """
    common.check_model(model)
    n_local = model.config.max_position_embeddings if n_local is None else n_local
    _check_options(n_local, n_global, n_local if distance_limit is None else distance_limit)
    frequencies(model)
    attention = partial(_attention, n_local=n_local, n_global=n_global, distance_limit=distance_limit)
    prepare = partial(_prepare, n_local=n_local, n_global=n_global)
    return common.apply(model, "lm_infinite", attention, prepare=prepare)


@torch.compiler.disable  # tracing takes long and gains nothing
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    module: nn.Module,
    n_local: int,
    n_global: int,
    distance_limit: int | None,
    **kwargs: Any,
) -> Tensor:
    inv_freq = kwargs["lambda_inv_freq"]
    return lambda_attention(
        q,
        k,
        v,
        inv_freq=inv_freq if getattr(module, "use_rope", True) else torch.zeros_like(inv_freq),
        n_local=n_local,
        n_global=n_global,
        distance_limit=distance_limit,
        scale=scale,
        key_mask=key_mask,
        length=kwargs.get("lambda_length"),
    )


def _prepare(base: Any, kwargs: dict[str, Any], *, n_local: int, n_global: int) -> dict[str, Any]:
    kwargs = {**kwargs, "lambda_inv_freq": frequencies(base)}
    use_cache = kwargs.get("use_cache")
    if kwargs.get("cache") is not None or (base.config.use_cache if use_cache is None else use_cache):
        kwargs["cache"] = _prepared_cache(base, kwargs, n_local, n_global)
        tokens = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        kwargs["lambda_length"] = kwargs["cache"].get_seq_length() + tokens.shape[1]
    return kwargs


def _prepared_cache(base: Any, kwargs: dict[str, Any], n_local: int, n_global: int) -> Any:
    """Return the cache of a forward pass, whose layers know where each row's real tokens start."""
    from workingpapers.methods.attention.lambda_cache import LambdaLayer, prepared

    mask = kwargs.get("attention_mask")
    cache = prepared(kwargs.get("cache"), base.config.num_hidden_layers, n_local, n_global)
    start = None
    if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()):
        start = first_real(mask.bool())
    for layer in cache.layers:
        if isinstance(layer, LambdaLayer):
            layer.start = start
    return cache


def frequencies(model: nn.Module) -> Any:
    """Return the (r / 2,) frequencies of a model's rotary embedding, checking that they are fixed and turn as Llama's.

    They are read anew at each forward pass: a model may move, or get another basis.
    """
    layer = common.attention_layers(model)[0]
    half = getattr(sys.modules[type(layer).__module__], "rotate_half", None)
    if half is None or half(torch.arange(4)).tolist() != [-2, -3, 0, 1]:
        raise ValueError(f"{type(layer).__name__} rotates other pairs of dimensions than Llama; it is not supported")
    rotary = common.rotary_embedding(model)
    kinds = rotary.rope_type if isinstance(rotary.rope_type, dict) else {"": rotary.rope_type}
    for kind in kinds.values():
        if kind in ("dynamic", "longrope"):
            raise ValueError(
                f"rope type {kind!r} changes its frequencies with the length; LM-Infinite needs fixed ones"
            )
    return rotary.inv_freq if hasattr(rotary, "inv_freq") else rotary.full_attention_inv_freq
