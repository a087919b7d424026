"""Strong ordinary click models: what the papers of this package are compared with.

All take embedded fields e (B, F, d) and return logits (B,). LR, FM and DeepFM add a weight for every value
(`linear`). Public re-runs (BARS, openbenchmark.github.io) find that a tuned MLP on the same embedding matches most
later models: it is the baseline to beat.

On a full table networks start as He et al. draw them (`he_normal`), and vectors from a deviation of SMALL. Against
torch's start with vectors of 0.01 that gains up to .006 validation AUC on films, flights and made-up clicks, and loses
on none of them (benchmarks/README.md). Larger vectors stay noise for rare values, which a step of Adam moves by 0.001.
On other tables, whose thresholds and codes were made for it, networks start as torch draws them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.crossing import cross, crossed
from workingpapers.methods.recommenders.estimator import SMALL, ClickClassifier
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding, check_network, mlp
from workingpapers.methods.recommenders.schema import Rows, Schema


def he_normal(network: nn.Module) -> None:
    """Draw the weights of linear layers from a normal distribution of variance 2 / in, and set biases to 0.

    Signals then keep their size through layers of ReLU. Source: He et al., "Delving Deep into Rectifiers", ICCV 2015.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


class FM(nn.Module):
    """Second-order interactions: sum over pairs of <e_i, e_j> = (|sum e|^2 - sum |e|^2) / 2 (Rendle, ICDM 2010)."""

    def forward(self, e: Tensor) -> Tensor:
        """Return (B,)."""
        return (e.sum(dim=1).square() - e.square().sum(dim=1)).sum(dim=1) / 2


class MLP(nn.Module):
    """A multi-layer perceptron on the concatenated fields.

    Args:
        fields: F; dim: d.
        hidden: widths of the layers.
        dropout: after each.
    """

    def __init__(self, fields: int, dim: int, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = mlp(fields * dim, hidden, dropout=dropout)

    def forward(self, e: Tensor) -> Tensor:
        """Return (B,)."""
        found: Tensor = self.layers(e.flatten(1)).squeeze(1)
        return found


class IPNN(nn.Module):
    """An MLP on the fields and the inner products of all pairs (Qu et al., "Product-based Neural Networks", 2016)."""

    pairs: Tensor

    def __init__(self, fields: int, dim: int, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0) -> None:
        super().__init__()
        first, second = torch.triu_indices(fields, fields, 1)
        self.register_buffer("pairs", first * fields + second, persistent=False)  # places in a flat square
        self.layers = mlp(fields * dim + len(self.pairs), hidden, dropout=dropout)

    def forward(self, e: Tensor) -> Tensor:
        """Return (B,)."""
        products = (e @ e.mT).flatten(1).index_select(1, self.pairs)
        found: Tensor = self.layers(torch.cat([e.flatten(1), products], dim=1)).squeeze(1)
        return found


class CrossNetwork(nn.Module):
    """DCN-V2's cross layers, x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, beside an MLP (Wang et al., WWW 2021).

    Args:
        fields: F; dim: d.
        layers: how many crosses.
        hidden: widths of the MLP, whose output is joined with the crosses'.
        dropout: of the MLP.

    Raises:
        ValueError: an MLP without layers, or as `fields.check_network`.
    """

    def __init__(
        self, fields: int, dim: int, layers: int = 2, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden is (); the MLP beside the crosses needs a layer")
        check_network(hidden, dropout)
        width = fields * dim
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.deep = mlp(width, hidden[:-1], dropout=dropout, out=hidden[-1])
        self.out = nn.Linear(width + hidden[-1], 1)

    def forward(self, e: Tensor) -> Tensor:
        """Return (B,)."""
        first = e.flatten(1)
        # Two products instead of one spare a copy of all that is joined.
        wide, deep = self.out.weight[0, : first.shape[1]], self.out.weight[:, first.shape[1] :]
        layers = (cast(nn.Linear, layer) for layer in self.crosses)
        given = (first, wide, *(w for layer in layers for w in (layer.weight, layer.bias)))
        found = cross(*given)
        if found is None:
            found = crossed(*given)
        return found + F.linear(self.deep(first).relu(), deep, self.out.bias).squeeze(1)


class LinearClassifier(ClickClassifier):
    """Logistic regression on one-hot values, by the same training as the others.

    A value has one weight: `dim`, `table` and `table_options` play no part.
    """

    def _build(self, schema: Schema) -> nn.Module:
        return _Linear(schema)


class _Linear(nn.Module):
    """The sum of a weight for every value."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, 1)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Rows) -> Tensor:
        return self.embedding(rows).sum(dim=(1, 2)) + self.bias


class FMClassifier(ClickClassifier):
    """A factorisation machine."""

    linear = True

    def _body(self, fields: int, dim: int) -> nn.Module:
        return FM()


class DeepClassifier(ClickClassifier):
    """A click model with an MLP; the base of those below.

    Args:
        hidden: widths of the MLP.
        dropout: of the MLP.
        options: see `ClickClassifier`.
    """

    def __init__(self, *, hidden: tuple[int, ...] = (128, 64), dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.hidden = hidden
        self.dropout = dropout


class TableMLPClassifier(DeepClassifier):
    """A multi-layer perceptron that starts alike on every table, as torch draws it: for comparisons between tables."""

    def _body(self, fields: int, dim: int) -> nn.Module:
        return MLP(fields, dim, tuple(self.hidden), self.dropout)


class OrdinaryClassifier(DeepClassifier):
    """A click model with an MLP that starts as this module says; the base of those below."""

    init_scale = SMALL

    def _build(self, schema: Schema) -> nn.Module:
        model = super()._build(schema)
        if self.table == "full":
            he_normal(cast(ClickModel, model).body)
        return model


class MLPClickClassifier(OrdinaryClassifier):
    """A multi-layer perceptron on the embedded fields: the named baseline."""

    def _body(self, fields: int, dim: int) -> nn.Module:
        return MLP(fields, dim, tuple(self.hidden), self.dropout)


class DeepFMClassifier(OrdinaryClassifier):
    """A factorisation machine and an MLP on one embedding (Guo et al., IJCAI 2017)."""

    linear = True

    def _body(self, fields: int, dim: int) -> nn.Module:
        return _Sum(FM(), MLP(fields, dim, tuple(self.hidden), self.dropout))


class IPNNClassifier(OrdinaryClassifier):
    """An inner-product network."""

    def _body(self, fields: int, dim: int) -> nn.Module:
        return IPNN(fields, dim, tuple(self.hidden), self.dropout)


class DCNClassifier(OrdinaryClassifier):
    """DCN-V2 with two crosses."""

    def _body(self, fields: int, dim: int) -> nn.Module:
        return CrossNetwork(fields, dim, hidden=tuple(self.hidden), dropout=self.dropout)


class _Sum(nn.Module):
    """The sum of two bodies."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, e: Tensor) -> Tensor:
        found: Tensor = self.first(e) + self.second(e)
        return found
