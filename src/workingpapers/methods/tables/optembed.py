"""OptEmbed: a shorter embedding table in both directions, rows by a learned threshold and widths by a search.

F fields, E (N, D) the table, t (F,) thresholds (0 at first), d_f the width of field f, [.] 1 if true and 0 if not:

    e_x  = [ |E_x|_1 > t_f ] * (1, .., 1, 0, .., 0) * E_x           d_f ones, for the ids x of field f
    loss + alpha sum_f exp(-t_f)                                    pushes thresholds up, ever less

1. Supernet: weights and thresholds are trained together, d_f drawn anew from 1 .. D for every row and field, so that
   one network serves all widths. The step [z > 0] passes a gradient near 0 (`step`), to E and to t. At the end the row
   mask is fixed; ids that no training row holds go too, which would survive with their initial norms.
2. Search: `search_widths`, evolution on the validation AUC of the supernet.
3. Retrain from the initial weights, under row mask and widths.

Rows far from their threshold get no gradient from it: rare ones must be shrunk into its window by weight decay, so
`weight_decay` belongs to the method. First-order terms of a model are neither pruned nor counted.

Source: Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", CIKM 2022,
arXiv 2208.04482, and the authors' code for the gradient of the step. Its search is not followed where it changes
candidates after they were scored, draws crossover points from the widths, or counts a width by its index.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.recommenders.training import Plan, predict, train
from workingpapers.methods.tables.common import tables_of
from workingpapers.methods.tables.pruned import PrunedTable, check_choice, occurrences


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        size = z.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))
        return gradients[0] * slope


def step(z: Tensor) -> Tensor:
    """Return [z > 0] with a long-tailed gradient: 2 - 4|z| up to |z| = 0.4, 0.4 up to 1, and 0 beyond."""
    made: Tensor = _Step.apply(z)  # type: ignore[no-untyped-call]
    return made


@dataclass(frozen=True)
class Found:
    """What a search found: widths, their score, and the best score after each round."""

    widths: tuple[int, ...]
    score: float
    best: list[float]


def search_widths(
    score: Callable[[tuple[int, ...]], float],
    fields: int,
    dim: int,
    *,
    rounds: int = 30,
    mutations: int = 10,
    crossovers: int = 10,
    parents: int = 15,
    rate: float = 0.1,
    seed: int = 0,
) -> Found:
    """Search for the widths of the highest score by evolution.

    The first generation is drawn uniformly. Each later one descends from the best candidates of the one before: some
    are copied with every width drawn anew at a small rate, others join the beginning of one with the end of another.
    No candidate is scored twice, and what is returned is the best ever scored.

    Args:
        score: of widths (F,), each from 1 to D; higher is better.
        fields: F.
        dim: D.
        rounds: generations that are scored (30, as in the paper).
        mutations, crossovers: candidates of a generation made in each way (10 and 10, as in the paper).
        parents: the best candidates that a generation descends from (15, as in the paper).
        rate: probability with which a mutation draws a width anew (0.1, as in the paper).
        seed: of everything drawn.

    Raises:
        ValueError: an option out of range.
    """
    if min(fields, dim, rounds, parents, mutations + crossovers) < 1 or min(mutations, crossovers) < 0:
        raise ValueError("fields, dim, rounds, parents and candidates of a generation must be 1 or more")
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it must be above 0 and at most 1")
    rng = np.random.default_rng(seed)
    scores: dict[tuple[int, ...], float] = {}
    best: list[float] = []
    generation = rng.integers(1, dim + 1, size=(mutations + crossovers, fields))
    for _ in range(rounds):
        candidates = list(dict.fromkeys(tuple(row.tolist()) for row in generation))
        for candidate in candidates:
            if candidate not in scores:
                scores[candidate] = score(candidate)
        best.append(max(scores.values()))
        pool = np.array(sorted(candidates, key=lambda c: -scores[c])[:parents])
        mutated = pool[rng.integers(len(pool), size=mutations)]
        fresh = rng.integers(1, dim + 1, size=mutated.shape)
        mutated = np.where(rng.random(mutated.shape) < rate, fresh, mutated)
        left, right = pool[rng.integers(len(pool), size=(2, crossovers))]
        point = rng.integers(1, max(fields, 2), size=(crossovers, 1))
        generation = np.concatenate([mutated, np.where(np.arange(fields) < point, left, right)])
    winner = max(scores, key=lambda c: scores[c])
    return Found(winner, scores[winner], best)


def random_widths(rows: Sequence[int], dim: int, parameters: int, *, seed: int = 0) -> tuple[int, ...]:
    """Return widths drawn at random and then moved, at random too, as near to a number of parameters as they come.

    The control of a search: `rows` and `parameters` are what the searched table keeps.

    Args:
        rows: kept rows of each field, (F,).
        dim: the most width.
        parameters: which the sum of rows times width does not exceed.
        seed: of the draw.

    Raises:
        ValueError: width 1 everywhere has more parameters.
    """
    if sum(rows) > parameters:
        raise ValueError(f"{sum(rows)} rows of width 1 have more than {parameters} parameters")
    rng = np.random.default_rng(seed)
    kept = np.asarray(rows)
    widths = rng.integers(1, dim + 1, size=len(kept))
    while (excess := kept @ widths - parameters) > 0:
        widths[rng.choice(np.flatnonzero((widths > 1) & (kept > 0)))] -= 1
    while len(able := np.flatnonzero((widths < dim) & (kept > 0) & (kept <= -excess))):
        widths[rng.choice(able)] += 1
        excess = kept @ widths - parameters
    return tuple(widths.tolist())


class OptEmbedTable(PrunedTable):
    """A full table that learns which rows and widths it needs; `table="optembed"` of a click classifier does all of it.

    Its gradients are dense, for weight decay has to reach every row.

    Args:
        sizes, dim: see `Table`; `dim` is D, the most width.
        alpha: weight of the penalty (1e-3; 1e-6 to 1e-4 in the authors' commands, with millions of values).
        threshold_learning_rate: of t (1e-2; 1e-4 to 1e-2 in the authors' commands). Thresholds have no weight decay.
        rounds: of the search (30).
        search_rows: the most validation rows by which a candidate is scored (5,000), all where these are of one class;
            without a validation split they are training rows.
        widths: given for each field, in place of the search.
        prune: "both"; or the ablations "rows" and "widths".
        init_scale: see `FullTable`.

    Attributes:
        thresholds: t, (F,).

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        alpha: float = 1e-3,
        threshold_learning_rate: float = 1e-2,
        rounds: int = 30,
        search_rows: int = 5000,
        widths: Sequence[int] | None = None,
        prune: Literal["both", "rows", "widths"] = "both",
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(sizes, dim, init_scale=init_scale, sparse=False)
        if alpha < 0 or not threshold_learning_rate > 0 or min(rounds, search_rows) < 1:
            raise ValueError(
                f"alpha is {alpha}, threshold_learning_rate {threshold_learning_rate}, rounds {rounds} and search_rows "
                f"{search_rows}; need 0 or more, above 0, and 1 or more"
            )
        check_choice("prune", prune, ("both", "rows", "widths"))
        if widths is not None and (len(widths) != len(sizes) or min(widths) < 1 or max(widths) > dim):
            raise ValueError(f"widths is {list(widths)}; need one from 1 to {dim} for each of {len(sizes)} fields")
        self.alpha, self.threshold_learning_rate, self.prune = alpha, threshold_learning_rate, prune
        self.rounds, self.search_rows = rounds, search_rows
        self.given = None if widths is None else tuple(widths)
        self.thresholds = nn.Parameter(torch.zeros(len(self.sizes)), requires_grad=False)

    @property
    def learning(self) -> bool:
        """Whether this is the supernet: rows are masked by the thresholds, and widths are drawn in training."""
        return self.thresholds.requires_grad

    def learn(self) -> None:
        """Become the supernet."""
        self.thresholds.requires_grad_(True)

    @torch.no_grad()
    def fix_rows(self, counts: Tensor) -> None:
        """Stop being the supernet: fix the row mask.

        Args:
            counts: (N,) how often the training rows hold each id.
        """
        self.thresholds.requires_grad_(False)
        if self.prune == "widths":
            return
        fields = self.fields_of(torch.arange(self.num_ids, device=self.kept.device))
        above = self.table.weight.abs().sum(-1) > self.thresholds[fields]
        self.kept.copy_(above & (counts.to(above.device) > 0))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the masked vectors of global ids."""
        if not self.learning:
            return super().forward(ids)
        vectors: Tensor = self.table(ids)
        if self.prune != "widths":
            vectors = vectors * step(vectors.abs().sum(-1) - self.thresholds[self.fields_of(ids)])[..., None]
        if self.prune != "rows" and self.training:
            vectors = vectors * self.drawn(ids)
        return vectors

    def drawn(self, ids: Tensor) -> Tensor:
        """Return random column masks, (*, D): one width for all ids of a field in a row of the batch."""
        widths = torch.randint(1, self.dim + 1, (len(ids), len(self.sizes)), device=ids.device)
        own = widths.gather(1, self.fields_of(ids).flatten(1) if ids.dim() > 1 else self.fields_of(ids)[:, None])
        return torch.arange(self.dim, device=ids.device) < own.view(*ids.shape, 1)

    def penalty(self) -> Tensor:
        """Return alpha sum exp(-t) while this is the supernet, else 0."""
        if not self.learning or self.prune == "widths":
            return super().penalty()
        return self.alpha * torch.exp(-self.thresholds).sum()

    def groups(self) -> list[dict[str, Any]]:
        """Return the thresholds while they are learned, with their own rate and no weight decay."""
        if not self.learning:
            return []
        return [{"params": [self.thresholds], "lr": self.threshold_learning_rate, "weight_decay": 0.0}]

    def search(
        self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, valid: tuple[Rows, Tensor] | None, seed: int
    ) -> None:
        """Train the supernet by the plan, search, and go back to the initial weights."""
        tables, initial = tables_of(model, OptEmbedTable), copy.deepcopy(model.state_dict())
        for table in tables:
            table.learn()
        train(model, rows, labels, plan, valid=valid, seed=seed)
        for table in tables:
            table.fix_rows(occurrences(table, model, rows))
        if self.given is not None:
            for table in tables:
                table.widths.copy_(torch.tensor(self.given))
        elif self.prune != "rows":
            self._search(model, *(valid or (rows, labels)), seed)
        chosen = [(table.kept.clone(), table.widths.clone(), table.thresholds.clone()) for table in tables]
        model.load_state_dict(initial)
        for table, (kept, widths, thresholds) in zip(tables, chosen, strict=True):
            table.kept.copy_(kept)
            table.widths.copy_(widths)
            table.thresholds.data.copy_(thresholds)

    def _search(self, model: nn.Module, rows: Rows, labels: Tensor, seed: int) -> None:
        """Set the widths of all tables of a model to those of the best AUC."""
        tables = tables_of(model, OptEmbedTable)
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(rows), generator=generator)[: self.search_rows]
        if labels[sample].min() == labels[sample].max():  # a class so rare that none of it was drawn
            sample = torch.arange(len(rows))
        held, clicks = rows[sample], labels[sample].numpy()

        def choose(widths: tuple[int, ...]) -> None:
            parts = torch.split(torch.tensor(widths), [len(table.sizes) for table in tables])
            for table, part in zip(tables, parts, strict=True):
                table.widths.copy_(part)

        def score(widths: tuple[int, ...]) -> float:
            choose(widths)
            return auc(clicks, predict(model, held))

        fields = sum(len(table.sizes) for table in tables)
        choose(search_widths(score, fields, self.dim, rounds=self.rounds, seed=seed).widths)
