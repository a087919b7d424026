"""DIN: the candidate item decides which part of a history counts.

B rows, T steps of history, D the width of an item: of its vector, or of several vectors joined (item and category).
Candidate q (B, D), history k (B, T, D), both from one table; m (B, T) marks real steps.

    a[t] = m[t] net([q, k_t, q - k_t, q * k_t])                  (B, T); no softmax: the sum carries intensity
    v    = sum_t a[t] k_t                                        (B, D)
    logit = net([all fields, q among them; v])                   (B,)

Both nets use Dice: p s + (1 - p) alpha s with p = sigmoid of s, standardised per channel over the batch (by running
averages once trained); alpha is learnt. Batch-aware regularisation adds, for each id that a batch holds, its squared
norm over how often the id occurs in training, so that rare ids pay at all and absent ones cost nothing.

A history must end before the event that is predicted; the tables given here are taken to be built so. The paper does
not say how weights start: both nets start as ordinary ones do here (`baselines`).

Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv 1706.06978. The authors'
demo differs by a softmax over the history (`pooling="softmax"`). They corrected the results on Amazon later: the lead
over strong baselines is 0.001 to 0.003.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import UserRemark, unknown_name
from workingpapers.methods.recommenders.baselines import DeepClassifier, he_normal
from workingpapers.methods.recommenders.columns import flattened
from workingpapers.methods.recommenders.fields import FieldEmbedding, check_network
from workingpapers.methods.recommenders.schema import Field, Rows, Schema
from workingpapers.methods.recommenders.training import Plan

Activation = Literal["dice", "prelu"]
Pooling = Literal["attention", "softmax", "sum"]
COUNTED = 65_536  # rows whose ids are counted at a time


class Dice(nn.Module):
    """A PReLU whose hinge lies at the mean of the data and is as soft as they are spread.

    Args:
        channels: C, the last axis of the input.
        eps: added to the variance (1e-8, as in the paper).
        momentum: weight of the newest batch in the running averages (0.1, as PyTorch's batch normalisation).
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, s: Tensor) -> Tensor:
        """Return the activations of s (N, C); a batch of one row has no spread and is gated by running averages."""
        batch = self.training and s.shape[0] > 1
        standard = F.batch_norm(s, self.mean, self.variance, training=batch, momentum=self.momentum, eps=self.eps)
        gate = standard.sigmoid()
        return gate * s + (1 - gate) * self.alpha * s


def network(width: int, hidden: Sequence[int], activation: Activation, *, dropout: float = 0.0) -> nn.Sequential:
    """Return layers width -> hidden -> 1 with the paper's activations between, dropout after each.

    Raises:
        UserError: an activation of another name.
        ValueError: as `check_network`.
    """
    check_network(hidden, dropout)
    if activation not in get_args(Activation):
        raise unknown_name("activation", activation, get_args(Activation))
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), Dice(size) if activation == "dice" else nn.PReLU(size)]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class LocalActivationUnit(nn.Module):
    """Scores each step of a history against a candidate.

    Args:
        dim: D.
        hidden: widths of its network (80, 40, as in the authors' demo).
        activation: "dice" or "prelu".
        softmax: whether the scores, divided by sqrt(D), become shares that sum to 1, as in the authors' demo.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int] = (80, 40), activation: Activation = "dice", *, softmax: bool = False
    ) -> None:
        super().__init__()
        layers = network(4 * dim, hidden, activation)
        self.first, self.rest = cast(nn.Linear, layers[0]), layers[1:]
        self.softmax = softmax

    def forward(self, query: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        """Return the weights (B, T) of a history, 0 where it is not real.

        Args:
            query: (B, D) the candidate.
            keys: (B, T, D) the history.
            real: (B, T) bool, False at padding.
        """
        # The first layer acts on [q, k, q - k, q * k]; its parts are summed instead, the candidate's once for a row.
        of_query, of_key, of_difference, of_product = self.first.weight.chunk(4, dim=1)
        own = F.linear(query, of_query + of_difference, self.first.bias)
        if self.training:  # padding must not enter the statistics of Dice
            row, step = real.nonzero(as_tuple=True)
            own, query, chosen = own[row], query[row], keys[row, step]
        else:
            own, query, chosen = own[:, None], query[:, None], keys
        x = own + F.linear(chosen, of_key - of_difference) + F.linear(query * chosen, of_product)
        scores: Tensor = self.rest(x.flatten(0, -2)).squeeze(1)
        if self.training:
            scores = scores.new_zeros(real.shape).index_put((row, step), scores)
        else:
            scores = scores.view(real.shape)
        if self.softmax:
            lowest = torch.finfo(scores.dtype).min  # not -inf, for which an empty history would be NaN
            scores = (scores * keys.shape[2] ** -0.5).masked_fill(~real, lowest).softmax(dim=1)
        return scores * real


def batch_aware_l2(table: Callable[[Tensor], Tensor], ids: Tensor, counts: Tensor) -> Tensor:
    """Return sum over the distinct ids of a batch of |w_j|^2 / n_j, a scalar.

    Summed over an epoch in which no batch holds an id twice, that is the squared norm of all ids that occur.

    Args:
        table: ids (u,) to vectors (u, d).
        ids: (n,) those of the batch.
        counts: (N,) n_j, how often each id occurs in all training rows.
    """
    distinct = torch.unique(ids)
    return (table(distinct).square().sum(dim=1) / counts[distinct]).sum()


class DIN(nn.Module):
    """The model, over every "sequence of COLUMN" field of a schema; COLUMN holds the candidate.

    Args:
        embedding: of the fields.
        hidden: widths of the network on top (200, 80, as in the paper).
        attention_hidden, activation: see `LocalActivationUnit`.
        pooling: "attention" as in the paper, "softmax" as in the authors' demo, or "sum", the model without attention.
        joint: whether the sequences describe the same steps (item, category, ...) and are scored as one, with their
            vectors joined, as in the paper; otherwise each has a unit of its own.
        dropout: of the network on top.
        regularisation: lambda, times which `batch_aware_l2` is added to the loss; the step as printed in the paper,
            with its lambda of 0.01, has half of it. Needs `count`.

    Raises:
        UserError: an unknown activation or pooling.
        ValueError: a sequence without a candidate, a negative or infinite regularisation, or as `check_network`.
    """

    counts: Tensor

    def __init__(
        self,
        embedding: FieldEmbedding,
        hidden: Sequence[int] = (200, 80),
        *,
        attention_hidden: Sequence[int] = (80, 40),
        activation: Activation = "dice",
        pooling: Pooling = "attention",
        joint: bool = False,
        dropout: float = 0.0,
        regularisation: float = 0.0,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise unknown_name("pooling", pooling, get_args(Pooling))
        if not 0 <= regularisation < math.inf:
            raise ValueError(f"regularisation is {regularisation}; it must be finite and 0 or more")
        self.embedding, self.regularisation = embedding, regularisation
        self.groups = _groups(embedding.schema, joint)
        widths = [len(group) * embedding.dim for group in self.groups]
        self.units = nn.ModuleList(
            _Even()
            if pooling == "sum"
            else LocalActivationUnit(w, attention_hidden, activation, softmax=pooling != "attention")
            for w in widths
        )
        self.layers = network(embedding.num_fields * embedding.dim + sum(widths), hidden, activation, dropout=dropout)
        self.register_buffer("counts", torch.zeros(0), persistent=False)
        self._seen: Tensor | None = None

    def forward(self, rows: Rows) -> Tensor:
        """Return logits (B,)."""
        if self.training and self.regularisation:
            self._seen = self.embedding.global_ids(rows)
        e = self.embedding(rows)
        pooled = [(weights[:, None] @ keys).squeeze(1) for keys, weights in self._weighed(rows, e)]
        logits: Tensor = self.layers(torch.cat([e.flatten(1), *pooled], dim=1))
        return logits.squeeze(1)

    def weights(self, rows: Rows) -> dict[str, Tensor]:
        """Return by name of a sequence the weights of its steps, (B, T), 0 at padding."""
        found = [weights for _, weights in self._weighed(rows, self.embedding(rows))]
        return {field.name: w for group, w in zip(self.groups, found, strict=True) for field in group}

    def _weighed(self, rows: Rows, e: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the vectors (B, T, D) and weights (B, T) of each group of sequences."""
        found = []
        for group, unit in zip(self.groups, self.units, strict=True):
            candidates = [self.embedding.names.index(str(field.shares)) for field in group]
            vectors, masks = zip(*(self.embedding.lists(rows, field.name) for field in group), strict=True)
            if not torch.compiler.is_compiling():  # an exported program cannot raise
                _check_steps(group, masks)
            keys = torch.cat(vectors, dim=2)
            found.append((keys, unit(e[:, candidates].flatten(1), keys, masks[0])))
        return found

    def count(self, rows: Rows) -> None:
        """Count how often each id occurs in training rows: what regularisation divides by."""
        size = self.embedding.table.num_ids
        counts = torch.zeros(size, dtype=torch.long)
        for i in range(0, len(rows), COUNTED):
            ids = self.embedding.global_ids(rows[slice(i, i + COUNTED)].to(self.counts.device))
            counts += torch.bincount(ids, minlength=size).cpu()
        self.counts = counts.to(self.counts.device, torch.float32)

    def penalty(self) -> Tensor:
        """Return what the table and the last batch add to the loss.

        With several processes each counts the ids of its own rows, and the penalties are averaged.

        Raises:
            ValueError: regularisation without `count`.
        """
        table = self.embedding.table
        if self._seen is None:
            return table.penalty()
        if not len(self.counts):
            raise ValueError("regularisation divides by how often ids occur: call count(rows) before training")
        norms = batch_aware_l2(table, self._seen, self.counts)  # first: a table may count these lookups in its penalty
        return table.penalty() + self.regularisation * norms


class _Even(nn.Module):
    """Weighs all real steps 1."""

    def forward(self, query: Tensor, keys: Tensor, real: Tensor) -> Tensor:
        return real.to(keys.dtype)


def _groups(schema: Schema, joint: bool) -> list[list[Field]]:
    """Return the sequences that are scored together."""
    sequences = schema.of_kind("sequence")
    alone = [field.name for field in sequences if not field.shares]
    if alone:
        raise ValueError(f"sequences {alone} have no candidate; give their kind as 'sequence of COLUMN', or as 'multi'")
    return [sequences] if joint and sequences else [[field] for field in sequences]


def _check_steps(group: Sequence[Field], masks: Sequence[Tensor]) -> None:
    for field, mask in zip(group[1:], masks[1:], strict=True):
        if not torch.equal(mask, masks[0]):
            row = int((mask != masks[0]).any(dim=1).int().argmax())
            raise ValueError(
                f"joint histories must have the same steps; {group[0].name!r} and {field.name!r} have "
                f"{int(masks[0][row].sum())} and {int(mask[row].sum())} values, first in row {row} of a batch"
            )


class DINClassifier(DeepClassifier):
    """DIN on the columns of a table, whose histories are named in `kinds`: {"history": "sequence of item"}.

    Without any, a plain network on the fields is trained, and a warning given.

    Args:
        attention_hidden, activation, pooling, joint, regularisation: see `DIN`.
        options: see `DeepClassifier`.
    """

    model_: DIN

    def __init__(
        self,
        *,
        attention_hidden: Sequence[int] = (80, 40),
        activation: Activation = "dice",
        pooling: Pooling = "attention",
        joint: bool = False,
        regularisation: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.attention_hidden = attention_hidden
        self.activation = activation
        self.pooling = pooling
        self.joint = joint
        self.regularisation = regularisation

    def _build(self, schema: Schema) -> nn.Module:
        if not schema.of_kind("sequence"):
            remark = "no column is a history, so that DIN is a plain network; name one in kinds as 'sequence of COLUMN'"
            warnings.warn(remark, UserRemark, stacklevel=2)
        model = DIN(
            self._embedding(schema),
            self.hidden,
            attention_hidden=self.attention_hidden,
            activation=self.activation,
            pooling=self.pooling,
            joint=self.joint,
            dropout=self.dropout,
            regularisation=self.regularisation,
        )
        if self.table == "full":
            he_normal(model)
        return model

    def _train(self, rows: Rows, labels: Tensor, plan: Plan, valid: tuple[Rows, Tensor] | None, seed: int) -> Any:
        if self.regularisation:
            self.model_.count(rows)
        return super()._train(rows, labels, plan, valid, seed)

    @torch.inference_mode()
    def explain(self, X: Any) -> pd.DataFrame:
        """Return how much each step of the histories counts for the row's candidate.

        Returns:
            A table with a row for each step that the model sees (the latest ones): `row`, the number of the row in X;
            `field`; `position` in the row's list, 0 the first; `value`; and `weight`, of either sign unless
            `pooling` is "softmax".

        Raises:
            ValueError: columns that cannot be read.
        """
        check_is_fitted(self)
        table = self._table(X, None, reset=False)
        rows = self.schema_.encode(table)
        weights = self.model_.weights(rows.to(next(self.model_.parameters()).device))
        parts = [_steps(name, table[name], found.cpu().numpy()) for name, found in weights.items()]
        columns = ["row", "field", "position", "value", "weight"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _steps(name: str, column: pd.Series, weights: NDArray[np.float32]) -> pd.DataFrame:
    """Return a row for each value of a sequence column that has a place in weights (N, T), the latest last."""
    lengths, values = flattened(column)
    row = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = position - lengths[row] + weights.shape[1]
    kept = place >= 0
    return pd.DataFrame(
        {
            "row": row[kept],
            "field": name,
            "position": position[kept],
            "value": values[kept].to_numpy(),
            "weight": weights[row[kept], place[kept]],
        }
    )
