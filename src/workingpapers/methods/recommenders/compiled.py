"""When a compiled loop may take the place of torch's operations in a click model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workingpapers.errors import UserRemark
from workingpapers.methods.native import reachable


def served(*tensors: Tensor | None) -> bool:
    """Return whether all that are given are float32, within reach of C++ (`native.reachable`), and without autocast."""
    found = [tensor for tensor in tensors if tensor is not None]
    exact = all(tensor.dtype == torch.float32 for tensor in found) and not torch.is_autocast_enabled("cpu")
    return exact and reachable(*found)


def agree(name: str, found: Callable[..., Tensor], wanted: Callable[..., Tensor], *shapes: tuple[int, ...]) -> bool:
    """Return whether two functions of some tensors agree on an example, as do their gradients; else warn."""
    results = []
    with torch.inference_mode(False), torch.enable_grad():
        # Whatever torch's defaults are, the loops are for these numbers.
        parts = [torch.linspace(i, 40, math.prod(x), dtype=torch.float32, device="cpu") for i, x in enumerate(shapes)]
        inputs = [part.sin().view(shape) for part, shape in zip(parts, shapes, strict=True)]
        for x in inputs:
            x.requires_grad_()
        for function in (found, wanted):
            out = function(*inputs)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    # Sums of some hundred numbers of about 1.
    agreed = all(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(*results, strict=True))
    if not agreed:
        warnings.warn(
            f"{name}, as compiled here, does not compute what it should; slower operations of torch take its place.",
            UserRemark,
            stacklevel=3,
        )
    return agreed


def slopes(
    function: Callable[..., Tensor], tensors: Sequence[Any], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of a function by torch's operations, themselves with gradients where those are wanted."""
    with torch.enable_grad():
        out = function(*tensors)
    wanted = [tensor if need else None for tensor, need in zip(tensors, needed, strict=True)]
    chosen = [tensor for tensor in wanted if tensor is not None]
    found = iter(torch.autograd.grad(out, chosen, grad, create_graph=torch.is_grad_enabled()))
    return [None if tensor is None else next(found) for tensor in wanted]
