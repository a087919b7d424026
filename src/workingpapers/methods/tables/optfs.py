"""OptFS: keeps single values of a field, not whole fields, by a gate on every row of the embedding table.

N values over all fields, E (N, d) the table, g (N,) logits of the gates, tau a temperature, s = 1 / sigmoid(0.5):

    soft    e_x = s sigmoid(tau g_x) E_x         g = 0.5 at first, so that every factor is 1 at tau = 1
    hard    e_x = s [g_x > 0] E_x
    loss  + lambda sum_x sigmoid(tau g_x)        over all N, at every step of the search; lambda N is `strength`

An interaction of two values carries the product of their gates, so choosing values chooses interactions too.

1. Search: T epochs, in which tau rises from 1 to gamma by one factor an epoch. Weights are remembered as they are at
   the beginning of epoch T_c.
2. Choose: what has g > 0 is kept.
3. Retrain from the remembered weights, as in the lottery-ticket papers, under the hard gates.

Values that no row holds, and rare ones, get little gradient from the data, so the penalty alone closes their gates:
much of the pruning is a cut by frequency. Compare with `CutTable` at the same `keep_ratio`. Gates follow the training
loss: values of noise that repeat are remembered, and kept. The first-order term of a model, where it has one, is not
gated.

Source: Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction", WWW 2023, arXiv 2301.10909, and the
authors' code (temperature, penalty, rewinding). Two things differ from the code: all weights are rewound, not those of
linear and normalisation layers and the table alone, and the gates of the inner-product network do close.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders.schema import Rows
from workingpapers.methods.recommenders.training import Plan, train
from workingpapers.methods.tables.common import tables_of
from workingpapers.methods.tables.pruned import PrunedTable, check_choice, redrawn

START = 0.5  # of the logits
SCALE = float(1 + torch.exp(torch.tensor(-START, dtype=torch.float64)))  # s


def temperatures(epochs: int, final: float) -> list[float]:
    """Return the temperature of each epoch of the search: 1 at first, `final` at last, by equal factors between.

    Raises:
        ValueError: fewer than two epochs, or a final temperature below 1.
    """
    if epochs < 2 or not final >= 1:
        raise ValueError(
            "the temperature rises from 1 over 2 epochs or more; "
            f"got search_epochs {epochs} and final_temperature {final}"
        )
    return [final ** (epoch / (epochs - 1)) for epoch in range(epochs)]


class FeatureGate(PrunedTable):
    """A full table with a gate on every row; `table="optfs"` of a click classifier searches, rewinds and retrains.

    Args:
        sizes, dim: see `Table`.
        strength: lambda N, in nats of the loss (0.3; the authors' commands come to 0.002 to 0.03 with millions of
            values and thousands of steps, which closes nothing on small tables).
        final_temperature: gamma (1,000; 100 to 10,000 in the paper).
        search_epochs: T (5; 5 to 20 in the paper).
        rewind_epoch: T_c, from 0, the initial weights, to T - 1 (1).
        learning_rate: of the gates; None takes the model's, as the authors' code. A gate closes after about
            0.5 / learning_rate steps without gradient from the data; the search must be longer than that.
        restart: "rewind"; or the ablation "random": the same mask on new random weights, which are the initial ones in
            a new order within every tensor.
        init_scale, sparse: see `FullTable`.

    Attributes:
        logits: g, (N,).
        temperature: tau of soft gates; None, as made and as loaded, where gates are hard and `kept` says what is left.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        strength: float = 0.3,
        final_temperature: float = 1000.0,
        search_epochs: int = 5,
        rewind_epoch: int = 1,
        learning_rate: float | None = None,
        restart: Literal["rewind", "random"] = "rewind",
        init_scale: float = 0.01,
        sparse: bool | None = None,
    ) -> None:
        super().__init__(sizes, dim, init_scale=init_scale, sparse=sparse)
        self.schedule = temperatures(search_epochs, final_temperature)
        if not 0 <= rewind_epoch < search_epochs:
            raise ValueError(f"rewind_epoch is {rewind_epoch}; it must be from 0 to {search_epochs - 1}")
        if strength < 0 or (learning_rate is not None and not learning_rate > 0):
            raise ValueError(f"strength is {strength} and learning_rate {learning_rate}; need 0 or more, and above 0")
        check_choice("restart", restart, ("rewind", "random"))
        self.strength, self.rewind_epoch, self.learning_rate = strength, rewind_epoch, learning_rate
        self.restart = restart
        self.temperature: float | None = None
        self.logits = nn.Parameter(torch.full((self.num_ids,), START), requires_grad=False)

    def soften(self, temperature: float) -> None:
        """Make the gates soft, and trained."""
        self.temperature = temperature
        self.logits.requires_grad_(True)

    def harden(self) -> None:
        """Fix what is kept by the sign of the logits."""
        self.temperature = None
        self.logits.requires_grad_(False)
        self.kept.copy_(self.logits > 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the gated vectors of global ids."""
        if self.temperature is None:
            return super().forward(ids) * SCALE
        gates = torch.sigmoid(self.temperature * self.logits[ids]) * SCALE
        vectors: Tensor = self.table(ids) * gates[..., None]
        return vectors

    def penalty(self) -> Tensor:
        """Return lambda sum sigmoid(tau g) while gates are soft, else 0."""
        if self.temperature is None:
            return super().penalty()
        return self.strength * torch.sigmoid(self.temperature * self.logits).mean()

    def groups(self) -> list[dict[str, Any]]:
        """Return the gates while they are trained: without weight decay, which would pull them to where they close."""
        if self.temperature is None:
            return []
        own = {} if self.learning_rate is None else {"lr": self.learning_rate}
        return [{"params": [self.logits], "weight_decay": 0.0, **own}]

    def search(
        self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, valid: tuple[Rows, Tensor] | None, seed: int
    ) -> None:
        """Search for `search_epochs`, and rewind.

        Warns:
            UserRemark: all values were kept, or none.
        """
        start = self.learn(model, rows, labels, plan, seed=seed)
        ratio = sum(table.keep_ratio for table in tables_of(model, FeatureGate))
        if ratio in (0, len(tables_of(model, FeatureGate))):
            kept, remedy = ("every", "raise") if ratio else ("no", "lower")
            remark = f"OptFS kept {kept} value; {remedy} strength, learning_rate or search_epochs"
            warnings.warn(remark, UserRemark, stacklevel=2)
        _rewind(model, redrawn(start) if self.restart == "random" else start)

    def learn(self, model: nn.Module, rows: Rows, labels: Tensor, plan: Plan, *, seed: int = 0) -> dict[str, Tensor]:
        """Train weights and gates together, harden the gates, and return the state from which to retrain.

        Early stopping plays no part: the gates need the whole schedule.
        """
        tables, start = tables_of(model, FeatureGate), {}
        remembered = self.rewind_epoch if self.restart == "rewind" else 0

        def begin(epoch: int) -> None:
            for table in tables:
                table.soften(self.schedule[epoch])
            if epoch == remembered:
                start.update(copy.deepcopy(model.state_dict()))

        for table in tables:
            table.soften(self.schedule[0])  # before the optimiser is made, which asks for the gates
        train(
            model, rows, labels, dataclasses.replace(plan, max_epochs=len(self.schedule)), seed=seed, before_epoch=begin
        )
        for table in tables:
            table.harden()
        return start


def _rewind(model: nn.Module, start: dict[str, Tensor]) -> None:
    """Load weights, and leave the gates as they are."""
    tables = tables_of(model, FeatureGate)
    found = [table.logits.detach().clone() for table in tables]
    model.load_state_dict(start)
    for table, logits in zip(tables, found, strict=True):
        table.logits.data.copy_(logits)
        table.harden()
