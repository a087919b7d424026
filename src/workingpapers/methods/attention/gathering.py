"""Chosen keys and values, gathered in pieces that stay in the caches of the processors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


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
        self.room = x.new_empty(0)

    def places(self, owner: Tensor, tokens: Tensor) -> Tensor:
        """Return which rows hold the tokens (m, c) of sequences and heads (m,), numbered b H + h."""
        return self.first[owner][:, None] + tokens * self.step

    def chunk(self, places: Tensor) -> int:
        """Return how many m of places (m, c) to gather at once: as much as stays in the caches of the processors."""
        size = 2**18 * torch.get_num_threads() if self.rows.device.type == "cpu" else 2**24
        return max(1, size // (places.shape[1] * self.rows.shape[1]))

    def take(self, places: Tensor) -> Tensor:
        """Return the vectors (m, c, d) at places (m, c); without gradients, valid until the next call."""
        if torch.is_grad_enabled() and self.rows.requires_grad:
            return self.rows[places]
        size = places.numel() * self.rows.shape[1]
        if self.room.numel() < size:  # new memory each time would cost more than what is done in it
            self.room = self.rows.new_empty(size)
        room = self.room[:size].view(-1, self.rows.shape[1])
        return torch.index_select(self.rows, 0, places.flatten(), out=room).view(*places.shape, -1)


def split(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors' parts of at most `size` along their first dimension, side by side."""
    return zip(*(torch.split(x, size) for x in tensors), strict=True)
