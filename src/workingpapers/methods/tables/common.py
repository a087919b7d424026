"""What every embedding table of this package shares: one id space over all fields, honest bytes, and a name.

A table serves fields f = 0 .. F-1 with n_f ids each. It is asked by *global* ids, offset_f + local id, so one call
serves all fields of a batch, and two fields never mean the same id. N = sum n_f.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.errors import unknown_name
from workingpapers.methods.recommenders.options import check_types

if TYPE_CHECKING:
    from workingpapers.methods.recommenders.schema import Rows
    from workingpapers.methods.recommenders.training import Plan

M = TypeVar("M", bound=nn.Module)
SPARSE_FROM = 200_000  # ids: beyond, a step of a dense optimiser over the whole table costs more than the batch itself


class Table(nn.Module):
    """Maps global ids to vectors; the base of all tables.

    Subclasses define `forward`; `served` where they serve from something else than they train; and `search` where they
    first look for something, such as what to prune.

    Args:
        sizes: n_f, ids of each field.
        dim: d, the width of the vectors.

    Attributes:
        offsets: (F,) the global id of each field's id 0, a buffer.
        num_ids: N.

    Raises:
        ValueError: no field, an empty field, or a width below 1.
    """

    offsets: Tensor

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        if not sizes or min(sizes) < 1 or dim < 1:
            raise ValueError(
                f"dim is {dim}, sizes are {sizes}; a table needs a width of 1 or more, and fields of 1 id or more"
            )
        self.sizes, self.dim, self.num_ids = tuple(sizes), dim, sum(sizes)
        self.register_buffer("offsets", torch.tensor([0, *accumulate(sizes)][:-1]), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids: int64 of any shape (*) in, (*, d) out."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def fields_of(self, ids: Tensor) -> Tensor:
        """Return which field each global id belongs to, in the shape of `ids`."""
        return torch.bucketize(ids, self.offsets, right=True) - 1

    def penalty(self) -> Tensor:
        """Return what the table adds to the loss of a step, a scalar; 0 unless a method says otherwise."""
        return self.offsets.new_zeros((), dtype=torch.float32)

    def groups(self) -> list[dict[str, Any]]:
        """Return parameters that Adam treats otherwise than the rest, as its groups: params, and lr or weight_decay."""
        return []

    def training_bytes(self) -> int:
        """Return the bytes of all parameters and buffers while training, without the optimiser's state."""
        return sum(x.numel() * x.element_size() for x in (*self.parameters(), *self._held()))

    def after_step(self) -> None:
        """Do what a method does after each step of the optimiser: nothing, unless it says otherwise."""

    def search(
        self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, valid: tuple[Rows, Tensor] | None, seed: int
    ) -> None:
        """Find out what the method looks for, and leave the model as it is to be trained: nothing, unless it says so.

        Where a model has several tables of a kind, one of them searches for all. Arguments as of `training.train`.
        """

    def served(self) -> Table:
        """Return the table that serves the vectors of this one in eval mode: itself, or a smaller one."""
        return self

    def serving_bytes(self) -> int:
        """Return the bytes that must be kept to answer for every id: of indices, codes and masks too."""
        return self.served().training_bytes()

    def _held(self) -> Iterable[Tensor]:
        return (buffer for name, buffer in self.named_buffers() if name != "offsets")


class FullTable(Table):
    """A vector of its own for every id: what all others are compared with.

    Args:
        sizes, dim: see `Table`.
        init_scale: standard deviation of the initial vectors (0.01, as the click models of this project's papers).
        sparse: whether gradients are sparse, which trains with lazy Adam; None takes them from `SPARSE_FROM` ids on.
    """

    def __init__(self, sizes: Sequence[int], dim: int, *, init_scale: float = 0.01, sparse: bool | None = None) -> None:
        super().__init__(sizes, dim)
        self.table = nn.Embedding(self.num_ids, dim, sparse=self.num_ids >= SPARSE_FROM if sparse is None else sparse)
        nn.init.normal_(self.table.weight, std=init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        if self.table.sparse:
            found: Tensor = self.table(ids)
            return found
        # The same values as self.table(ids), with a faster way back.
        return self.table.weight.index_select(0, ids.flatten()).view(*ids.shape, self.dim)


def tables_of(model: nn.Module, kind: type[M]) -> list[M]:
    """Return the modules of one kind in a model, in order."""
    return [module for module in model.modules() if isinstance(module, kind)]


def served_model(model: M) -> M:
    """Return a copy of a model in which every table is the one that serves: for service and export."""
    served = {id(table): table.served().eval() for table in tables_of(model, Table)}
    return copy.deepcopy(model, {key: table for key, table in served.items() if id(table) != key})


# Every table by the name that models take it by.
TABLES: dict[str, str] = {
    "full": "workingpapers.methods.tables.common:FullTable",
    "unified": "workingpapers.methods.tables.unified:UnifiedTable",
    "hashed": "workingpapers.methods.tables.unified:HashedTable",
    "optfs": "workingpapers.methods.tables.optfs:FeatureGate",
    "optembed": "workingpapers.methods.tables.optembed:OptEmbedTable",
    "cut-off": "workingpapers.methods.tables.pruned:CutTable",
    "hash": "workingpapers.methods.tables.compressed_hash:HashTable",
    "qr": "workingpapers.methods.tables.compressed_hash:QuotientRemainderTable",
    "robe": "workingpapers.methods.tables.compressed_hash:RobeTable",
    "dhe": "workingpapers.methods.tables.compressed_hash:DeepHashTable",
    "adaptive": "workingpapers.methods.tables.compressed_hash:AdaptiveTable",
    "tt": "workingpapers.methods.tables.compressed_low_rank:TensorTrainTable",
    "mixed-dim": "workingpapers.methods.tables.compressed_low_rank:MixedDimTable",
    "autodim": "workingpapers.methods.tables.compressed_low_rank:AutoDimTable",
    "dpq": "workingpapers.methods.tables.compressed_coded:ProductQuantizedTable",
    "mgqe": "workingpapers.methods.tables.compressed_coded:MultiGranularTable",
    "dedup": "workingpapers.methods.tables.compressed_coded:DedupTable",
    "deeplight": "workingpapers.methods.tables.compressed_pruned:DeepLightTable",
    "pep": "workingpapers.methods.tables.compressed_pruned:PEPTable",
    "autosrh": "workingpapers.methods.tables.compressed_pruned:AutoSrhTable",
    "quantized": "workingpapers.methods.tables.compressed_quantized:QuantizedTable",
    "alpt": "workingpapers.methods.tables.compressed_quantized:ALPTTable",
}


def make_table(name: str, sizes: Sequence[int], dim: int, **options: Any) -> Table:
    """Return a new table by name.

    Args:
        name: a key of `TABLES`.
        sizes, dim: see `Table`.
        options: of that table.

    Raises:
        UserError: no table has that name, or the table no option of one.
        ValueError: an option that is not finite, or that the table refuses.
    """
    if name not in TABLES:
        raise unknown_name("table", name, TABLES)
    module, _, kind = TABLES[name].partition(":")
    chosen: type[Table] = getattr(importlib.import_module(module), kind)
    known = [o for o in inspect.signature(chosen).parameters if o not in ("sizes", "dim")]
    for option in options:
        if option not in known:
            raise unknown_name("option", option, known, of=f"table {name}")
    check_types(chosen.__init__, options)
    # What searches draw are numpy's numbers, which lack what Python's have, and which torch does not take everywhere.
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}
    for option, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{option} is {value}; it must be finite")
    if plain.get("init_scale", 0) < 0:
        raise ValueError(f"init_scale is {plain['init_scale']}; it must be 0 or more, a standard deviation")
    return chosen(sizes, int(dim), **plain)
