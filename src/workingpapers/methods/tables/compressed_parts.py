"""What compressed tables share: budgets, ids split by frequency, work done group by group.

A budget is a ratio r: bytes in service, indices and codes included, over the 4 N d of a full table in float32.

Frequency needs no counts here: the ids of a field stand in the order of their frequency in training, the commonest
first, so the head of each field is its frequent part and no index from ids to places has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.recommenders.training import Plan, train
from workingpapers.methods.tables.common import SPARSE_FROM, Table, tables_of

FLOAT = 4  # bytes of a float32


class SettlingTable(Table):
    """A table whose search is an ordinary training, at the end of which `settle` fixes what it found.

    Attributes:
        searching: whether that is still to come.
    """

    searching = True

    def settle(self) -> None:
        """End the search, in place; the values found are kept, and trained on."""
        self.searching = False

    def search(
        self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, valid: tuple[Rows, Tensor] | None, seed: int
    ) -> None:
        """Train the model by the plan, and settle its tables."""
        train(model, rows, labels, plan, valid=valid, seed=seed)
        for table in tables_of(model, SettlingTable):
            table.settle()


def floats_within(ratio: float, num_ids: int, dim: int) -> int:
    """Return how many float32 numbers a budget pays for.

    Args:
        ratio: r, above 0 and at most 1.
        num_ids: N; dim: d.

    Raises:
        ValueError: a ratio outside its range.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}; it must be above 0 and at most 1")
    return int(ratio * num_ids * dim)


def out_of_reach(method: str, ratio: float, least: float) -> ValueError:
    """Return the error for a budget that a method cannot keep, with the smallest that it can."""
    reason = f"the smallest ratio that this table allows is {least:.3g}" if least < 1 else "no ratio saves memory here"
    return ValueError(f"{method} cannot keep to ratio {ratio}: {reason}")


def vectors(rows: int, dim: int, std: float) -> nn.Embedding:
    """Return rows of normal numbers; tables of many rows have sparse gradients."""
    made = nn.Embedding(rows, dim, sparse=rows >= SPARSE_FROM)
    nn.init.normal_(made.weight, std=std)
    return made


def batch_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Normalise (n, C) by the batch in training, by what was seen before otherwise and for a batch of one."""
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training and x.shape[0] > 1
    )


class HeadTail(nn.Module):
    """Splits the ids of every field into a frequent head and a tail, and numbers each over all fields.

    Args:
        sizes: n_f.
        share: of a field's ids that is its head, rounded up; 0 to 1.

    Attributes:
        heads, tails: how many ids there are of each.
    """

    head: Tensor
    head_start: Tensor
    tail_start: Tensor

    def __init__(self, sizes: Sequence[int], share: float) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"the frequent share is {share}; it must be 0 to 1")
        head = torch.tensor([math.ceil(share * n) for n in sizes])
        tail = torch.tensor(sizes) - head
        self.heads, self.tails = int(head.sum()), int(tail.sum())
        self.register_buffer("head", head, persistent=False)
        self.register_buffer("head_start", head.cumsum(0) - head, persistent=False)
        self.register_buffer("tail_start", tail.cumsum(0) - tail - head, persistent=False)

    def forward(self, local: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether ids (local to their fields) are frequent, and their numbers among the heads or the tails."""
        frequent = local < self.head[field]
        return frequent, local + torch.where(frequent, self.head_start[field], self.tail_start[field])


def once_each(ids: Tensor, answer: Callable[[Tensor], Tensor], dim: int) -> Tensor:
    """Return the vectors (*, d) of ids (*) by a function of different ids, (n,) -> (n, d)."""
    each, place = torch.unique(ids, return_inverse=True)
    return answer(each)[place.flatten()].view(*ids.shape, dim)


def by_group(x: Tensor, group: Tensor, parts: Sequence[Callable[[Tensor], Tensor]], dim: int) -> Tensor:
    """Return (*, dim) where rows of x (*, w) are answered for by parts[g], (n, w) -> (n, dim), of their group g."""
    flat, which = x.reshape(-1, x.shape[-1]), group.flatten()
    at = [(which == g).nonzero().squeeze(1) for g in range(len(parts))]
    answers = torch.cat([part(flat[rows]) for part, rows in zip(parts, at, strict=True)])
    return torch.empty_like(answers).index_copy(0, torch.cat(at), answers).view(*group.shape, dim)
