"""Tables whose rows are learnt to be shared: codes into codebooks, and blocks that turned out alike.

N ids, d wide, K keys, P parts of d / P.

    dpq    a query row q is cut into parts; each takes its nearest key k, and e(x) = q + stop(k - q), so the gradient
           reaches q as it is. The loss adds mean (k - stop(q))^2. Scores are batch-normalised, which keeps keys in use.
           Served: P codes of log2 K bits for each id, and the keys.
    mgqe   the same, with K keys for the frequent ids of a field and only the first K' for the rest
    dedup  a full table is trained; of blocks of rows that nearly agree one is kept, and the table trained on

Source: as in `compressed_hash`; in turn Chen et al. 2020 (DPQ, its "vq" form), Kang et al. 2020 (MGQE) and Zhou et al.
2022 (deduplication).
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from workingpapers.methods.tables.common import Table
from workingpapers.methods.tables.compressed_parts import (
    HeadTail,
    SettlingTable,
    batch_norm,
    floats_within,
    vectors,
)


class ProductQuantizedTable(Table):
    """Learns codes and their codebooks together. Training keeps a full table of queries.

    Args:
        sizes, dim: see `Table`.
        choices: K, keys of each part; a power of two (32, as in the study).
        parts: P, a divisor of d; None takes the largest one up to 8, which is the study's.
        init_scale: standard deviation of the initial queries and keys (0.01).
    """

    keys: nn.Parameter

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        choices: int = 32,
        parts: int | None = None,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        self.parts = max(p for p in range(1, 9) if dim % p == 0) if parts is None else parts
        if self.parts < 1 or dim % self.parts:
            raise ValueError(f"parts is {parts}; it must divide dim, {dim}")
        self.bits = _bits("choices", choices)
        self.choices = choices
        self.queries = vectors(self.num_ids, dim, init_scale)
        self.keys = nn.Parameter(torch.empty(self.parts, choices, dim // self.parts).normal_(std=init_scale))
        self.norm = nn.BatchNorm1d(self.parts * choices, affine=False)
        self._losses: deque[Tensor] = deque(maxlen=16)  # of the lookups since the last penalty

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        query = self.queries(ids.flatten())
        found = self._decoded(self._codes(query, ids.flatten()))
        if self.training and torch.is_grad_enabled():
            self._losses.append((found - query.detach()).square().mean())
        return (query + (found - query).detach()).view(*ids.shape, self.dim)

    def _codes(self, query: Tensor, ids: Tensor) -> Tensor:
        """Return the keys (n, P) that rows (n, d) take."""
        keys = self.keys.detach()
        rows = query.detach().view(len(query), self.parts, keys.shape[2]).transpose(0, 1)
        # -|q - k|^2 multiplied out: the differences of all rows and keys would be d / P times as large.
        scores = torch.baddbmm(-keys.square().sum(2)[:, None], rows, keys.mT, alpha=2)
        scores = (scores - rows.square().sum(2, keepdim=True)).transpose(0, 1)
        return self._allowed(batch_norm(self.norm, scores.flatten(1)).view_as(scores), ids).argmax(dim=2)

    def _allowed(self, scores: Tensor, ids: Tensor) -> Tensor:
        return scores

    def _decoded(self, codes: Tensor) -> Tensor:
        return _of_codes(self.keys, codes)

    def penalty(self) -> Tensor:
        """Return the mean squared distance of keys from the queries that took them, of all lookups of this step."""
        total = super().penalty() + sum(self._losses)
        self._losses.clear()
        return total

    @torch.no_grad()
    def all_codes(self) -> Tensor:
        """Return the codes of every id in eval mode, (N, P)."""
        was, ids = self.training, torch.arange(self.num_ids, device=self.offsets.device)
        self.eval()
        codes = torch.cat([self._codes(self.queries(part), part) for part in torch.split(ids, 65536)])
        self.train(was)
        return codes

    def served(self) -> Table:
        """Return codes and keys alone."""
        return CodedTable(self.sizes, self.keys.detach().clone(), [(self.all_codes(), self.bits)])


class MultiGranularTable(ProductQuantizedTable):
    """Gives frequent ids more keys to choose from than rare ones.

    Args:
        sizes, dim: see `Table`.
        choices: K, keys of frequent ids; a power of two (256, as in the study).
        rare_choices: K', of the others (64, as in the study).
        parts: P, a divisor of d; None takes the largest one up to 4, which is the study's.
        frequent: share of each field's ids that is frequent (0.1, as in the study).
        init_scale: standard deviation of the initial queries and keys (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        choices: int = 256,
        rare_choices: int = 64,
        parts: int | None = None,
        frequent: float = 0.1,
        init_scale: float = 0.01,
    ) -> None:
        largest = max(p for p in range(1, 5) if dim < 1 or dim % p == 0)
        super().__init__(sizes, dim, choices=choices, parts=largest if parts is None else parts, init_scale=init_scale)
        self.rare_bits = _bits("rare_choices", rare_choices)
        if rare_choices > choices:
            raise ValueError(f"rare_choices is {rare_choices}; it must be at most choices, {choices}")
        self.rare_choices = rare_choices
        self.split = HeadTail(sizes, frequent)

    def _frequent(self, ids: Tensor) -> Tensor:
        field = self.fields_of(ids)
        frequent: Tensor = self.split(ids - self.offsets[field], field)[0]
        return frequent

    def _allowed(self, scores: Tensor, ids: Tensor) -> Tensor:
        dear = torch.arange(self.choices, device=ids.device) >= self.rare_choices
        return scores.masked_fill(dear & ~self._frequent(ids)[:, None, None], -torch.inf)

    def served(self) -> Table:
        """Return codes of two lengths, and keys."""
        codes = self.all_codes()
        frequent = self._frequent(torch.arange(self.num_ids, device=codes.device))
        groups = [(codes[frequent], self.bits), (codes[~frequent], self.rare_bits)]
        return CodedTable(self.sizes, self.keys.detach().clone(), groups, deepcopy(self.split))


class CodedTable(Table):
    """Codes packed to the bit, and the keys they mean.

    Args:
        sizes: see `Table`.
        keys: (P, K, d / P).
        groups: codes (n, P) and bits of each, at most 24; two groups are the heads and the tails of `split`.
        split: which ids are of which group; None where there is one.
    """

    keys: Tensor
    codes: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        keys: Tensor,
        groups: Sequence[tuple[Tensor, int]],
        split: HeadTail | None = None,
    ) -> None:
        super().__init__(sizes, keys.shape[0] * keys.shape[2])
        rows = [packed(codes, bits) for codes, bits in groups]
        self.split, self.bits = split, [bits for _, bits in groups]
        self.lengths, self.first_tail = [part.shape[1] for part in rows], rows[0].numel()
        self.register_buffer("keys", keys)
        self.register_buffer("codes", torch.cat([part.flatten() for part in rows]))
        self.to(keys.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        start, bits = ids * self.lengths[0], torch.full_like(ids, self.bits[0])
        if self.split is not None:
            field = self.fields_of(ids)
            frequent, place = self.split(ids - self.offsets[field], field)
            start = torch.where(frequent, place * self.lengths[0], place * self.lengths[1] + self.first_tail)
            bits = torch.where(frequent, self.bits[0], self.bits[1])
        return _of_codes(self.keys, unpacked(self.codes, start, bits, len(self.keys), max(self.bits)))


def _of_codes(keys: Tensor, codes: Tensor) -> Tensor:
    """Return the keys (P, K, d / P) that codes (*, P) mean, joined: (*, d)."""
    parts, choices, _ = keys.shape
    place = codes + torch.arange(parts, device=codes.device) * choices
    return nn.functional.embedding(place, keys.flatten(0, 1)).flatten(-2)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes (n, P) below 2^bits as bytes (n, ceil(P bits / 8)), the lowest bit first."""
    ones = (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1
    count = codes.shape[1] * bits
    ones = nn.functional.pad(ones.flatten(1), (0, -count % 8)).view(len(codes), -(-count // 8), 8)
    return (ones << torch.arange(8, device=codes.device)).sum(dim=2).to(torch.uint8)


def unpacked(held: Tensor, start: Tensor, bits: Tensor, parts: int, most: int) -> Tensor:
    """Return the codes (*, P) of rows that `packed` made.

    Args:
        held: all rows, one after the other.
        start: (*) where in them each row begins; bits: (*) of its codes.
        parts: P.
        most: the most bits of any code, at most 24.
    """
    width = bits[..., None]
    first = torch.arange(parts, device=held.device) * width
    place = start[..., None] + (first >> 3)
    code = held[place].int()
    for k in range(1, 1 + most // 8 + (most % 8 > 1)):  # a code may reach into the next bytes
        code |= held[(place + k).clamp(max=len(held) - 1)].int() << (8 * k)
    return (code >> (first & 7)) & ((1 << width) - 1)


def _bits(name: str, count: int) -> int:
    if count < 2 or count & (count - 1):
        raise ValueError(f"{name} is {count}; it must be a power of two, 2 or more")
    return count.bit_length() - 1


class DedupTable(SettlingTable):
    """A full table that, once trained, keeps one of the blocks of rows that nearly agree.

    Blocks are visited by their third quartile, the smallest first; each is compared with those of the kept ones that
    share one of its 90 locality-sensitive hashes with it, and joins the most alike.

    Args:
        sizes, dim: see `Table`.
        ratio: r, at which no more blocks are merged; more are kept if too few agree (0.5).
        block: rows of a block (10,000, as in the study; a small table needs small blocks).
        tolerance: by how much entries may differ that count as equal (0.01, as in the study).
        agreement: share of entries that must be equal (0.7, as in the study).
        init_scale: standard deviation of the initial vectors (0.01).
    """

    remap: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        block: int = 10_000,
        tolerance: float = 0.01,
        agreement: float = 0.7,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim)
        if block < 1 or not 0 < agreement <= 1 or tolerance < 0:
            raise ValueError(
                f"block is {block}, agreement {agreement}, tolerance {tolerance}; need 1 or more, (0, 1], 0 or more"
            )
        self.block = min(block, self.num_ids)
        self.tolerance, self.agreement = tolerance, agreement
        blocks = -(-self.num_ids // self.block)
        self.kept = max(1, (floats_within(ratio, self.num_ids, dim) - blocks) // (self.block * dim))
        self.table = vectors(self.num_ids, dim, init_scale)
        self.register_buffer("remap", torch.arange(blocks, dtype=torch.int32))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        found: Tensor = self.table(self.remap[ids // self.block] * self.block + ids % self.block)
        return found

    def settle(self) -> None:
        """Merge blocks."""
        super().settle()
        last = self.num_ids % self.block  # a short last block agrees with nothing as a whole, and is kept
        full = len(self.remap) - (last > 0)
        rows = self.table.weight.detach()[: full * self.block].reshape(full, -1)
        target = len(self.remap) - self.kept
        for old, new in _alike(rows, self.tolerance, self.agreement, target).items():
            self.remap[old] = new

    @torch.no_grad()
    def served(self) -> Table:
        """Return the kept blocks and which block each id is in."""
        kept, place = torch.unique(self.remap, return_inverse=True)
        rows = (kept[:, None] * self.block + torch.arange(self.block, device=kept.device)).flatten()
        rows = rows[rows < self.num_ids]
        return BlockTable(self.sizes, self.table.weight[rows].clone(), place.int(), self.block)


class BlockTable(Table):
    """Blocks of rows, and which block stands for which.

    Args:
        sizes: see `Table`.
        rows: (n, d), the kept blocks one after the other.
        remap: (blocks,) int32, the kept block of each.
        block: rows of a block.
    """

    rows: Tensor
    remap: Tensor

    def __init__(self, sizes: Sequence[int], rows: Tensor, remap: Tensor, block: int) -> None:
        super().__init__(sizes, rows.shape[1])
        self.block = block
        self.register_buffer("rows", rows)
        self.register_buffer("remap", remap)
        self.to(rows.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        return self.rows[self.remap[ids // self.block] * self.block + ids % self.block]


def _alike(rows: Tensor, tolerance: float, agreement: float, most: int) -> dict[int, int]:
    """Return up to `most` blocks (n, entries) that an earlier one can stand for, and which."""
    merged: dict[int, int] = {}
    if most <= 0 or len(rows) < 2:
        return merged
    generator = torch.Generator().manual_seed(0)
    width, hashes = 0.09, 90  # the study's
    directions = torch.randn(rows.shape[1], hashes, generator=generator)
    shifts = torch.rand(hashes, generator=generator) * width
    codes = ((rows.cpu() @ directions + shifts) / width).floor().long().tolist()
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    order = [int(i) for i in _third_quartile(rows).argsort(stable=True)]
    for block in order:
        hashed = list(enumerate(codes[block]))
        candidates = sorted({other for key in hashed for other in buckets[key]})
        if candidates:
            equal = ((rows[candidates] - rows[block]).abs() <= tolerance).float().mean(dim=1)
            if equal.max() >= agreement:
                merged[block] = candidates[int(equal.argmax())]
                if len(merged) == most:
                    break
                continue
        for key in hashed:
            buckets[key].append(block)
    return merged


def _third_quartile(rows: Tensor) -> Tensor:
    return rows.kthvalue(max(1, math.ceil(0.75 * rows.shape[1])), dim=1).values
