"""Rows of a table as vectors: one embedding for all fields, on any table of `methods.tables`.

    categorical   e_m = table(id)
    multi         e_m = mean of table(id) over the row's values; 0 without any
    numerical     e_m = x_m v_m, one learned vector v_m per field
    sequence      kept as it is, (B, L, d) with a mask, for models of histories

Source of the three ways: Song et al., "AutoInt", CIKM 2019, arXiv 1810.11921, equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.methods.recommenders.schema import Rows, Schema
from workingpapers.methods.tables.common import Table, make_table


class FieldEmbedding(nn.Module):
    """Embeds the fields of a schema with one table.

    Args:
        schema: the fields.
        dim: d, the width of the vectors (16, as in AutoInt).
        table: a name of `methods.tables.common.TABLES`, or a function that makes a table from sizes and width.
        table_options: of a table by name.

    Attributes:
        table: the `Table` of all vocabularies.
        num_fields: F, the fields that `forward` returns: categorical, multi and numerical ones, in this order.
        names: of those F fields.

    Raises:
        ValueError: a schema without fields that can be embedded, or an option that the table refuses.
    """

    places: Tensor

    def __init__(
        self,
        schema: Schema,
        dim: int = 16,
        *,
        table: str | Callable[[list[int], int], Table] = "full",
        table_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        owners = [field for field in schema.of_kind("categorical", "multi", "sequence") if not field.shares]
        categorical, multi, numerical = (schema.of_kind(kind) for kind in ("categorical", "multi", "numerical"))
        self.names = [field.name for field in (*categorical, *multi, *numerical)]
        if not self.names:
            raise ValueError("the schema has no categorical, multi or numerical field to embed")
        self.schema, self.dim, self.num_fields = schema, dim, len(self.names)
        sizes = [field.size for field in owners] or [1]
        options = table_options or {}
        self.table = make_table(table, sizes, dim, **options) if isinstance(table, str) else table(sizes, dim)
        place = {field.name: i for i, field in enumerate(owners)}
        self.register_buffer(
            "places", torch.tensor([place[f.name] for f in categorical], dtype=torch.long), persistent=False
        )
        self._multi = [field.name for field in multi]
        self._owner = {f.name: place[f.shares or f.name] for f in schema.of_kind("multi", "sequence")}
        # Without numerical fields it is empty and stays out of training, or processes would wait for its gradient.
        directions = torch.empty(len(numerical), dim).normal_(std=0.01)
        self.directions = nn.Parameter(directions, requires_grad=bool(numerical))

    def forward(self, rows: Rows) -> Tensor:
        """Return (B, F, d)."""
        parts = [self.table(rows.ids + self.table.offsets[self.places])]
        for name in self._multi:
            vectors, real = self.lists(rows, name)
            parts.append(vectors.sum(1, keepdim=True) / real.sum(1).clamp(min=1).view(-1, 1, 1))
        if len(self.directions):
            parts.append(rows.numbers[:, :, None] * self.directions)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def lists(self, rows: Rows, name: str) -> tuple[Tensor, Tensor]:
        """Return the vectors of a multi or sequence field, (B, L, d), zero at padding, and which are real, (B, L)."""
        ids = rows.lists[name]
        real = ids != 0
        return self.table(ids + self.table.offsets[self._owner[name]]) * real[:, :, None], real

    def global_ids(self, rows: Rows) -> Tensor:
        """Return the table's ids of all values that rows hold, (n,), those of sequences too; padding is left out."""
        parts = [(rows.ids + self.table.offsets[self.places]).flatten()]
        for name, owner in self._owner.items():
            ids = rows.lists[name]
            parts.append(ids[ids != 0] + self.table.offsets[owner])
        return torch.cat(parts)


class ClickModel(nn.Module):
    """A network on embedded fields, with an optional first-order term: what most click models are.

    Args:
        embedding: of the fields.
        body: (B, F, d) in, logits (B,) out.
        linear: also adds a weight for every value, as factorisation machines and wide models do.
    """

    def __init__(self, embedding: FieldEmbedding, body: nn.Module, *, linear: bool = False) -> None:
        super().__init__()
        self.embedding, self.body = embedding, body
        self.first_order = FieldEmbedding(embedding.schema, 1) if linear else None
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Rows) -> Tensor:
        """Return logits (B,)."""
        logits: Tensor = self.body(self.embedding(rows)) + self.bias
        return logits if self.first_order is None else logits + self.first_order(rows).sum(dim=(1, 2))

    def penalty(self) -> Tensor:
        """Return what the table adds to the loss."""
        return self.embedding.table.penalty()


def check_network(hidden: Sequence[int], dropout: float) -> None:
    """Refuse widths below 1, and a dropout outside [0, 1).

    Raises:
        ValueError: names them.
    """
    if any(size < 1 for size in hidden) or not 0 <= dropout < 1:
        raise ValueError(
            f"hidden widths are {tuple(hidden)}, dropout is {dropout}; widths must be 1 or more, dropout 0 or more and "
            "below 1"
        )


def mlp(width: int, hidden: tuple[int, ...], *, dropout: float = 0.0, out: int = 1) -> nn.Sequential:
    """Return layers width -> hidden -> out with ReLU between, dropout after each.

    Raises:
        ValueError: as `check_network`.
    """
    check_network(hidden, dropout)
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, out))
