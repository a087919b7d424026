"""What every attention variant of this package shares: conventions, the dense reference, merging, and the door.

Tensors are (B, H, T, d): queries (B, H_q, T_q, d), keys (B, H_kv, T_k, d), values (B, H_kv, T_k, d_v), and H_q is a
multiple of H_kv (grouped-query heads: head h of the queries reads head h // (H_q / H_kv) of keys and values). The
queries are the *last* T_q of the T_k positions, so one convention serves prefill and decoding with a cache:

    s_ij = scale q_i . k_j + mask_ij          j <= i + T_k - T_q when causal; scale = d^-1/2 unless given
    out_i = sum_j exp(s_ij - lse_i) v_j       lse_i = log sum_j exp(s_ij)

A row that sees no key has out 0 and lse -inf. A NaN in a visible key, value or query comes out as NaN. Softmax and lse
are computed in float32 at least.

Two attentions over disjoint keys are one attention over their union, by their log-sum-exps (`merge`):

    lse = log(e^lse1 + e^lse2)                out = e^(lse1 - lse) out1 + e^(lse2 - lse) out2

`apply` puts an attention function into a rotary (RoPE) decoder of transformers through its attention interface, and
`restore` takes it out again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Literal

    from transformers import PreTrainedModel

    from workingpapers.methods.attention.interface import Applied

Model = TypeVar("Model", bound="PreTrainedModel")


def check_inputs(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, finite: bool = False) -> None:
    """Check queries, keys and values against the conventions of this package.

    Args:
        q, k, v: (B, H_q, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d_v); any length may be 0.
        mask: None, or what broadcasts to (B, H_q, T_q, T_k): boolean (True where a query may look), or floating and
            added to the scores.
        finite: also refuse NaN and infinity. Methods that pick keys by their size need it, for a comparison with NaN
            is false and would drop the key silently.

    Raises:
        ValueError: shapes, head counts or data types that do not fit together, or (`finite`) values that are not.
    """
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"attention takes 4-D tensors (B, H, T, d); got {shapes}")
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v need one floating dtype; got {q.dtype}, {k.dtype}, {v.dtype}")
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[1:3] != v.shape[1:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q, k and v must agree in B, k and v in H and T, q and k in d; got {shapes}")
    if 0 in (q.shape[3], v.shape[3]):
        raise ValueError(f"queries, keys and values must be 1 or more wide; got {shapes}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the {q.shape[1]} query heads must be a multiple of the {k.shape[1]} key heads; got {shapes}")
    if mask is not None:
        full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        if mask.ndim != 4 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
            raise ValueError(f"mask must broadcast to (B, H, T_q, T_k) = {full}; got {tuple(mask.shape)}")
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"mask must be boolean (True: may look) or floating (added); got {mask.dtype}")
    if finite:
        exact = torch.promote_types(q.dtype, torch.float32)
        if (q.sum(dtype=exact) + k.sum(dtype=exact) + v.sum(dtype=exact)).isfinite():
            return  # which is proof in one pass; the sum of large numbers may not be finite
        for name, x in (("q", q), ("k", k), ("v", v)):
            if not torch.isfinite(x).all():
                raise ValueError(f"{name} holds NaN or infinity; this method picks keys by value and would drop them")


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each head of keys or values (B, H_kv, T, d) so that there are `heads` of them, (B, heads, T, d)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def causal_mask(T_q: int, T_k: int, device: torch.device | None = None) -> Tensor:
    """Return (T_q, T_k), True where a query may look: the last query sees every key, the one before it one fewer."""
    return torch.ones(T_q, T_k, dtype=torch.bool, device=device).tril(T_k - T_q)


@overload
def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by its definition: the reference that every variant is tested against.

    Args:
        q, k, v: (B, H_q, T_q, d), (B, H_kv, T_k, d), (B, H_kv, T_k, d_v).
        causal: query i sees keys up to i + T_k - T_q (default), or all of them.
        scale: factor of the scores; None takes d^-1/2.
        mask: see `check_inputs`; on top of `causal`.
        return_lse: also return the log-sum-exp of the scores.

    Returns:
        (B, H_q, T_q, d_v) in the dtype of q; with `return_lse` also (B, H_q, T_q) in float32 (float64 for float64).

    Raises:
        ValueError: see `check_inputs`.
    """
    check_inputs(q, k, v, mask=mask)
    exact = torch.promote_types(q.dtype, torch.float32)
    keys, values = (repeat_heads(x, q.shape[1]).to(exact) for x in (k, v))
    scores = q.to(exact) @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.to(exact)
    if causal:
        scores = scores.masked_fill(~causal_mask(q.shape[2], k.shape[2], q.device), -torch.inf)
    # logsumexp of nothing is -inf; subtracting 0 there instead gives weights of exactly 0, and gradients of 0. Where it
    # is so large that its rounding counts, weights do not sum to 1 by themselves.
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.detach().masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
    total = weights.sum(dim=-1, keepdim=True)
    out = (weights @ values / total.masked_fill(total == 0, 1.0)).to(q.dtype)
    return (out, lse) if return_lse else out


def merge(out1: Tensor, lse1: Tensor, out2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Merge the attentions of the same queries over two disjoint sets of keys.

    Args:
        out1, out2: (B, H, T, d_v).
        lse1, lse2: (B, H, T), -inf where a query saw no key.

    Returns:
        out (B, H, T, d_v) in the dtype of out1, lse (B, H, T).

    Raises:
        ValueError: shapes that differ.
    """
    if out1.shape != out2.shape or lse1.shape != lse2.shape or out1.shape[:-1] != lse1.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (out1, lse1, out2, lse2))
        raise ValueError(f"merge takes out (B, H, T, d) and lse (B, H, T), twice; got {shapes}")
    lse = torch.logaddexp(lse1, lse2)
    # e^(lse2 - lse), which is 0 where the second saw nothing; one pass over the outputs does the rest.
    share = torch.sigmoid((lse2 - lse1).masked_fill(lse2 == -torch.inf, -torch.inf)).unsqueeze(-1)
    return out1.to(share.dtype).lerp(out2.to(share.dtype), share).to(out1.dtype), lse


class Attention(Protocol):
    """An attention function as `apply` takes it: causal, the queries being the last T_q of the keys."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        key_mask: Tensor | None,
        module: nn.Module,
        **kwargs: Any,
    ) -> Tensor:
        """Return (B, H_q, T_q, d).

        Args:
            q, k, v: rotated queries (B, H_q, T_q, d), rotated keys and values (B, H_kv, T_k, d) from the cache on.
            scale: factor of the scores.
            key_mask: (B, length) boolean, False for padding, or None when nothing is padded; `length` counts every
                token so far, which is T_k unless the cache dropped some.
            module: the attention layer; `module.layer_idx` is its number.
            kwargs: what else the layer got, `position_ids` (B or 1, T_q) among it; and `held_keys`, what the cache
                holds: k itself or, under autocast, what k was rounded from.
        """
        ...


Prepare = Callable[[nn.Module, dict[str, Any]], dict[str, Any]]


_APPLIED = "_workingpapers_attention"


def apply(model: Model, name: str, attention: Attention, *, prepare: Prepare | None = None) -> Model:
    """Put an attention function into every layer of a rotary decoder; `restore` undoes it.

    It is registered with transformers' attention and mask interfaces under a name of its own (no other model is
    touched), and selected. Padding reaches it as (B, T) rather than as a (T, T) mask, so memory stays linear in T. A
    model that is copied or pickled takes it along; for that, pickle must know `attention` and `prepare` by their names:
    functions of a module, or `functools.partial`s of them.

    Args:
        model: a decoder of transformers with rotary positions, for instance of the Llama, Mistral, Qwen, SmolLM, Phi
            or Gemma families. Changed in place.
        name: what the method is called, for messages and in `model.config._attn_implementation`.
        attention: the function, see `Attention`.
        prepare: called before each forward pass of the base model with (base model, its keyword arguments); returns
            the keyword arguments to use. Extra ones arrive in every call of `attention` and of the cache's `update`.

    Returns:
        The model.

    Raises:
        ValueError: a model that `check_model` refuses, or one that already has a function of this package.
    """
    from workingpapers.methods.attention.interface import Applied

    check_model(model)
    if hasattr(model, _APPLIED):
        raise ValueError(f"the model already runs {getattr(model, _APPLIED).name!r}; call restore(model) first")
    names = tuple(inspect.signature(model.base_model.forward).parameters)
    applied = Applied(name, attention, prepare, names, model.config._attn_implementation)
    if prepare is not None:
        applied.hook = model.base_model.register_forward_pre_hook(applied.before, with_kwargs=True)
    setattr(model, _APPLIED, applied)
    model.set_attn_implementation(applied.key)
    return model


def restore(model: Model) -> Model:
    """Give a model back the attention that it had before `apply`, and return it.

    Raises:
        ValueError: nothing was applied.
    """
    applied: Applied | None = vars(model).get(_APPLIED)
    if applied is None:
        kind, inside = type(model).__name__, "; restore the model inside it" * hasattr(model, _APPLIED)
        raise ValueError(f"nothing to restore: no function of this package was applied to this {kind}{inside}")
    model.set_attn_implementation(applied.replaced)
    if applied.hook is not None:
        applied.hook.remove()
    delattr(model, _APPLIED)
    return model


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """Return the attention layers of a model of transformers, in order."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]


def rotary_embedding(model: nn.Module) -> nn.Module:
    """Return the module that makes the cosines and sines of a rotary decoder of transformers, shared by its layers.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} rotary position embeddings; exactly 1 is supported")
    return found[0]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn vectors by angles, in the layout of Llama: dimension a turns with dimension a + r / 2.

    Args:
        x: (..., d). Its first r dimensions turn, the others stay (partial rotary embeddings).
        angles: (..., r / 2) in radians, r <= d; cosines and sines are taken in its precision.

    Returns:
        Like x.
    """
    r = 2 * angles.shape[-1]
    exact = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(exact), angles.sin().to(exact)
    first, second = x[..., : r // 2], x[..., r // 2 : r]  # products are of the type of cos
    turned = (first * cos).addcmul(second, sin, value=-1), (second * cos).addcmul(first, sin)
    return torch.cat([*(half.to(x.dtype) for half in turned), *([x[..., r:]] if r < x.shape[-1] else [])], dim=-1)


def check_model(model: nn.Module) -> None:
    """Check that a model is a rotary decoder into which an attention function can be put.

    Raises:
        ValueError: not a model of transformers that takes attention functions; an encoder; no rotary positions; soft
            caps on the scores (Gemma 2), learned sinks (GPT-OSS), or layers with a sliding window of their own.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a model of transformers (PreTrainedModel); got {type(model).__name__}")
    kind, config, layers = type(model).__name__, model.config, attention_layers(model)
    if getattr(config, "is_encoder_decoder", False) or not all(layer.is_causal for layer in layers):
        raise ValueError(f"{kind} has attention layers that are not causal (an encoder); only decoders are supported")
    rotary_embedding(model)
    if not layers or not model._supports_attention_backend:
        raise ValueError(f"{kind} does not take attention functions through transformers' attention interface")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ValueError(
            f"{kind} caps its scores (attn_logit_softcapping={config.attn_logit_softcapping}), "
            "which this package's functions do not; only attn_logit_softcapping=None is supported"
        )
    if any(hasattr(layer, "sinks") for layer in layers):
        raise ValueError(f"{kind} has learned attention sinks, which this package's functions do not know")
    local = _window_layers(config)
    if local:
        raise ValueError(f"{kind} has layers that do not see every token: {local}; only full attention is supported")


def _window_layers(config: Any) -> str:
    """Name the layers that are not full attention, or return ""."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return ", ".join(f"{i} ({t})" for i, t in enumerate(types) if t != "full_attention")
    window = getattr(config, "sliding_window", None)
    return "" if window is None else f"all (sliding_window={window})"
