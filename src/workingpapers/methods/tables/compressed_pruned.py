"""Tables whose entries are pruned: full while training, sparse in service.

e is the row of an id, d wide; N ids.

    deeplight  every 10 steps the smallest entries are set to zero, a share S(1 - 0.99^(t / 100)) after t steps
    pep        sign(e) ReLU(|e| - sigmoid(s)), with a learnt threshold s for every entry
    autosrh    gate[group of the id] * e, gates (groups, d) in [0, 1] with an L1 penalty; groups by frequency

When a search settles, what is left is trained on under its mask. Sparse rows keep a byte (two above d = 256) for the
place of every entry beside its four, and four for the start of every row: a kept entry costs more than one of a full
table, so a ratio of 0.5 leaves about 0.35 of the entries at d = 16.

Source: as in `compressed_hash`; in turn Deng et al. 2021 (DeepLight), Liu et al. 2021 (PEP) and Kong et al. 2022
(AutoSrh). The authors learn AutoSrh's gates on validation batches; here they are learnt with everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workingpapers.methods.tables.common import Table
from workingpapers.methods.tables.compressed_parts import FLOAT, SettlingTable, floats_within, out_of_reach


class MaskedTable(SettlingTable):
    """A full table under a mask; the base of the others.

    Args:
        sizes, dim: see `Table`.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    mask: Tensor

    def __init__(self, sizes: Sequence[int], dim: int, *, init_scale: float = 0.01) -> None:
        super().__init__(sizes, dim)
        self.weight = nn.Parameter(torch.empty(self.num_ids, dim).normal_(std=init_scale))
        self.register_buffer("mask", torch.ones(self.num_ids, dim, dtype=torch.bool))

    def _rows(self, ids: Tensor) -> Tensor:
        return self.weight[ids] * self.mask[ids]

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        return self._rows(ids)

    @torch.no_grad()
    def settle(self) -> None:
        """Fix which entries are kept, with the values that they have in eval mode."""
        super().settle()
        rows = self._everything()
        self.weight.copy_(rows)
        self.mask.copy_(self._kept(rows))

    def _kept(self, rows: Tensor) -> Tensor:
        return rows != 0

    @torch.no_grad()
    def _everything(self) -> Tensor:
        return self(torch.arange(self.num_ids, device=self.weight.device))

    def served(self) -> Table:
        """Return the entries that are not zero."""
        return SparseTable(self.sizes, self._everything())


class SparseTable(Table):
    """Rows without their zeros.

    Args:
        sizes: see `Table`.
        rows: (N, d).
    """

    values: Tensor
    columns: Tensor
    starts: Tensor

    def __init__(self, sizes: Sequence[int], rows: Tensor) -> None:
        super().__init__(sizes, rows.shape[1])
        kept = rows != 0
        lengths = kept.sum(dim=1)
        self.longest = int(lengths.max())
        starts = nn.functional.pad(lengths.cumsum(0), (1, 0))
        self.register_buffer("values", rows[kept])
        self.register_buffer("columns", kept.nonzero()[:, 1].to(place_type(self.dim)))
        self.register_buffer("starts", starts.to(torch.int32 if len(self.values) < 2**31 else torch.int64))
        self.to(rows.device)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of global ids."""
        out = self.values.new_zeros(*ids.shape, self.dim + 1)  # what lies beyond a row's end goes to a last column
        if self.longest:
            place = self.starts[ids].long()[..., None] + torch.arange(self.longest, device=ids.device)
            inside = place < self.starts[ids + 1][..., None]
            place = place.clamp(max=len(self.values) - 1)
            column = torch.where(inside, self.columns[place].long(), self.dim)
            out = out.scatter(-1, column, self.values[place])
        return out[..., : self.dim]


def place_type(dim: int) -> torch.dtype:
    """Return the smallest type that holds a place in a row."""
    return torch.uint8 if dim <= 256 else torch.int16 if dim <= 2**15 else torch.int32


class _BudgetedTable(MaskedTable):
    """A pruned table that keeps to a ratio."""

    def __init__(self, sizes: Sequence[int], dim: int, *, ratio: float = 0.5, init_scale: float = 0.01) -> None:
        super().__init__(sizes, dim, init_scale=init_scale)
        starts = self.num_ids + 1
        each = 1 + place_type(dim).itemsize / FLOAT
        self.entries = int((floats_within(ratio, self.num_ids, dim) - starts) / each)
        if self.entries < 1:
            raise out_of_reach(type(self).__name__, ratio, (starts + each) / (self.num_ids * dim))

    def _kept(self, rows: Tensor) -> Tensor:
        """Return where the largest entries are, as many as the ratio allows."""
        return _largest(rows, min(self.entries, rows.numel())) & (rows != 0)


def _largest(rows: Tensor, count: int) -> Tensor:
    kept = torch.zeros(rows.numel(), dtype=torch.bool, device=rows.device)
    kept[rows.abs().flatten().topk(count, sorted=False).indices] = True
    return kept.view_as(rows)


class DeepLightTable(_BudgetedTable):
    """Prunes the smallest entries, more and more; what it pruned may grow again until the search settles.

    Args:
        sizes, dim: see `Table`.
        ratio: r, which the search reaches when it settles (0.5).
        pace: t is counted in steps of this many (100, as published).
        every: steps between prunings (10, as published).
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        pace: float = 100.0,
        every: int = 10,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim, ratio=ratio, init_scale=init_scale)
        if not pace > 0 or every < 1:
            raise ValueError(f"pace is {pace} and every {every}; they must be above 0, and 1 or more")
        self.pace, self.every, self.steps_done = pace, every, 0

    def share(self, step: int) -> float:
        """Return which share of the entries is zero after a pruning at some step."""
        target = 1 - min(1.0, self.entries / self.weight.numel())
        return target * (1 - 0.99 ** (step / self.pace))

    @torch.no_grad()
    def after_step(self) -> None:
        """Prune, every so many steps."""
        self.steps_done += 1
        if self.searching and self.steps_done % self.every == 0:
            kept = round((1 - self.share(self.steps_done)) * self.weight.numel())
            self.weight.mul_(_largest(self.weight, kept))


class PEPTable(MaskedTable):
    """Learns a threshold for every entry, under which it is zero; how sparse the table gets is left to the loss.

    Thresholds take as much memory in training as the table itself.

    Args:
        sizes, dim: see `Table`.
        threshold_init: s at the start (-8, a threshold of 0.0003). Published runs take -15 to -150 and get there by
            weight decay over far more steps; sigmoid(-150) is 0 in float32 and has no gradient.
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self, sizes: Sequence[int], dim: int, *, threshold_init: float = -8.0, init_scale: float = 0.01
    ) -> None:
        super().__init__(sizes, dim, init_scale=init_scale)
        self.thresholds = nn.Parameter(torch.full((self.num_ids, dim), float(threshold_init)))

    def _rows(self, ids: Tensor) -> Tensor:
        rows = super()._rows(ids)
        return rows.sign() * (rows.abs() - self.thresholds[ids].sigmoid()).relu()

    def settle(self) -> None:
        """Keep what is above its threshold, with the values that this leaves, and end thresholding."""
        super().settle()
        nn.init.constant_(self.thresholds, -150.0)
        self.thresholds.requires_grad_(False)


class AutoSrhTable(_BudgetedTable):
    """Learns which columns each group of ids needs; the smallest of gate times entry are pruned when it settles.

    Args:
        sizes, dim: see `Table`.
        ratio: r (0.5).
        groups: of ids, as many of each field by rank in frequency (6, as published).
        penalty: lambda of the L1 norm of the gates (1e-5, as published).
        init_scale: standard deviation of the initial vectors (0.01).
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        ratio: float = 0.5,
        groups: int = 6,
        penalty: float = 1e-5,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim, ratio=ratio, init_scale=init_scale)
        if groups < 1 or penalty < 0:
            raise ValueError(f"groups is {groups} and penalty {penalty}; they must be 1 or more, and 0 or more")
        self.strength = penalty
        self.gates = nn.Parameter(torch.ones(groups, dim))
        self.register_buffer("field_sizes", torch.tensor(self.sizes), persistent=False)

    def _rows(self, ids: Tensor) -> Tensor:
        field = self.fields_of(ids)
        size = self.get_buffer("field_sizes")[field]
        group = (ids - self.offsets[field]) * len(self.gates) // size
        return super()._rows(ids) * self.gates[group]

    def penalty(self) -> Tensor:
        """Return lambda times the summed gates while searching."""
        return self.strength * self.gates.abs().sum() if self.searching else super().penalty()

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the gates between 0 and 1."""
        self.gates.clamp_(0, 1)

    def settle(self) -> None:
        """Prune, and leave the gates in the entries."""
        super().settle()
        nn.init.ones_(self.gates)
        self.gates.requires_grad_(False)
