"""MInference: read long prompts with sparse attention whose shape is fixed per head and whose places are found anew.

Most weights of a long prompt are negligible. Each head gets one of three shapes beforehand (`search`); where exactly
its lines or blocks lie is estimated for each prompt. Shapes, for T keys in blocks of c (64, as published):

    A-shape           the first n_init columns and the nearest n_local diagonals; nothing is estimated
    vertical-slash    A = softmax(scale Q K^T) of the last 64 queries only, causal; column j has sum_i A_ij, diagonal o
                      has sum_i A_i,i-o. Kept: the first columns and nearest diagonals, then those with the largest sums
    block-sparse      means of q and k over blocks; of each block of queries, the n_blocks earlier or own blocks of keys
                      with the largest product of means

What is computed, and nothing else, is the mask M: with a = c floor(i / c), the start of the block of query i,

    lines     M_ij = j <= i  and  (j is a kept column,  or a - o <= j < a - o + c for a kept diagonal o)
    blocks    M_ij = j <= i  and  block floor(j / c) is kept for block floor(i / c)

so diagonals are as wide as a block; c = 1 makes them exact lines. The own block always counts: rows would lose
themselves without it. Heads that share keys may differ. Only the prompt is sparse, decoding stays dense and so does the
cache. Nothing is trained. Sizes are absolute: those published are for 30k tokens and more, and cover short prompts.

Source: Jiang et al., "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention",
NeurIPS 2024, arXiv 2407.02490, and the authors' code for the estimates, what is always kept, the widening and the
search. Theirs can drop a block-sparse row's own block; and runs A-shape and block-sparse heads as vertical-slash.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import nearest
from workingpapers.methods.attention import common, listed
from workingpapers.methods.attention.choices import load_choice, save_choice
from workingpapers.methods.attention.common import Model, check_inputs, dense_attention, repeat_heads
from workingpapers.methods.attention.fused import fused_attention, joined
from workingpapers.methods.attention.minference_patterns import (
    KINDS,
    AShape,
    BlockSparse,
    Pattern,
    VerticalSlash,
    check_sizes,
    find_all,
    naive_mask,
)
from workingpapers.methods.attention.padding import check_key_mask, unseen
from workingpapers.methods.attention.parallel import each

CANDIDATES: tuple[Pattern, ...] = (
    AShape(100, 800),
    *(VerticalSlash(*sizes) for sizes in ((30, 800), (100, 750), (500, 700), (3500, 100))),
    BlockSparse(100),
)
"""What the authors search among, with prompts of 30k tokens."""


def minference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Pattern | Sequence[Pattern],
    *,
    block_size: int = 64,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention to what the patterns find.

    Rows of a padded batch are treated one by one without their padding, as if each came alone.

    Args:
        q, k, v: (B, H_q, T_q, d), (B, H_kv, T, d), (B, H_kv, T, d_v); the queries are the last T_q of the T positions.
        patterns: one for all heads, or one per query head.
        block_size: c (64, as published).
        scale: factor of the scores; None takes d^-1/2.
        key_mask: (B, T) booleans, False for padding; None without padding.

    Returns:
        out (B, H_q, T_q, d_v) in the dtype of q and lse (B, H_q, T_q) in float32 at least; 0 and -inf at padding.

    Raises:
        ValueError: shapes that don't fit, another number of patterns than heads, block_size < 1, NaN or infinity.
    """
    heads = _checked(q, k, v, patterns, block_size, key_mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    past, rows = k.shape[2] - q.shape[2], [slice(b, b + 1) for b in range(q.shape[0])]
    if key_mask is None and rows:
        return joined([_attend(q[b], k[b], v[b], heads, block_size, scale) for b in rows])
    out, lse = unseen(q, v)
    for b, real in zip(rows, key_mask if key_mask is not None else (), strict=True):
        found = _attend(q[b, :, real[past:]], k[b, :, real], v[b, :, real], heads, block_size, scale)
        out[b, :, real[past:]], lse[b, :, real[past:]] = found
    return out, lse


def _attend(
    q: Tensor, k: Tensor, v: Tensor, heads: Sequence[Pattern], block_size: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend in one sequence, B = 1, without padding."""
    check_inputs(q, k, v, finite=True)
    if q.shape[2] == 0:
        return unseen(q, v)
    if listed.available(q, k, v):
        found = find_all(q[0], k[0], heads, block_size, scale)
        seen = listed.of_patterns(found, q.shape[2], k.shape[2], block_size)
        return listed.attended(q, k, v, seen, scale=scale)
    group = q.shape[1] // k.shape[1]

    def attend(h: int) -> tuple[Tensor, Tensor]:
        queries, keys, values = q[0, h], k[0, h // group], v[0, h // group]
        [lines] = heads[h].find(queries[None], keys[None], block_size=block_size, scale=scale)
        return lines.attend(queries, keys, values, block_size=block_size, scale=scale)

    out, lse = zip(*each(attend, range(len(heads)), q, k, v), strict=True)
    return torch.stack(out)[None], torch.stack(lse)[None]


def _checked(
    q: Tensor, k: Tensor, v: Tensor, patterns: Pattern | Sequence[Pattern], block_size: int, key_mask: Tensor | None
) -> Sequence[Pattern]:
    """Return one pattern per query head."""
    check_inputs(q, k, v)
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"causal attention takes at most as many queries as keys; got {q.shape[2]}, {k.shape[2]}")
    if block_size < 1:
        raise ValueError(f"block_size must be 1 or more; got {block_size}")
    if key_mask is not None:
        check_key_mask(key_mask, k.shape[0], k.shape[2])
    heads = [patterns] * q.shape[1] if isinstance(patterns, Pattern) else patterns
    if len(heads) != q.shape[1]:
        raise ValueError(f"one pattern per query head is needed: {len(heads)} patterns for {q.shape[1]} heads")
    return heads


def naive_minference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: Pattern | Sequence[Pattern],
    *,
    block_size: int = 64,
    scale: float | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `minference_attention` does by dense attention under the explicit mask (B, H_q, T_q, T)."""
    heads = _checked(q, k, v, patterns, block_size, key_mask)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    keys = repeat_heads(k, q.shape[1])
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        real = torch.arange(k.shape[2]) if key_mask is None else key_mask[b].nonzero().flatten()
        rows = real[real >= k.shape[2] - q.shape[2]] - (k.shape[2] - q.shape[2])
        if len(rows):
            found = naive_mask(heads[h], q[b, h, rows], keys[b, h, real], block_size=block_size, scale=scale)
            mask[b, h, rows[:, None], real] = found
    return dense_attention(q, k, v, causal=False, scale=scale, mask=mask, return_lse=True)


def recovered_mass(
    q: Tensor,
    k: Tensor,
    patterns: Pattern | Sequence[Pattern],
    *,
    block_size: int = 64,
    scale: float | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Return sum_j M_ij A_ij (B, H_q, T_q), the share of each row's dense attention weights A that a mask keeps.

    Args:
        q, k, patterns, block_size, scale: as in `minference_attention`.
        lse: (B, H_q, T_q) log-sum-exp of dense causal attention, if known.
    """
    if lse is None:
        lse = fused_attention(q, k, k, causal=True, scale=scale)[1]
    return (minference_attention(q, k, k, patterns, block_size=block_size, scale=scale)[1] - lse).exp()


@dataclass(frozen=True)
class MInference:
    """What each head of a model does with a prompt.

    Args:
        heads: a pattern for each query head of each layer.
        block_size: c (64, as published).
    """

    heads: tuple[tuple[Pattern, ...], ...]
    block_size: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, block_size=1)


def everywhere(model: Any, pattern: Pattern, *, block_size: int = 64) -> MInference:
    """Return the choice of one pattern for all heads of a model."""
    layers, heads = _sizes(model)
    return MInference(((pattern,) * heads,) * layers, block_size)


def _sizes(model: Any) -> tuple[int, int]:
    common.check_model(model)
    return len(common.attention_layers(model)), model.config.num_attention_heads


def _check_fits(model: Any, choice: MInference) -> None:
    layers, heads = _sizes(model)
    if [len(layer) for layer in choice.heads] != [heads] * layers:
        sizes = sorted({len(layer) for layer in choice.heads})
        raise ValueError(
            f"{type(model).__name__} has {layers} layers of {heads} heads; the choice has {len(choice.heads)} of "
            f"{' or '.join(map(str, sizes))}"
        )


def apply(model: Model, choice: MInference) -> Model:
    """Let a rotary decoder of transformers read prompts sparsely; `common.restore` undoes it.

    Single tokens attend densely to the ordinary cache; later parts of a prompt that come with a cache are sparse too.

    Args:
        model: see `common.apply`. Changed in place.
        choice: from `search`, `freeze`, `everywhere` or `load`.

    Raises:
        ValueError: a model that `common.check_model` refuses, or one with other layers or heads than the choice.
    """
    _check_fits(model, choice)
    return common.apply(model, "minference", partial(_attention, choice=choice))


@torch.compiler.disable  # tracing takes long and gains nothing
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    module: Any,
    choice: MInference,
    **kwargs: Any,
) -> Tensor:
    if q.shape[2] == 1:
        mask = None if key_mask is None else key_mask[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    patterns = choice.heads[module.layer_idx]
    return minference_attention(q, k, v, patterns, block_size=choice.block_size, scale=scale, key_mask=key_mask)[0]


def _observe(model: Any, input_ids: Tensor, look: Callable[[int, Tensor, Tensor, Tensor, float], None]) -> None:
    """Run a model as it is, and show layer number, queries, keys, dense log-sum-exp and scale of every layer."""
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError(f"input_ids must be (B, T) with a token at least; got {tuple(input_ids.shape)}")

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, key_mask: Tensor | None, module: Any, **kwargs: Any
    ) -> Tensor:
        out, lse = fused_attention(q, k, v, causal=True, scale=scale)
        look(module.layer_idx, q, k, lse, scale)
        return out

    trained = [module for module in model.modules() if module.training]
    common.apply(model, "minference-search", attention)
    try:
        with torch.no_grad():
            model.eval().base_model(input_ids=input_ids, use_cache=False)
    finally:
        common.restore(model)
        for module in trained:
            module.training = True


def measure(model: Any, input_ids: Tensor, choices: Sequence[MInference]) -> tuple[Tensor, Tensor]:
    """Return how much of a model's dense attention some choices keep, and what they compute, on some prompts.

    Args:
        model: see `apply`; left as it was.
        input_ids: (B, T) tokens without padding.
        choices: C of them.

    Returns:
        mass (C, layers, heads): recovered attention, averaged over the rows but the first T // 12, which see little
            anyway (the authors leave out 2,500 of 30k); share (C, layers, heads): pairs scored, of all causal ones.

    Raises:
        ValueError: a model that can't be used or that runs a function of this package, or choices that don't fit.
    """
    for choice in choices:
        _check_fits(model, choice)
    length = input_ids.shape[-1]
    mass, share = torch.zeros(2, len(choices), *_sizes(model))

    def look(layer: int, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> None:
        for c, choice in enumerate(choices):
            patterns, size = choice.heads[layer], choice.block_size
            kept = recovered_mass(q, k, patterns, block_size=size, scale=scale, lse=lse)
            mass[c, layer] = kept[:, :, length // 12 :].mean(dim=(0, 2)).cpu()
            for b in range(len(q)):
                found = find_all(q[b], k[b], patterns, size, scale)
                share[c, layer] += torch.tensor([x.entries(length, size) for x in found])

    _observe(model, input_ids, look)
    return mass, share / (len(input_ids) * length * (length + 1) / 2)


def search(
    model: Any, input_ids: Tensor, candidates: Sequence[Pattern] = CANDIDATES, *, block_size: int = 64
) -> tuple[MInference, Tensor, Tensor]:
    """Choose for every head the candidate that recovers most of its attention; they should cost about the same.

    Args:
        model, input_ids: as in `measure`; a long prompt that makes the model look around.
        candidates: what to choose from; the default is made for prompts of 30k tokens.
        block_size: c.

    Returns:
        The choice, then mass and share (candidates, layers, heads) as from `measure`.
    """
    if not candidates:
        raise ValueError("search needs candidates; got none")
    mass, share = measure(model, input_ids, [everywhere(model, c, block_size=block_size) for c in candidates])
    best = tuple(tuple(candidates[i] for i in layer) for layer in mass.argmax(dim=0).tolist())
    return MInference(best, block_size), mass, share


def freeze(model: Any, input_ids: Tensor, choice: MInference) -> MInference:
    """Return the choice with the lines and blocks that it finds in one prompt (1, T), to be kept for all others."""
    _check_fits(model, choice)
    if len(input_ids) != 1:
        raise ValueError(f"indices can be kept from one prompt; got {len(input_ids)}")
    heads: list[tuple[Pattern, ...]] = [()] * len(choice.heads)

    def look(layer: int, q: Tensor, k: Tensor, lse: Tensor, scale: float) -> None:
        heads[layer] = tuple(find_all(q[0], k[0], choice.heads[layer], choice.block_size, scale))

    _observe(model, input_ids, look)
    return MInference(tuple(heads), choice.block_size)


def save(path: str | Path, model: nn.Module, choice: MInference) -> None:
    """Write a choice that was made for a model to a JSON file tied to that model."""
    names = {kind: name for name, kind in KINDS.items()}

    def fields(pattern: Pattern) -> dict[str, Any]:
        return {n: x.tolist() if isinstance(x, Tensor) else x for n, x in asdict(pattern).items()}

    heads = [[{"kind": names[type(p)], **fields(p)} for p in layer] for layer in choice.heads]
    save_choice(path, "minference", model, {"block_size": choice.block_size, "heads": heads})


def load(path: str | Path, model: nn.Module) -> MInference:
    """Return the choice of a file that `save` wrote.

    Raises:
        ValueError: a file of another kind, or of another model; patterns that don't exist or are out of range.
        FileNotFoundError: no file.
    """
    content = load_choice(path, "minference", model)
    try:
        heads = tuple(tuple(_pattern(**fields) for fields in layer) for layer in content["heads"])
        choice = MInference(heads, content["block_size"])
        _check_fits(model, choice)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no patterns for this model: {error}") from error
    return choice


def _pattern(kind: str, **fields: Any) -> Pattern:
    if kind not in KINDS:
        raise ValueError(f"unknown kind of pattern {kind!r}. {nearest(str(kind), KINDS)}")
    empty = torch.zeros(0, dtype=torch.long)
    given: dict[str, Any] = {
        n: (torch.tensor(x) if x else empty) if isinstance(x, list) else x for n, x in fields.items()
    }
    return KINDS[kind](**given)
