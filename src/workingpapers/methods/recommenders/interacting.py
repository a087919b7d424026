"""A layer of attention between fields on a CPU, forward and back in one pass over its rows, by `interacting.cpp`.

    c_m = all heads of sum_k softmax_k(scale <Q_h x_m, K_h x_k>) V_h x_k, joined
    out_m = ReLU(c_m + R x_m)

`interacted` is that function in torch's operations; `interact` computes the same in float32, once the two have been
seen to agree. The way back computes queries, keys, values and shares again rather than keep them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.native import library
from workingpapers.methods.recommenders.compiled import agree, served, slopes

WIDEST = 1 << 14
"""Numbers of a weight above which products as torch does them are the faster way."""

_POINTERS = ("x", "query", "key", "value", "residual", "out", "grad", "grad_x", "grad_weights")
_SIZES = ("rows", "fields", "in_dim", "width", "heads", "threads")
_SOURCE = Path(__file__).with_suffix(".cpp")


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
        ("failed", ctypes.c_int),
    )


def interacted(
    x: Tensor, heads: int, scale: float, query: Tensor, key: Tensor, value: Tensor, residual: Tensor | None
) -> Tensor:
    """Return (B, M, d') of fields (B, M, d), weights (d', d), heads, and a factor of the scores."""
    q, k, v = (torch.unflatten(F.linear(x, w), 2, (heads, -1)).transpose(1, 2) for w in (query, key, value))
    out = ((scale * q @ k.mT).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return (out if residual is None else out + F.linear(x, residual)).relu()


def interact(
    x: Tensor, heads: int, scale: float, query: Tensor, key: Tensor, value: Tensor, residual: Tensor | None
) -> Tensor | None:
    """Return what `interacted` does; None where torch's operations are to be used.

    It is for other numbers than float32, other devices, wide layers, autocast, whatever watches or rewrites torch's
    operations, and where C++ cannot be compiled.
    """
    fits = x.ndim == 3 and x.shape[2] == query.shape[1] and query.numel() <= WIDEST
    if not fits or not served(x, query, key, value, residual) or not _agrees():
        return None
    return _apply(x.contiguous(), heads, scale, query, key, value, residual)


def _apply(*given: Any) -> Tensor:
    out: Tensor = _Interaction.apply(*given)  # type: ignore[no-untyped-call]
    return out


@cache
def _agrees() -> bool:
    """Return whether there is a library and it computes as torch does."""
    if library(_SOURCE) is None:
        return False

    def example(function: Any) -> Any:
        return lambda x, *weights: function(x, 2, 0.7, *weights)

    return agree(_SOURCE.name, example(_apply), example(interacted), (17, 5, 3), *[(4, 3)] * 4)


class _Interaction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, scale: float, *weights: Tensor | None) -> Tensor:
        assert weights[0] is not None
        out = x.new_empty(*x.shape[:2], len(weights[0]))
        _run(x, weights, out, heads, scale)
        ctx.save_for_backward(x, out, *weights)
        ctx.options = heads, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, out, *weights = ctx.saved_tensors
        heads, scale = ctx.options
        if torch.is_grad_enabled() or not served(grads[0]):  # higher derivatives, or several at a time
            needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
            found = slopes(lambda x, *w: interacted(x, heads, scale, *w), [x, *weights], needed, grads[0])
            return found[0], None, None, *found[1:]
        grad_x, parts = torch.empty_like(x), x.new_zeros(torch.get_num_threads(), 4, *weights[0].shape)
        _run(x, weights, out, heads, scale, grads[0].contiguous(), grad_x, parts)
        sums = parts.sum(dim=0)
        return grad_x, None, None, *(None if w is None else s for w, s in zip(weights, sums, strict=True))


def _run(x: Tensor, weights: Any, out: Tensor, heads: int, scale: float, *back: Tensor) -> None:
    """Compute `out`, or from what comes `back` to it the gradients of x and of the weights, for each thread."""
    weights = [None if weight is None else weight.contiguous() for weight in weights]
    tensors = (x, *weights, out, *(back or (None,) * 3))
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    layer = _Layer(*pointers, *x.shape, out.shape[2], heads, torch.get_num_threads(), scale, 0)
    found = library(_SOURCE)
    assert found is not None
    if found.interact(ctypes.byref(layer)):
        raise MemoryError("there is no memory for a layer's working space")
