"""Chosen keys and values, gathered in pieces that stay in the caches of the processors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Rows:
    """The rows of a tensor (n, ...), to be taken again and again."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.row = x.shape[1:]
        self.room = x.new_empty(0, *self.row)

    def take(self, places: Tensor) -> Tensor:
        """Return the rows at places (*), (*, ...); without gradients they are valid until the next call."""
        if self.x.requires_grad and torch.is_grad_enabled():
            return self.x[places]
        count = places.numel()
        if len(self.room) < count:  # new memory each time would cost more than what is done in it
            self.room = self.x.new_empty(count, *self.row)
        taken = torch.index_select(self.x, 0, places.reshape(-1), out=self.room[:count])
        return taken.view(*places.shape, *self.row)


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
        """Return which rows hold the tokens (m, c) of sequences and heads (m,), numbered b H + h."""
        return self.first[owner][:, None] + tokens * self.step

    def chunk(self, count: int) -> int:
        """Return for how many m to take (m, count) vectors at once: those that stay in the caches of a processor."""
        size = 2**18 * torch.get_num_threads() if self.rows.device.type == "cpu" else 2**24
        return max(1, size // (count * self.rows.shape[1]))

    def reader(self) -> Rows:
        """Return what takes vectors at places (m, c), as (m, c, d)."""
        return Rows(self.rows)

    def run_reader(self, run: int) -> Rows:
        """Return what takes the vectors of `run` tokens from each place (m, c) on, as (m, c, run, d)."""
        count, width = len(self.rows) - (run - 1) * self.step, self.rows.shape[1]
        return Rows(self.rows.as_strided((max(0, count), run, width), (width, self.step * width, 1)))


def split(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors' parts of at most `size` along their first dimension, side by side."""
    return zip(*(torch.split(x, size) for x in tensors), strict=True)
