"""The patterns of MInference: which keys a head's blocks of queries see, estimated from a prompt's queries and keys.

Each pattern has sizes and a `find`, which takes the queries (T_q, d) and the keys (T, d) of a head, the queries being
the last T_q of T positions, and returns the `Lines` or `Blocks` to compute; these are patterns too, which stay the same
for every prompt. `minference` has the equations and the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.common import causal_mask
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines


def check_sizes(pattern: Any, **least: int) -> None:
    """Check that attributes of a pattern are integers of at least the given sizes, or raise ValueError."""
    for name, low in least.items():
        value = getattr(pattern, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ValueError(f"{name} of {type(pattern).__name__} must be an integer, {low} or more; got {value!r}")


@dataclass(frozen=True)
class AShape:
    """The first `n_init` columns and the nearest `n_local` diagonals (100 and 800, as published)."""

    n_init: int = 100
    n_local: int = 800

    def __post_init__(self) -> None:
        check_sizes(self, n_init=0, n_local=1)

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> Lines:
        """Return the same lines for every prompt."""
        lines = torch.arange(len(k), device=k.device)
        return Lines(lines[: self.n_init], lines[: self.n_local])


@dataclass(frozen=True)
class VerticalSlash:
    """Columns and diagonals that matter to the last queries.

    Args:
        n_vertical, n_slash: how many columns and diagonals to keep; all of them in shorter prompts.
        n_first, n_near: how many of these are always the first columns and the nearest diagonals. None takes 30 and
            100, as published, but no more than half, so that small budgets find something too.
        last_q: how many queries are looked at (64, as published).
    """

    n_vertical: int
    n_slash: int
    n_first: int | None = None
    n_near: int | None = None
    last_q: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, n_vertical=0, n_slash=1, last_q=1)
        for name, value in (("n_first", min(30, self.n_vertical // 2)), ("n_near", min(100, -(-self.n_slash // 2)))):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_sizes(self, n_first=0, n_near=1)

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> Lines:
        """Return the lines for the queries (T_q, d) and keys (T, d) of a head."""
        length, rows = len(k), min(self.last_q, len(q))
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = q.new_full((rows, rows + length), -torch.inf, dtype=exact)
        scores[:, rows:] = (q[len(q) - rows :].to(exact) * scale) @ k.to(exact).T
        scores[:, length:].masked_fill_(~causal_mask(rows, rows, k.device), -torch.inf)
        weights = scores.softmax(dim=-1)
        # (r, j) stands in column rows + j; where rows start one later each, all of diagonal o is in column T - 1 - o.
        diagonals = weights.as_strided((rows, length), (rows + length + 1, 1), 1).sum(dim=0).flip(0)
        columns = _largest(weights[:, rows:].sum(dim=0), self.n_vertical, self.n_first or 0)
        return Lines(columns, _largest(diagonals, self.n_slash, self.n_near or 1))


def _largest(sums: Tensor, count: int, forced: int) -> Tensor:
    """Return where the largest sums are, the first `forced` counting as such, in rising order."""
    sums[:forced] = torch.inf
    count = min(count, len(sums))
    least = sums.topk(count, sorted=False).values.amin() if count else torch.inf
    above, equal = sums > least, sums == least  # of equal sums the first count
    return (above | (equal & (equal.cumsum(0) <= count - above.sum()))).nonzero().flatten()


@dataclass(frozen=True)
class BlockSparse:
    """The `n_blocks` blocks of keys with the largest scores on average (100, as published), the own one included."""

    n_blocks: int = 100

    def __post_init__(self) -> None:
        check_sizes(self, n_blocks=1)

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> Blocks:
        """Return the blocks for the queries (T_q, d) and keys (T, d) of a head."""
        past = len(k) - len(q)
        scores = _means(q, past % block_size, block_size) @ _means(k, 0, block_size).T * scale
        first = past // block_size
        number = torch.arange(first, first + len(scores), device=k.device)[:, None]
        other = torch.arange(scores.shape[1], device=k.device)
        scores = scores.masked_fill(other > number, -torch.inf).masked_fill(other == number, torch.inf)
        kept = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.n_blocks]
        rows = kept.masked_fill(kept > number, -1).sort(dim=1).values
        return Blocks(F.pad(rows, (0, 0, first, 0), value=-1))


def _means(x: Tensor, lead: int, size: int) -> Tensor:
    """Return the mean of each block of x (T, d), the first of which lacks its first `lead` rows."""
    exact = torch.promote_types(x.dtype, torch.float32)
    block = torch.arange(lead, lead + len(x), device=x.device) // size
    sums = x.new_zeros(int(block[-1]) + 1, x.shape[1], dtype=exact).index_add(0, block, x.to(exact))
    return sums / block.bincount()[:, None]


Pattern = AShape | VerticalSlash | BlockSparse | Lines | Blocks
KINDS: dict[str, type[Pattern]] = {
    "a_shape": AShape,
    "vertical_slash": VerticalSlash,
    "block_sparse": BlockSparse,
    "lines": Lines,
    "blocks": Blocks,
}


def naive_mask(pattern: Pattern, q: Tensor, k: Tensor, *, block_size: int = 64, scale: float) -> Tensor:
    """Return the mask M (T_q, T) of one head with queries (T_q, d) and keys (T, d), by the definition."""
    length, past = len(k), len(k) - len(q)
    starts = [i // block_size * block_size for i in range(past, length)]
    causal = torch.ones(len(q), length, dtype=torch.bool).tril(past)

    def largest(scores: Tensor, count: int, forced: int) -> list[int]:
        return sorted(range(len(scores)), key=lambda i: (i >= forced, -scores[i]))[:count]

    if isinstance(pattern, BlockSparse):
        kept = torch.zeros(len(q), length, dtype=torch.bool)
        for a in dict.fromkeys(starts):
            mean = q[max(a - past, 0) : a + block_size - past].mean(dim=0)
            earlier = [float(k[j : j + block_size].mean(dim=0) @ mean * scale) for j in range(0, a, block_size)]
            for j in [a // block_size, *largest(torch.tensor(earlier), pattern.n_blocks - 1, 0)]:
                kept[max(a - past, 0) : a + block_size - past, j * block_size : (j + 1) * block_size] = True
        return kept & causal
    if isinstance(pattern, Blocks):
        kept = torch.tensor(
            [
                [j // block_size in (*pattern.rows[a // block_size].tolist(), a // block_size) for j in range(length)]
                for a in starts
            ]
        )
        return kept & causal
    if isinstance(pattern, VerticalSlash):
        scores = (q @ k.T * scale).masked_fill(~causal, -torch.inf)
        last = scores.softmax(dim=-1)[-pattern.last_q :]
        diagonals = torch.stack([last.diagonal(length - len(last) - o).sum() for o in range(length)])
        columns = largest(last.sum(dim=0), pattern.n_vertical, pattern.n_first or 0)
        offsets = largest(diagonals, pattern.n_slash, pattern.n_near or 1)
    elif isinstance(pattern, AShape):
        columns, offsets = list(range(pattern.n_init)), list(range(pattern.n_local))
    else:
        columns, offsets = pattern.columns.tolist(), pattern.offsets.tolist()
    kept = torch.tensor(
        [[j in columns or any(a - o <= j < a - o + block_size for o in offsets) for j in range(length)] for a in starts]
    )
    return kept & causal
