"""Tables whose rows are shared or computed by hashing: the id alone decides, nothing is learnt about who shares.

N ids, d wide, budget r; x is a global id, so ids of different fields share rows too. Ids of a field are numbered by
frequency, which keeps the frequent ones of a field from colliding with each other under x mod m.

    hash       e(x) = E[x mod m],  m = r N
    qr         e(x) = Q[x div c] * R[x mod c],  N/c + c rows: no two ids share both
    robe       e(x)_j = s(x, j) W[(h(x, chunk of j) + place of j in it) mod |W|],  s = +-1,  |W| = r N d
    dhe        e(x) = network(scaled h_1(x), ..., h_k(x)): no table at all
    adaptive   a row of its own for frequent ids, E[place mod m] for the rest

Source: Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression", PVLDB 17(4), 2024,
arXiv 2311.15578; in turn Weinberger et al. 2009 (hash), Shi et al. 2020 (qr), Desai et al. 2022 (robe), Kang et al.
2021 (dhe), and DeepRec (adaptive).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.tables.common import Table
from workingpapers.methods.tables.compressed_parts import (
    FLOAT,
    HeadTail,
    batch_norm,
    floats_within,
    once_each,
    out_of_reach,
    vectors,
)

PRIME = 2**31 - 1  # of the hash functions; above any id, and its products fit into 64 bits
COMPUTED = 512  # ids whose vectors are computed at a time where that changes nothing: their hashes are large


class HashTable(Table):
    """Ids share rows by their remainder.

    Args:
        sizes, dim: see `Table`.
        ratio: r; the rows are r N, rounded down (0.5, the mildest budget of the study).
        init_scale: standard deviation of the initial vectors (0.01, as `FullTable`).
    """

    def __init__(self, sizes: Sequence[int], dim: int, *, ratio: float = 0.5, init_scale: float = 0.01) -> None:
        super().__init__(sizes, dim)
        self.rows = max(1, floats_within(ratio, self.num_ids, dim) // dim)
        self.table = vectors(self.rows, dim, init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        found: Tensor = self.table(ids % self.rows)
        return found


class QuotientRemainderTable(Table):
    """A vector is the product of two, found by quotient and remainder: every id keeps a vector of its own.

    Args:
        sizes, dim: see `Table`.
        ratio: r; the divisor is the smallest whose N/c + c rows fit (0.5). About 2 / sqrt(N) is the least.
        divisor: c itself, instead of `ratio`.
        init_scale: standard deviation of the initial products (0.01). The second factor starts uniform between
            sqrt(1/N) and 1, as in the authors' DLRM: two small factors would vanish.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        divisor: int | None = None,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        self.divisor = (
            self._divisor(floats_within(ratio, self.num_ids, dim) // dim, ratio) if divisor is None else divisor
        )
        if self.divisor < 1:
            raise ValueError(f"divisor is {divisor}; it must be 1 or more")
        low = self.num_ids**-0.5
        second_moment = (1 + low + low**2) / 3
        self.quotients = vectors(math.ceil(self.num_ids / self.divisor), dim, init_scale / math.sqrt(second_moment))
        self.remainders = vectors(self.divisor, dim, 1.0)
        nn.init.uniform_(self.remainders.weight, low, 1.0)

    def _divisor(self, rows: int, ratio: float) -> int:
        best = math.isqrt(self.num_ids)  # the rows fall up to there
        for divisor in range(1, best + 1):
            if math.ceil(self.num_ids / divisor) + divisor <= rows:
                return divisor
        raise out_of_reach("qr", ratio, (math.ceil(self.num_ids / best) + best) / self.num_ids)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        quotient = torch.div(ids, self.divisor, rounding_mode="floor")
        found: Tensor = self.quotients(quotient) * self.remainders(ids % self.divisor)
        return found


class RobeTable(Table):
    """Vectors are stretches of one array of numbers, at hashed places and with hashed signs.

    Args:
        sizes, dim: see `Table`.
        ratio: r; the array holds r N d numbers (0.5).
        chunks: Z, into how many stretches a vector is cut, each at a place of its own (1, as in the study).
        init_scale: standard deviation of the numbers (0.01).
    """

    place: Tensor
    sign: Tensor

    def __init__(
        self, sizes: Sequence[int], dim: int, *, ratio: float = 0.5, chunks: int = 1, init_scale: float = 0.01
    ) -> None:
        super().__init__(sizes, dim)
        if not 1 <= chunks <= dim:
            raise ValueError(f"chunks is {chunks}; it must be 1 to dim, {dim}")
        self.length = -(-dim // chunks)  # of a stretch
        self.chunks = -(-dim // self.length)
        hashes = 12  # six coefficients of 8 bytes
        self.numbers = nn.Parameter(
            torch.empty(max(1, floats_within(ratio, self.num_ids, dim) - hashes)).normal_(std=init_scale)
        )
        for name in ("place", "sign"):  # a hash ((a x + b j + c) mod P) each
            self.register_buffer(name, torch.randint(1, PRIME, (3,)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        j = torch.arange(self.dim, device=ids.device)
        start = _hashed(self.place, ids, torch.arange(self.chunks, device=ids.device))
        count = len(self.numbers)
        found = self.numbers.take(_added((start % count)[..., j // self.length], j % self.length % count, count))
        return torch.where(_hashed(self.sign, ids, j) & 1 == 1, -found, found)


def _hashed(coefficients: Tensor, x: Tensor, j: Tensor) -> Tensor:
    """Return a hash of all x (*) and j (n), (*, n)."""
    a, b, c = coefficients.unbind()
    return _added(((a * x + c) % PRIME)[..., None], b * j % PRIME, PRIME)


def _added(x: Tensor, y: Tensor, modulus: int) -> Tensor:
    """Return x + y modulo a number below which both are; a division for each would take most of a lookup."""
    total = x + y
    return torch.where(total >= modulus, total - modulus, total)


class DeepHashTable(Table):
    """No table: a network computes a vector from many hashes of the id.

    Batch normalisation makes vectors depend on the batch in training, and on nothing but the id in eval mode.

    Args:
        sizes, dim: see `Table`.
        ratio: r; the widest network that fits. None takes `width`.
        width: of the five hidden layers (64; 1,800 in the authors' largest, for tables of millions of rows).
        hashes: k (1,024, as published).
        buckets: values of a hash (1,000,000, as published).
    """

    slopes: Tensor
    shifts: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float | None = None,
        width: int = 64,
        hashes: int = 1024,
        buckets: int = 1_000_000,
    ) -> None:
        super().__init__(sizes, dim)
        if min(width, hashes) < 1 or buckets < 2:
            raise ValueError(f"width is {width}, hashes {hashes}, buckets {buckets}; need 1, 1 and 2 or more")
        self.buckets = buckets
        if ratio is not None:
            width = self._width(ratio, hashes)
        self.register_buffer("slopes", torch.randint(1, PRIME, (hashes,)))
        self.register_buffer("shifts", torch.randint(PRIME, (hashes,)))
        self.hidden = nn.ModuleList(nn.Linear(i, width) for i in (hashes, *[width] * 4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(5))
        self.out = nn.Linear(width, dim)

    def _width(self, ratio: float, hashes: int) -> int:
        def floats(width: int) -> int:  # 21 of batch normalisation and biases for each unit, and 5 counters of 8 bytes
            return hashes * (width + 4) + 4 * width**2 + (self.dim + 25) * width + self.dim + 10

        width, allowed = 1, floats_within(ratio, self.num_ids, self.dim)
        if floats(1) > allowed:
            raise out_of_reach("dhe", ratio, floats(1) / (self.num_ids * self.dim))
        while floats(width + 1) <= allowed:
            width += 1
        return width

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        if self.training or torch.compiler.is_exporting():
            return self._computed(ids.flatten()).view(*ids.shape, self.dim)
        return once_each(ids, self._in_parts, self.dim)

    def _in_parts(self, ids: Tensor) -> Tensor:
        return torch.cat([self._computed(part) for part in torch.split(ids, COMPUTED)])

    def _computed(self, ids: Tensor) -> Tensor:
        hashed = (ids[:, None] * self.slopes + self.shifts).remainder_(PRIME).remainder_(self.buckets)
        x = hashed.to(self.out.weight.dtype) * (2 / (self.buckets - 1)) - 1
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = F.mish(batch_norm(norm, linear(x)))  # type: ignore[arg-type]
        found: Tensor = self.out(x)
        return found


class AdaptiveTable(Table):
    """Frequent ids own a row; the others share a small hashed table.

    Args:
        sizes, dim: see `Table`.
        ratio: r; rows of both kinds together are r N (0.5).
        frequent: share of each field's ids that own a row, the most frequent; None takes 0.1, as published, or half of
            the budget where that is less.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        frequent: float | None = None,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        self.split = HeadTail(sizes, min(0.1, ratio / 2) if frequent is None else frequent)
        index = sum(x.numel() * x.element_size() for x in self.split.buffers())
        rows = (floats_within(ratio, self.num_ids, dim) - math.ceil(index / FLOAT)) // dim
        shared = min(rows - self.split.heads, self.split.tails)
        if shared < 1 and self.split.tails:
            least = (self.split.heads + 1) * dim + math.ceil(index / FLOAT)
            raise out_of_reach("adaptive", ratio, least / (self.num_ids * dim))
        self.own = vectors(max(1, self.split.heads), dim, init_scale)
        self.shared = vectors(max(1, shared), dim, init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        field = self.fields_of(ids)
        frequent, place = self.split(ids - self.offsets[field], field)
        own = self.own(torch.where(frequent, place, 0))
        return torch.where(frequent[..., None], own, self.shared(place % self.shared.num_embeddings))
