"""Full tables of which rows, or the ends of a field's rows, are dropped; and the plain ways to choose what goes.

    e_x = keep_x * (1, .., 1, 0, .., 0) * E_x      keep (N,) of 0 and 1; d_f ones for the ids x of field f

A pruned table trains as an (N, d) matrix under its mask and is served as a `CompactTable`, which holds the numbers that
are left and answers bit for bit the same. What is left is `keep_ratio`, so two tables of one ratio serve from equally
many bytes. Methods choose in `search`.

`CutTable` chooses without learning, by frequency or at random: a learned choice has to beat it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from workingpapers.methods.recommenders.schema import FIRST, PADDING, Rows, Schema
from workingpapers.methods.recommenders.training import Plan, predict
from workingpapers.methods.tables.common import FullTable, Table, tables_of


class PrunedTable(Table):
    """A full table under a mask of rows and widths; the base of methods that choose one.

    Args:
        sizes, dim: see `Table`.
        init_scale, sparse: see `FullTable`.

    Attributes:
        table: the `nn.Embedding` E, (N, d).
        kept: (N,) which rows are left; all, until a method chooses.
        widths: (F,) how many numbers of each field's rows are left; all.
    """

    kept: Tensor
    widths: Tensor

    def __init__(self, sizes: Sequence[int], dim: int, *, init_scale: float = 0.01, sparse: bool | None = None) -> None:
        super().__init__(sizes, dim)
        self.table = FullTable(sizes, dim, init_scale=init_scale, sparse=sparse).table
        self.register_buffer("kept", torch.ones(self.num_ids, dtype=torch.bool))
        self.register_buffer("widths", torch.full((len(self.sizes),), dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids, zero where they are dropped."""
        vectors: Tensor = self.table(ids) * self.mask(ids)
        return vectors

    def mask(self, ids: Tensor) -> Tensor:
        """Return what is left of each vector, (*, d) of booleans."""
        columns = torch.arange(self.dim, device=ids.device) < self.widths[self.fields_of(ids)][..., None]
        return self.kept[ids][..., None] & columns

    def kept_rows(self) -> Tensor:
        """Return how many rows of each field are left, (F,)."""
        return torch.stack([part.sum() for part in torch.split(self.kept, list(self.sizes))])

    def kept_parameters(self) -> int:
        """Return how many numbers are left: the sum over fields of rows times width."""
        return int((self.kept_rows() * self.widths).sum())

    @property
    def keep_ratio(self) -> float:
        """The share of the N d numbers that is left."""
        return self.kept_parameters() / (self.num_ids * self.dim)

    def kept_values(self, schema: Schema) -> dict[str, list[str]]:
        """Return the values that are left, by field, most frequent first, for the schema that the table was made for.

        Raises:
            ValueError: the fields of the schema have other sizes than the table's.
        """
        owners = [field for field in schema.of_kind("categorical", "multi", "sequence") if not field.shares]
        if tuple(field.size for field in owners) != self.sizes:
            raise ValueError(
                f"the schema's fields have {[field.size for field in owners]} ids and the table's {self.sizes}"
            )
        parts = [part[FIRST:].tolist() for part in torch.split(self.kept, list(self.sizes))]
        return {
            field.name: [value for value, left in zip(field.values, part, strict=True) if left]
            for field, part in zip(owners, parts, strict=True)
        }

    @torch.no_grad()
    def served(self) -> CompactTable:
        """Return the table without what was pruned, whose answers are bit for bit the same."""
        own = copy.deepcopy(self).eval()
        vectors = own(torch.arange(self.num_ids, device=self.kept.device))
        return CompactTable(self.sizes, vectors, self.kept, self.widths)


class CompactTable(Table):
    """A pruned table without what was pruned: one run of numbers, and where in it each id's begin.

    Args:
        sizes: n_f, ids of each field.
        vectors: (N, d) of every id.
        kept: (N,) booleans, which have a vector; the others' is zero.
        widths: (F,) how much of a field's vectors is held; the rest is zero.

    Raises:
        ValueError: shapes that disagree.
    """

    index: Tensor
    widths: Tensor

    def __init__(self, sizes: Sequence[int], vectors: Tensor, kept: Tensor, widths: Tensor) -> None:
        super().__init__(sizes, vectors.shape[1])
        if len(vectors) != self.num_ids or len(kept) != self.num_ids or len(widths) != len(sizes):
            raise ValueError(
                f"{self.num_ids} ids in {len(sizes)} fields, but {len(vectors)} vectors, {len(kept)} marks of which to "
                f"keep and {len(widths)} widths"
            )
        self.to(vectors.device)
        lengths = widths[self.fields_of(torch.arange(self.num_ids, device=vectors.device))] * kept
        begin = torch.where(kept, lengths.cumsum(0) - lengths, -1)
        numbers = vectors[torch.arange(self.dim, device=vectors.device) < lengths[:, None]].detach().clone()
        self.register_buffer("index", begin.to(_index_type(len(numbers))))
        self.register_buffer("widths", widths.clone())
        # One number stands in where nothing is left, so that there is something to index.
        self.numbers = nn.Parameter(numbers if len(numbers) else vectors.new_zeros(1), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        begin = self.index[ids].long()[..., None]
        column = torch.arange(self.dim, device=ids.device)
        held = (begin >= 0) & (column < self.widths[self.fields_of(ids)][..., None])
        return self.numbers[torch.where(held, begin + column, 0)] * held


def _index_type(numbers: int) -> torch.dtype:
    return torch.int32 if numbers < 2**31 else torch.int64


class CutTable(PrunedTable):
    """Keeps the most frequent rows, or any, without learning which: what a learned choice is compared with.

    Args:
        sizes, dim: see `Table`.
        share: of the N rows that is kept, over all fields together (0.5). Give it the `keep_ratio` of a learned table
            for a comparison at equal bytes.
        by: "frequency" keeps the rows that the training data asks for most; "random" draws them.
        init_scale, sparse: see `FullTable`.

    Raises:
        ValueError: a share outside [0, 1], or another way to choose.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        share: float = 0.5,
        by: Literal["frequency", "random"] = "frequency",
        init_scale: float = 0.01,
        sparse: bool | None = None,
    ) -> None:
        super().__init__(sizes, dim, init_scale=init_scale, sparse=sparse)
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be from 0 to 1")
        check_choice("by", by, ("frequency", "random"))
        self.share, self.by = share, by

    def search(
        self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, valid: tuple[Rows, Tensor] | None, seed: int
    ) -> None:
        """Choose rows."""
        for table in tables_of(model, CutTable):
            counts = occurrences(table, model, rows)
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randperm(table.num_ids, generator=generator)
            ranked = counts.argsort(descending=True, stable=True) if self.by == "frequency" else drawn
            table.kept.fill_(False)
            table.kept[ranked[: round(self.share * table.num_ids)].to(table.kept.device)] = True


def occurrences(table: Table, model: nn.Module, rows: Rows) -> Tensor:
    """Return how often rows ask a table of a model for each id, (N,); padding counts as never asked for."""
    counts = torch.zeros(table.num_ids, dtype=torch.long)

    def count(_: nn.Module, asked: tuple[Tensor, ...]) -> None:
        counts.add_(torch.bincount(asked[0].flatten().cpu(), minlength=table.num_ids))

    handle = table.register_forward_pre_hook(count)
    try:
        predict(model, rows)
    finally:
        handle.remove()
    counts[table.offsets.cpu() + PADDING] = 0
    return counts


def redrawn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with the entries of every tensor of real numbers in a new random order.

    Of initial weights, whose entries are drawn independently from one distribution a tensor, that is another draw.
    """
    return {
        name: x.flatten()[torch.randperm(x.numel()).to(x.device)].view_as(x) if x.is_floating_point() else x
        for name, x in state.items()
    }


def check_choice(option: str, given: str, allowed: Sequence[str]) -> None:
    """Refuse an option that is none of the allowed words.

    Raises:
        ValueError: names it, and what is allowed.
    """
    if given not in allowed:
        raise ValueError(f"{option} is {given!r}; allowed: {', '.join(map(repr, allowed))}")
