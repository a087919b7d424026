"""What follows a convolution along fields on a CPU, forward and back in two passes, by `pooling.cpp`.

    out = tanh(maximum over p fields of norm(y))     y (B, c, h, d), out (B, c, ceil(h / p), d)

`pooled` is that function in torch's operations; `pool` computes the same in float32 with channels last, once the two
have been seen to agree. The maximum is that of tanh, and only it is scaled, and its tanh taken.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.native import library
from workingpapers.methods.recommenders.compiled import agree, served, slopes

_POINTERS = ("y", "scale", "shift", "center", "level", "slope", "grad", "out", "grad_y", "sums")
_SIZES = ("rows", "height", "line", "pool", "threads")
_SOURCE = Path(__file__).with_suffix(".cpp")
_MEASURE, _FORWARD, _SLOPES, _BACK = range(4)


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("step", ctypes.c_int),
        ("failed", ctypes.c_int),
    )


def pooled(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    own: bool,
    size: int,
    eps: float,
) -> Tensor:
    """Return the output of y for p = `size`.

    It is normalised by its own mean and variance where `own`, else by those that are given; not at all without weights.
    """
    if weight is not None:
        moments = (None, None) if own else (mean, variance)
        y = F.batch_norm(y, *moments, weight, bias, training=own, eps=eps)
    return F.max_pool2d(y, (size, 1), ceil_mode=True).tanh()


def pool(y: Tensor, norm: nn.BatchNorm2d | None, size: int) -> Tensor | None:
    """Return what `pooled` does, and let `norm` follow the means; None where torch's operations are to be used.

    It is for other numbers than float32, other devices, autocast, whatever watches or rewrites torch's operations, and
    where C++ cannot be compiled.
    """
    weights = () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    known = norm is None or type(norm) is nn.BatchNorm2d  # not one that is averaged over processes
    if not known or y.numel() < 2 * y.shape[1] or not served(y, *weights) or not _agrees():
        return None
    y = y.contiguous(memory_format=torch.channels_last)
    if norm is None:
        return _pool(y, None, None, None, None, False, size, 0.0)
    if not norm.training:
        return _pool(y, *weights, False, size, norm.eps)
    mean, variance = _moments(y.detach())
    _follow(norm, mean, variance, y.numel() // y.shape[1])
    return _pool(y, norm.weight, norm.bias, mean, variance, True, size, norm.eps)


def _follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running mean and variance of a norm as torch does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


def _pool(*given: Any) -> Tensor:
    out: Tensor = _Pool.apply(*given)  # type: ignore[no-untyped-call]
    return out


@cache
def _agrees() -> bool:
    """Return whether there is a library and it computes as torch does."""
    if library(_SOURCE) is None:
        return False

    def found(y: Tensor, *weights: Tensor) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        return _pool(y, *weights, *_moments(y.detach()), True, 2, 1e-5)

    def wanted(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return pooled(y, weight, bias, None, None, True, 2, 1e-5)

    return agree(_SOURCE.name, found, wanted, (7, 3, 5, 6), (3,), (3,))


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance (c,) of each channel, from sums of distances to some number of its own."""
    center = y[0, :, 0, 0].contiguous()
    sums = _sums(_MEASURE, y, 1, center=center)
    mean, square = sums / (y.numel() // y.shape[1])
    return (center + mean).float(), (square - mean.square()).clamp(min=0).float()


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *given: Any) -> Tensor:
        weight, bias, mean, variance, own, size, eps = given
        if weight is None:
            mean, scale, shift = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1]), y.new_zeros(y.shape[1])
            spread = scale
        else:
            spread = (variance + eps).rsqrt()
            scale = weight * spread
            shift = bias - mean * scale
        shape = (len(y), y.shape[1], -(-y.shape[2] // size), y.shape[3])
        out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        _run(_FORWARD, y, size, out=out, scale=scale, shift=shift)
        ctx.save_for_backward(y, weight, bias, mean, variance, out, scale, shift, spread)
        ctx.options = own, size, eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, weight, bias, mean, variance, out, scale, shift, spread = ctx.saved_tensors
        own, size, eps = ctx.options
        if torch.is_grad_enabled() or not served(grads[0]):  # higher derivatives, or several at a time

            def function(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
                return pooled(y, weight, bias, mean, variance, own, size, eps)

            return *slopes(function, [y, weight, bias], ctx.needs_input_grad[:3], grads[0]), *(None,) * 5
        known = {"out": out, "scale": scale, "shift": shift, "center": mean}
        known["grad"] = grads[0].contiguous(memory_format=torch.channels_last)
        grad_bias, moved = _sums(_SLOPES, y, size, **known).float()
        grad_weight, level, slope = moved * spread, torch.zeros_like(scale), torch.zeros_like(scale)
        if own:
            count = y.numel() // y.shape[1]
            level, slope = scale * grad_bias / count, scale * grad_weight * spread / count
        grad_y = torch.empty_like(y)
        _run(_BACK, y, size, grad_y=grad_y, level=level, slope=slope, **known)
        return grad_y, *((None, None) if weight is None else (grad_weight, grad_bias)), *(None,) * 5


def _sums(step: int, y: Tensor, size: int, **known: Tensor) -> Tensor:
    """Return two sums (2, c) for each channel, float64."""
    sums = y.new_zeros(torch.get_num_threads(), 2, y.shape[3], y.shape[1], dtype=torch.float64)
    _run(step, y, size, sums=sums, **known)
    return sums.sum(dim=(0, 2))


def _run(step: int, y: Tensor, size: int, **known: Tensor) -> None:
    """Do a step; factors of channels are repeated for all coordinates."""
    width = y.shape[3]
    known = {"y": y} | {name: tensor.repeat(width) if tensor.ndim == 1 else tensor for name, tensor in known.items()}
    pointers = (known[name].data_ptr() if name in known else None for name in _POINTERS)
    call = _Call(*pointers, len(y), y.shape[2], y.shape[1] * width, size, torch.get_num_threads(), step, 0)
    found = library(_SOURCE)
    assert found is not None
    if found.pool(ctypes.byref(call)):
        raise MemoryError("there is no memory for the sums of a pooling")
