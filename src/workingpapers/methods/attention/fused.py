"""Attention to blocks of keys with its log-sum-exp, by torch's fused kernels.

`scaled_dot_product_attention` computes the log-sum-exp and keeps it to itself; the kernels below it return it, so that
parts of a sparse pattern can be computed one by one and merged (`common.merge`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workingpapers.methods.attention.common import causal_mask, check_inputs, dense_attention, repeat_heads

FEW = 32
"""Keys for which plain matrix products beat the kernel on a CPU: for 10 it takes as long as for 100."""


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

    Blocks may be strided views, as long as the last axis is dense. What the kernels do not serve (gradients of the
    log-sum-exp, other devices than CPU and CUDA, d != d_v, no keys) `dense_attention` does. A NaN in a key that is
    masked may come out as NaN.

    Args:
        q, k, v, scale, mask: as in `dense_attention`.
        causal: as there, but False by default.

    Returns:
        out (B, H_q, T_q, d_v) and lse (B, H_q, T_q).
    """
    check_inputs(q, k, v, mask=mask)
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    served = q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype != torch.float64)
    if trains or not served or q.shape[-1] != v.shape[-1] or 0 in (*q.shape, *k.shape):
        return dense_attention(q, k, v, causal=causal, scale=scale, mask=mask, return_lse=True)
    flag = causal and mask is None and q.shape[2] == k.shape[2]  # the kernels align causal masks to the first key
    if causal and not flag and q.shape[2] > 1:
        seen = causal_mask(q.shape[2], k.shape[2], q.device)
        mask = seen.view(1, 1, *seen.shape) if mask is None else _hide(mask, ~seen)
    bias = mask if mask is None or mask.dtype != torch.bool else _hide(q.new_zeros(mask.shape), ~mask)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    few = q.device.type == "cpu" and q.shape[2] > k.shape[2] and k.shape[2] <= FEW
    out, lse = _products(q, k, v, bias, scale) if few else _kernel(q, k, v, bias, flag, scale)
    if bias is not None:  # lse may be 0 or NaN where a query sees no key
        blind = (bias == -torch.inf).all(dim=-1)
        if q.device.type == "cuda" or bool(blind.any()):  # a copy is cheaper than to wait for a GPU's answer
            out, lse = out.masked_fill(blind.unsqueeze(-1), 0.0), lse.masked_fill(blind, -torch.inf)
    return out, lse


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
    if bias is not None:  # this kernel wants the whole bias, in rows that start at multiples of 16 bytes
        room = torch.nn.functional.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
        bias = room.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    out, lse, _, _ = efficient(q, k, v, bias, True, 0.0, causal, scale=scale)
    return out, lse[..., : q.shape[2]]
