"""Unified Embedding: one hashed table for all fields, and its counterpart with one for each.

M rows shared by all fields, w their width, field f with ids v = 0 .. n_f - 1 and c_f lookups ("chunks").

    phi_f(v) = E[h_f1(v)], .., E[h_fc(v)] joined       E (M, w);  h_fj(v) = mix(v, salt = (f, j)) mod M

The salt makes the hash of every field, and of every chunk, a function of its own: without it value 3 of all fields
would share a row. A field that matters more gets more chunks. One number, M, is left to choose.

Why sharing does little harm: in a logistic regression z = sum_f <theta_f, phi_f(x_f)> the gradient of row r is

    sum over f, and over v with h_f(v) = r, of (dL/dz) theta_f

Values of one field that collide pull along the same theta_f and cannot be told apart any more. Values of different
fields pull along different theta, which training turns away from each other. So it needs a next layer with weights for
each field: an MLP, crosses, attention with residuals, but not the plain inner products of a factorisation machine.
Weight decay should be small, for rows grow with the load N / M, and a shared row decays at its busiest field's rate.

Source: Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
NeurIPS 2023, arXiv 2305.12102, and the layer of its authors in tensorflow/recommenders.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from workingpapers.methods.tables.common import SPARSE_FROM, Table

# Constants of the splitmix64 generator, as signed 64-bit numbers (Steele et al., OOPSLA 2014).
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def salted_hash(ids: Tensor, salt: Tensor | int, buckets: Tensor | int) -> Tensor:
    """Return a bucket for each id; every salt is another hash function.

    The same on every device, in every process and every version of Python. Arithmetic is modulo 2^64, as int64 does it.

    Args:
        ids: int64 of any shape.
        salt: int64, a number or a tensor that broadcasts with the ids.
        buckets: how many there are, 1 or more; likewise.

    Returns:
        int64 from 0 to buckets - 1.
    """
    salts = torch.as_tensor(salt, dtype=torch.int64, device=ids.device)
    mixed = _mix(_mix(ids.long() + _GOLDEN) ^ _mix(salts * _GOLDEN + _FIRST))
    return (mixed & (2**63 - 1)) % buckets  # without its sign, which % would follow


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right with zeros coming in; int64 would repeat the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class HashingTable(Table):
    """Ids hashed to rows of one matrix; the base of the two tables below.

    Args:
        sizes, dim: see `Table`.
        first: (F,) where each field's part of the matrix begins; parts may coincide.
        buckets: (F,) how many rows it has; 0 gives every id rows of its own from `first` on.
        rows: M, of the matrix.
        chunks: c_f of each field; a row has dim / max(chunks) numbers.
        salts: (F,) what tells the hash functions of the fields apart.
        init_scale: standard deviation of the initial numbers.

    Raises:
        ValueError: chunks that do not match the fields or do not divide the width.
    """

    first: Tensor
    buckets: Tensor
    salts: Tensor
    chunks: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        first: Sequence[int],
        buckets: Sequence[int],
        rows: int,
        chunks: Sequence[int],
        salts: Sequence[int],
        init_scale: float,
    ) -> None:
        super().__init__(sizes, dim)
        for name, given in (("first", first), ("buckets", buckets), ("salts", salts), ("chunks", chunks)):
            self.register_buffer(name, torch.tensor(given, dtype=torch.long), persistent=False)
        self.most = max(chunks)
        self.table = nn.Embedding(rows, dim // self.most, sparse=rows >= SPARSE_FROM)
        nn.init.normal_(self.table.weight, std=init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids; a field with fewer chunks than others ends in zeros."""
        field = self.fields_of(ids)
        real = torch.arange(self.most, device=ids.device) < self.chunks[field][..., None]
        vectors: Tensor = self.table(self.places(ids)) * real[..., None]
        return vectors.flatten(-2)

    def places(self, ids: Tensor) -> Tensor:
        """Return the rows that global ids look up, (*, c) with c the most chunks of any field."""
        field = self.fields_of(ids)
        local, chunk = (ids - self.offsets[field])[..., None], torch.arange(self.most, device=ids.device)
        buckets = self.buckets[field][..., None]
        hashed = salted_hash(local, self.salts[field][..., None] + chunk, buckets.clamp(min=1))
        return self.first[field][..., None] + torch.where(buckets > 0, hashed, local * self.most + chunk)


class UnifiedTable(HashingTable):
    """One table for all fields.

    Args:
        sizes, dim: see `Table`.
        ratio: numbers held, as a share of the N d of a full table (0.5; the paper measures 1, 0.5 and 0.1).
        rows: M; None takes it from the ratio. With M fixed, a further field leaves what the others look up unchanged.
        chunks: c, lookups for each id (1), or c_f for each field: the vector is that many rows of width d / max(c)
            joined, and zeros after them.
        collisionless: fields with at most so many ids get rows of their own, out of the same M (0, as in the paper;
            tiny vocabularies lose least from being left out at about 50).
        salted: False hashes value v of every field to the same row: the ablation.
        hash_seed: chooses among families of hash functions.
        init_scale: standard deviation of the initial numbers (0.01, as `FullTable`).

    Raises:
        ValueError: an option out of range, or a table too small for the fields that are to have their own rows.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        rows: int | None = None,
        chunks: int | Sequence[int] = 1,
        collisionless: int = 0,
        salted: bool = True,
        hash_seed: int = 0,
        init_scale: float = 0.01,
    ) -> None:
        lookups = [chunks] * len(sizes) if isinstance(chunks, int) else list(chunks)
        if len(lookups) != len(sizes) or min(lookups, default=1) < 1 or dim % max(lookups, default=1):
            raise ValueError(
                f"chunks is {chunks}; it must be 1 or more, for {len(sizes)} fields, and the most divide {dim}"
            )
        most = max(lookups, default=1)
        total = _rows(sizes, ratio, most) if rows is None else rows
        own = [n * most if n <= collisionless else 0 for n in sizes]
        shared = total - sum(own)
        if shared < (0 if all(own) else 1):
            raise ValueError(
                f"{total} rows are too few: {sum(own)} go to fields of {collisionless} ids or fewer, and the others "
                "need at least one"
            )
        begins = [shared + before - n for before, n in zip(accumulate(own), own, strict=True)]
        super().__init__(
            sizes,
            dim,
            first=[begin if n else 0 for begin, n in zip(begins, own, strict=True)],
            buckets=[0 if n else shared for n in own],
            rows=total,
            chunks=lookups,
            salts=[(hash_seed << 32) + (most * f if salted else 0) for f in range(len(sizes))],
            init_scale=init_scale,
        )


class HashedTable(HashingTable):
    """A hashed table for each field, in proportion to its ids: the baseline of the same memory.

    Args:
        sizes, dim: see `Table`.
        ratio: numbers held, as a share of the N d of a full table (0.5).
        hash_seed: chooses among families of hash functions.
        init_scale: standard deviation of the initial numbers (0.01, as `FullTable`).

    Raises:
        ValueError: an option out of range, or fewer rows than fields.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        hash_seed: int = 0,
        init_scale: float = 0.01,
    ) -> None:
        rows = _rows(sizes, ratio, 1)
        buckets = _in_proportion(sizes, rows)
        super().__init__(
            sizes,
            dim,
            first=[0, *accumulate(buckets)][:-1],
            buckets=buckets,
            rows=rows,
            chunks=[1] * len(sizes),
            salts=[(hash_seed << 32) + f for f in range(len(sizes))],
            init_scale=init_scale,
        )


def _rows(sizes: Sequence[int], ratio: float, chunks: int) -> int:
    """Return M, the rows of a table with `chunks` to a vector, within a share of a full table."""
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}; it must be above 0 and at most 1, a share of the full table")
    return max(1, round(ratio * sum(sizes) * chunks))


def _in_proportion(sizes: Sequence[int], rows: int) -> list[int]:
    """Split rows over fields in proportion to their ids, one or more for each."""
    if rows < len(sizes):
        raise ValueError(f"{rows} rows are too few for {len(sizes)} fields with a table each; raise ratio")
    ideal = [rows * n / sum(sizes) for n in sizes]
    given = [max(1, int(share)) for share in ideal]
    while sum(given) > rows:  # what was lent to the smallest comes from the largest
        given[given.index(max(given))] -= 1
    left = rows - sum(given)
    for f in sorted(range(len(sizes)), key=lambda f: given[f] - ideal[f])[:left]:
        given[f] += 1
    return given
