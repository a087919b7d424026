"""Attention to blocks of keys with its log-sum-exp, by torch's fused kernels.

`scaled_dot_product_attention` computes the log-sum-exp and keeps it to itself; the kernels below it return it, so that
parts of a sparse pattern can be computed one by one and merged (`common.merge`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.common import causal_mask, check_inputs, dense_attention, repeat_heads

FEW = 32
"""Keys for which plain matrix products beat the kernel on a CPU: for 10 it takes as long as for 100."""

EVEN = 16
"""Numbers of keys that are multiples of it save the kernel some hundredths of its time."""


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `dense_attention` with `return_lse` does, without holding the scores.

    Blocks may be strided views; without a dense last axis they are copied. What the kernels do not serve (gradients of
    the log-sum-exp, other devices than CPU and CUDA, d != d_v, no keys) `dense_attention` does. A NaN in a key that is
    masked may come out as NaN.

    Args:
        q, k, v, scale, mask: as in `dense_attention`.
        causal: as there, but False by default.

    Returns:
        out (B, H_q, T_q, d_v) and lse (B, H_q, T_q).
    """
    check_inputs(q, k, v, mask=mask)
    if _trains(q, k, v) or not _served(q, k, v):
        return dense_attention(q, k, v, causal=causal, scale=scale, mask=mask, return_lse=True)
    flag = causal and mask is None and q.shape[2] == k.shape[2]  # the kernels align causal masks to the first key
    if causal and not flag and q.shape[2] > 1:
        seen = causal_mask(q.shape[2], k.shape[2], q.device)
        mask = seen.view(1, 1, *seen.shape) if mask is None else _hide(mask, ~seen)
    bias = mask if mask is None or mask.dtype != torch.bool else torch.where(mask, 0.0, -torch.inf)
    q, k, v = _ready(q, k, v)
    few = q.device.type == "cpu" and q.shape[2] > k.shape[2] and k.shape[2] <= FEW
    out, lse = _products(q, k, v, bias, scale) if few else _kernel(q, k, v, bias, flag, scale)
    if mask is not None:  # lse may be 0 or NaN where a query sees no key
        sees = (mask if mask.dtype == torch.bool else mask != -torch.inf).any(dim=-1)
        if q.device.type == "cuda" or not bool(sees.all()):  # a copy is cheaper than to wait for a GPU's answer
            out, lse = out.masked_fill(~sees.unsqueeze(-1), 0.0), lse.masked_fill(~sees, -torch.inf)
    return out, lse


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _served(q: Tensor, k: Tensor, v: Tensor) -> bool:
    known = q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype != torch.float64)
    return known and q.shape[-1] == v.shape[-1] and 0 not in (*q.shape, *k.shape)


def _ready(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Return them with as many heads each and the last axis dense: kernels take that for granted and do not look."""
    heads = q.shape[1]
    return tuple(x if x.stride(3) == 1 else x.contiguous() for x in (q, repeat_heads(k, heads), repeat_heads(v, heads)))


def _hide(mask: Tensor, hidden: Tensor) -> Tensor:
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, -torch.inf)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attend by matrix products, the scores in memory."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(exact) @ k.to(exact).mT
    scores *= q.shape[-1] ** -0.5 if scale is None else scale
    if bias is not None:
        scores += bias.to(exact)
    top = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    out = weights.div_(total) @ v.to(exact)
    return out.to(q.dtype), (top + total.log()).squeeze(-1)


def _kernel(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    bias = None if bias is None else bias.to(q.dtype)
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        return out, lse
    if bias is None and _flash_serves(q, k, v, causal):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return out, lse
    if bias is not None:  # this kernel wants the whole bias, in rows that start at multiples of 16 bytes
        room = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        bias = room.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, _, _ = efficient(q, k, v, bias, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]


def _flash_serves(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> bool:
    """Return whether FlashAttention does: faster than the kernel that takes a bias, but for half precision alone."""
    given = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, causal, False)
    return len(q) < 2**16 and torch.backends.cuda.can_use_flash_attention(given)  # what a grid of blocks can number


def trainable_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `fused_attention` does, with gradients by the kernel too on a CPU if d = d_v.

    Args:
        q, k, v, scale: as in `dense_attention`.
        causal: takes as many queries as keys.
        bias: added to the scores; it must leave each query a key.

    Returns:
        out (B, H_q, T_q, d_v) and lse (B, H_q, T_q).
    """
    trains = _trains(q, k, v)
    if not _served(q, k, v) or (trains and q.device.type != "cpu"):
        return fused_attention(q, k, v, scale=scale, causal=causal, mask=bias)
    q, k, v = _ready(q, k, v)
    if not trains:
        return _kernel(q, k, v, bias, causal, scale)
    found: tuple[Tensor, Tensor] = _FusedAttention.apply(q, k, v, scale, causal, bias)  # type: ignore[no-untyped-call]
    return found


def joined(parts: list[tuple[Tensor, Tensor]], dim: int = 0) -> tuple[Tensor, Tensor]:
    """Return the outputs and the log-sum-exps of other queries each, one after the other along a dimension of both."""
    out, lse = zip(*parts, strict=True)
    return parts[0] if len(parts) == 1 else (torch.cat(out, dim), torch.cat(lse, dim))


class _FusedAttention(torch.autograd.Function):
    """torch's fused CPU kernel with the log-sum-exp that it computes anyway, and with that one's gradient.

    Its backward takes dS = P (dO V^T - rowsum(dO O)). A gradient g of the log-sum-exp adds P g: what a further column
    of V gives that is 1 where that column of dO is g and that of O is 0.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        ctx.save_for_backward(q, k, v, out, lse, bias)
        ctx.scale, ctx.causal = scale, causal
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, bias = ctx.saved_tensors
        grad_out, grad_lse = gradients
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(-1).to(grad_out.dtype)], dim=-1)
        q, k, out, v = F.pad(q, (0, 1)), F.pad(k, (0, 1)), F.pad(out, (0, 1)), F.pad(v, (0, 1), value=1.0)
        found = kernel(grad_out, q, k, v, out, lse, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale)
        return *(x[..., :-1] for x in found), None, None, None
