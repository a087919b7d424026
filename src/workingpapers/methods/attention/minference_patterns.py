"""The patterns of MInference: which keys a head's blocks of queries see, estimated from a prompt's queries and keys.

Each pattern has sizes and a `find`, which takes the queries (H, T_q, d) of some heads and the keys (G, T, d) that they
share, the queries being the last T_q of T positions, and returns the `Lines` or `Blocks` to compute in each of the H
heads; these are patterns too, which stay the same for every prompt. An estimate is made for all heads at once, by
operations for which no GPU has to wait. `minference` has the equations and the source.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.parallel import each
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines, places, unchecked


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

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> list[Lines]:
        """Return the same lines for every prompt."""
        lines = torch.arange(k.shape[1], device=k.device)
        return [unchecked(Lines, columns=lines[: self.n_init], offsets=lines[: self.n_local])] * len(q)


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

    @torch.no_grad()
    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> list[Lines]:
        """Return the lines for the queries (H, T_q, d) and keys (G, T, d) of heads."""
        heads, length, rows = len(q), k.shape[1], min(self.last_q, q.shape[1])
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = F.pad(_products(q[:, -rows:].to(exact) * scale, k.to(exact)), (rows, 0), value=-torch.inf)
        later = torch.ones(rows, rows, dtype=torch.bool, device=k.device).triu(1)
        scores[..., length:].masked_fill_(later, -torch.inf)
        weights = scores.softmax(dim=-1)
        # (r, j) stands in column rows + j; where rows start one later each, all of diagonal o is in column T - 1 - o.
        strides = weights.stride(0), weights.stride(1) + 1, 1
        diagonals = weights.as_strided((heads, rows, length), strides, 1).sum(dim=1).flip(1)
        sums = torch.stack([weights[..., rows:].sum(dim=1), diagonals])
        columns, offsets = _largest(sums, (self.n_vertical, self.n_first or 0), (self.n_slash, self.n_near or 1))
        return [unchecked(Lines, columns=c, offsets=o) for c, o in zip(columns, offsets, strict=True)]


def _products(q: Tensor, k: Tensor) -> Tensor:
    """Return q k^T (H, m, n) for q (H, m, d) and k (G, n, d)."""
    together = q.reshape(len(k), -1, q.shape[2])  # heads that share keys
    return (together @ k.mT).view(*q.shape[:2], k.shape[1])


def _largest(sums: Tensor, *sizes: tuple[int, int]) -> list[Tensor]:
    """Return where along the last dimension the largest are, rising, in each of some kinds of sums (kinds, ..., n).

    Sizes are how many of a kind to find, and how many of its first ones count as the largest.
    """
    counts = [min(count, sums.shape[-1]) for count, _ in sizes]
    for kind, (_, forced) in zip(sums, sizes, strict=True):
        kind[..., :forced] = torch.inf
    tops = [kind.topk(max(1, n), sorted=False).values for kind, n in zip(sums, counts, strict=True)]
    least = torch.stack([top.amin(-1, keepdim=True) for top in tops])
    above, equal = sums > least, sums == least  # of equal sums the first count
    free = torch.stack([n - more for n, more in zip(counts, above.sum(-1, keepdim=True), strict=True)])
    kept = places(above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= free)), max(counts))
    return [x[..., max(counts) - n :] for x, n in zip(kept, counts, strict=True)]


@dataclass(frozen=True)
class BlockSparse:
    """The `n_blocks` blocks of keys with the largest scores on average (100, as published), the own one included."""

    n_blocks: int = 100

    def __post_init__(self) -> None:
        check_sizes(self, n_blocks=1)

    @torch.no_grad()
    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> list[Blocks]:
        """Return the blocks for the queries (H, T_q, d) and keys (G, T, d) of heads."""
        first, lead = divmod(k.shape[1] - q.shape[1], block_size)
        scores = _products(_means(q, lead, block_size), _means(k, 0, block_size)).mul_(scale)
        number = torch.arange(first, first + scores.shape[1], device=k.device)[:, None]
        other = torch.arange(scores.shape[2], device=k.device)
        scores.masked_fill_(other > number, -torch.inf).masked_fill_(other == number, torch.inf)
        [kept] = _largest(scores[None], (self.n_blocks, 0))
        # In rows with fewer before them, later ones stand behind those.
        rows = (kept - (kept.shape[2] - 1 - number).clamp(min=0)).clamp(min=-1)
        return [unchecked(Blocks, rows=x) for x in (F.pad(rows, (0, 0, first, 0), value=-1) if first else rows)]


def _means(x: Tensor, lead: int, size: int) -> Tensor:
    """Return (H, N, d) the mean of each block of x (H, T, d), the first of which lacks its first `lead` rows."""
    exact = torch.promote_types(x.dtype, torch.float32)
    begin = min(-lead % size, x.shape[1])
    count = (x.shape[1] - begin) // size
    first, whole, last = torch.split(x, [begin, count * size, x.shape[1] - begin - count * size], dim=1)
    means = [torch.unflatten(whole, 1, (count, size)).mean(dim=2, dtype=exact)]
    means = [first.mean(dim=1, keepdim=True, dtype=exact)] * (begin > 0) + means
    means += [last.mean(dim=1, keepdim=True, dtype=exact)] * (last.shape[1] > 0)
    return torch.cat(means, dim=1) if len(means) > 1 else means[0]


Pattern = AShape | VerticalSlash | BlockSparse | Lines | Blocks
ROOM = 2**26
"""Numbers that an estimate holds at a time, 256 MiB of float32, unless a head alone takes more."""

KINDS: dict[str, type[Pattern]] = {
    "a_shape": AShape,
    "vertical_slash": VerticalSlash,
    "block_sparse": BlockSparse,
    "lines": Lines,
    "blocks": Blocks,
}


def heads_at_once(pattern: Pattern, q: Tensor, k: Tensor, block_size: int) -> int:
    """Return for how many heads one `find` is best: one on a CPU, elsewhere as many as `ROOM` allows."""
    if q.device.type == "cpu":
        return 1
    room, queries, length = 1, q.shape[1], k.shape[1]
    if isinstance(pattern, VerticalSlash):
        room = max(min(pattern.last_q, queries), k.shape[2]) * length
    elif isinstance(pattern, BlockSparse):
        room = (queries // block_size + 2) * (length // block_size + 1)
    return max(1, ROOM // room)


def find_all(q: Tensor, k: Tensor, heads: Sequence[Pattern], block_size: int, scale: float) -> list[Lines | Blocks]:
    """Return what each head finds in one sequence, q (H_q, T_q, d), k (H_kv, T, d).

    On a CPU heads are looked at side by side, elsewhere all that have the same pattern at once.
    """
    group, alike = q.shape[0] // k.shape[0], dict[Pattern, list[int]]()
    for h, pattern in enumerate(heads):
        alike.setdefault(pattern, []).append(h)
    pieces: list[list[int]] = []
    for pattern, same in alike.items():
        count = heads_at_once(pattern, q, k, block_size)
        pieces += [same[i : i + count] for i in range(0, len(same), count)]

    def find(piece: list[int]) -> Sequence[Lines | Blocks]:
        shared = Counter(h // group for h in piece)
        even = len(set(shared.values())) == 1  # else each head gets keys of its own
        keys = _some(k, list(shared if even else shared.elements()))
        return heads[piece[0]].find(_some(q, piece), keys, block_size=block_size, scale=scale)

    found = zip(itertools.chain(*pieces), itertools.chain(*each(find, pieces, q, k)), strict=True)
    return [x for _, x in sorted(found, key=lambda pair: pair[0])]


def _some(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Return heads of x (H, T, d), as a view if they are neighbours."""
    begin, end = heads[0], heads[-1] + 1
    return x[begin:end] if len(heads) == end - begin else torch.stack([x[h] for h in heads])


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
