"""The crosses of DCN-V2 and their output's weights on a CPU, forward and back in one pass over rows, by `crossing.cpp`.

    x_{l+1} = x_l + x_0 * (W_l x_l + b_l)    l = 0 .. L-1; x_l (B, n), W_l (n, n), b_l (n,)
    out     = <w, x_L>                       (B,)

`crossed` is that function in torch's operations; `cross` computes the same in float32, once the two have been seen to
agree. A block of rows goes through all crosses, matrix products included, before the next one does, so that what is
between the products stays in the cache. With g the gradient of x_{l+1}, W_l x_l gets g * x_0, x_0 gets
g * (W_l x_l + b_l), and x_l gets g and what comes back through W_l.
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

BLOCK = 64
"""Rows that go through the crosses together."""

WIDEST = 640
"""Numbers of a row above which products as torch does them are the faster way."""

_POINTERS = ("first", "weight", "matrices", "biases", "ys", "xs", "out")
_BACK = ("grad", "grad_first", "grad_ys", "grad_matrices", "sums", "space")
_SIZES = ("rows", "width", "layers", "block", "threads")
_SOURCE = Path(__file__).with_suffix(".cpp")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_POINTERS, *_BACK)),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


def crossed(first: Tensor, weight: Tensor, *layers: Tensor) -> Tensor:
    """Return out (B,) of x_0 (B, n), w (n,), and W_0, b_0, W_1, b_1 and so on."""
    x = first
    for matrix, bias in zip(layers[::2], layers[1::2], strict=True):
        x = torch.addcmul(x, first, F.linear(x, matrix, bias))
    return x @ weight


def cross(first: Tensor, weight: Tensor, *layers: Tensor) -> Tensor | None:
    """Return what `crossed` does; None where torch's operations are to be used.

    It is for other numbers than float32, other devices, autocast, whatever watches or rewrites torch's operations, no
    crosses, and where C++ cannot be compiled.
    """
    count, width = len(layers) // 2, first.shape[-1]
    fits = first.ndim == 2 and [x.shape for x in (weight, *layers)] == [(width,), *[(width, width), (width,)] * count]
    if not count or not fits or width > WIDEST or not served(first, weight, *layers) or not _agrees():
        return None
    return _apply(first.contiguous(), weight.contiguous(), *layers)


def _apply(*given: Tensor) -> Tensor:
    out: Tensor = _Crosses.apply(*given)  # type: ignore[no-untyped-call]
    return out


@cache
def _agrees() -> bool:
    """Return whether there is a library and it computes as torch does."""
    shapes = (70, 19), (19,), *((19, 19), (19,)) * 3
    return library(_SOURCE) is not None and agree(_SOURCE.name, _apply, crossed, *shapes)


class _Crosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, weight: Tensor, *layers: Tensor) -> Tensor:
        matrices, biases = torch.stack([x.mT for x in layers[::2]]), torch.stack(layers[1::2])
        ys, xs = first.new_empty(len(biases), *first.shape), first.new_empty(len(biases) - 1, *first.shape)
        out = first.new_empty(len(first))
        _run(first, weight, matrices, biases, ys, xs, out)
        ctx.save_for_backward(first, weight, *layers, biases, ys, xs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        first, weight, *layers, biases, ys, xs = ctx.saved_tensors
        if torch.is_grad_enabled() or not served(grads[0]):  # higher derivatives, or several at a time
            return tuple(slopes(crossed, [first, weight, *layers], ctx.needs_input_grad, grads[0]))
        matrices = torch.stack(layers[::2])
        grad_first, grad_ys, grad_matrices = torch.empty_like(first), torch.empty_like(ys), torch.zeros_like(matrices)
        sums = first.new_zeros(-(-len(first) // BLOCK), len(biases) + 1, first.shape[1])
        space = first.new_empty(torch.get_num_threads(), BLOCK, first.shape[1])
        known = (first, weight, matrices, biases, ys, xs, None)
        _run(*known, grads[0].contiguous(), grad_first, grad_ys, grad_matrices, sums, space)
        *grad_biases, grad_weight = sums.sum(dim=0)
        pairs = zip(grad_matrices, grad_biases, strict=True)
        return grad_first, grad_weight, *(grad for pair in pairs for grad in pair)


def _run(*tensors: Tensor | None) -> None:
    """Compute what comes out of the crosses, or from what comes back to it all gradients."""
    first, _, _, biases, *_ = tensors
    assert first is not None
    assert biases is not None
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    missing = (None,) * (len(_POINTERS) + len(_BACK) - len(tensors))
    found = library(_SOURCE)
    assert found is not None
    sizes = (*first.shape, len(biases), BLOCK, torch.get_num_threads())
    found.cross(ctypes.byref(_Call(*pointers, *missing, *sizes)))
