"""Chosen keys and values, gathered in pieces that stay in the caches of the processors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Runs:
    """Runs of the rows of a tensor (n, d), to be taken again and again.

    Args:
        x: the rows.
        run: how many of them follow from each place on.
        step: from one of them to the next.
    """

    def __init__(self, x: Tensor, run: int = 1, step: int = 1) -> None:
        self.x, self.run, self.step = x, run, step
        sizes, strides = (max(0, len(x) - (run - 1) * step), run, x.shape[1]), (x.stride(0), step * x.stride(0))
        self.runs = x.detach().as_strided(sizes, (*strides, x.stride(1)))
        self.room = x.new_empty(0, run, x.shape[1])

    def take(self, places: Tensor) -> Tensor:
        """Return the runs at places (m, c), as (m, c run, d); without gradients they are valid until the next call."""
        if self.x.requires_grad and torch.is_grad_enabled():
            return self.x[places[..., None] + self.step * torch.arange(self.run, device=places.device)].flatten(1, 2)
        count = places.numel()
        if len(self.room) < count:  # new memory each time would cost more than what is done in it
            self.room = self.x.new_empty(1 << (count - 1).bit_length(), *self.room.shape[1:])
        taken = torch.index_select(self.runs, 0, places.reshape(-1), out=self.room[:count])
        return taken.view(len(places), -1, self.x.shape[1])


class Vectors:
    """The vectors of keys or values (B, G, T, d), to be gathered for H query heads without copying the whole."""

    def __init__(self, x: Tensor, heads: int) -> None:
        width = x.shape[3]
        if x.stride(3) != 1 or any(stride % width for stride in x.stride()[:3]):
            x = x.contiguous()
        batch, head, self.step = (stride // width for stride in x.stride()[:3])
        last = sum(stride * (n - 1) for stride, n in zip((batch, head, self.step), x.shape[:3], strict=True))
        self.rows = x.as_strided((last + 1 if x.numel() else 0, width), (width, 1))
        group = torch.arange(heads, device=x.device) // (heads // x.shape[1])
        self.first = (torch.arange(x.shape[0], device=x.device)[:, None] * batch + group * head).flatten()

    def places(self, owner: Tensor, tokens: Tensor) -> Tensor:
        """Return which rows hold tokens (m, c) of sequences and heads (m,), numbered b H + h."""
        return self.first[owner][:, None] + tokens * self.step

    def chunk(self, count: int) -> int:
        """Return for how many m to take (m, count) vectors at once: those that stay in the caches of a processor."""
        size = 2**18 if self.rows.device.type == "cpu" else 2**24
        return max(1, size // (count * self.rows.shape[1]))

    def runs(self, run: int = 1) -> Runs:
        """Return what takes the vectors of `run` tokens from places (m, c) on, as (m, c run, d)."""
        return Runs(self.rows, run, self.step)


def split(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors' parts of at most `size` along their first dimension, side by side."""
    return zip(*(torch.split(x, size) for x in tensors), strict=True)
