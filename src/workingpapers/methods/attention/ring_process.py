"""What a process of a ring does: it passes blocks on, and says which of their keys its queries see.

The blocks, of keys and values or of their gradients, travel as `ring` describes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workingpapers.methods.attention.sequences import Group, Layout, held_pieces


@dataclass(frozen=True)
class Ring:
    """A process's place in the ring and how it attends.

    Args:
        group: the processes, in ring order; None for the default group.
        rank: the number of this process.
        size: how many there are.
        length: tokens of the whole sequence.
        causal, scale, layout, chunk: as in `ring.ring_attention`.
    """

    group: Group
    rank: int
    size: int
    length: int
    causal: bool
    scale: float
    layout: Layout
    chunk: int

    def pass_on(self, tensors: Sequence[Tensor], source: int, tag: int) -> tuple[list[Tensor], list[Any]]:
        """Start sending to the next process and receiving from the previous one; return what arrives, and requests.

        Args:
            tensors: (B, c) or (B, H, c, d), of a block.
            source: the process that the block belongs to; what arrives belongs to the one before it.
            tag: of the first message, counted on for the others.
        """
        if self.size == 1:
            return list(tensors), []
        group = self.group or dist.group.WORLD
        held = sum(map(len, self._pieces((source - 1) % self.size)))
        arriving = [t.new_empty(*t.shape[: t.ndim // 2], held, *t.shape[t.ndim // 2 + 1 :]) for t in tensors]
        following = dist.get_global_rank(group, (self.rank + 1) % self.size)  # type: ignore[arg-type]
        previous = dist.get_global_rank(group, (self.rank - 1) % self.size)  # type: ignore[arg-type]
        moves = []
        for i, (out, into) in enumerate(zip(tensors, arriving, strict=True)):
            moves.append(dist.P2POp(dist.isend, out, following, group, tag + i))
            moves.append(dist.P2POp(dist.irecv, into, previous, group, tag + i))
        return arriving, dist.batch_isend_irecv(moves)

    def blocks(self, *tensors: Tensor | None) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield (process that it belongs to, block) for every block; the next one travels in the meantime."""
        block = [t.contiguous() for t in tensors if t is not None]
        for step in range(self.size):
            source = (self.rank - step) % self.size
            arriving, requests = self.pass_on(block, source, tag=0) if step < self.size - 1 else (block, [])
            yield source, block
            wait(requests)
            block = arriving

    def pairs(
        self, source: int, own: Tensor | None, other: list[Tensor], device: torch.device
    ) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yield (queries, keys, mask) for chunks of the share and of a block that see each other, mask None if wholly.

        Args:
            source: the process that the block belongs to.
            own: (B, c) segment ids of the share, or None.
            other: [(B, c) those of the block], or nothing.
            device: where the masks are wanted.
        """
        keys = self._chunks(source)
        for rows, first_query in self._chunks(self.rank):
            q = torch.arange(first_query, first_query + rows.stop - rows.start, device=device)
            for cols, first_key in keys:
                last_key = first_key + cols.stop - cols.start - 1
                mask = None
                if self.causal and first_key >= first_query + len(q):
                    continue
                if self.causal and last_key > first_query:
                    mask = (q[:, None] >= torch.arange(first_key, last_key + 1, device=device))[None, None]
                if own is not None:
                    same = (own[:, rows, None] == other[0][:, None, cols])[:, None]
                    mask = same if mask is None else mask & same
                    if not mask.any():
                        continue
                yield rows, cols, mask

    def _chunks(self, rank: int) -> list[tuple[slice, int]]:
        """Return (slice of the share, first position) of the chunks of a process; none crosses the end of a piece."""
        chunks: list[tuple[slice, int]] = []
        held = 0
        for piece in self._pieces(rank):
            cuts = [*range(0, len(piece), self.chunk), len(piece)]
            chunks += [(slice(held + a, held + b), piece.start + a) for a, b in itertools.pairwise(cuts)]
            held += len(piece)
        return chunks

    def _pieces(self, rank: int) -> list[range]:
        return held_pieces(self.length, rank=rank, size=self.size, layout=self.layout)


def wait(requests: list[Any]) -> None:
    """Wait until all that was started by `Ring.pass_on` is there."""
    for request in requests:
        request.wait()
