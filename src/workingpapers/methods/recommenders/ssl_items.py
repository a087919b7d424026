"""Two towers for retrieval, with a contrastive task on items that helps the rare ones.

A query (here: a history) and an item are encoded apart, q and x in R^d, and compared by s(a, b), their cosine. N pairs:

    main       -1/N sum_i log  e^{s(q_i, x_i) / t - log p_i} / sum_j e^{s(q_i, x_j) / t - log p_j}
    auxiliary  -1/N sum_i log  e^{s(z_i, z'_i) / t'} / sum_j e^{s(z_i, z'_j) / t'}
    loss       main + alpha * auxiliary                    p_j: share of item j in the log

z and z' are two encodings of an item by the same tower, each from a part of its features: what is hidden is replaced by
a default vector of the feature's own, and one view keeps what the other hides. The items of the auxiliary task are a
batch of their own, drawn evenly from the catalogue: from the log the popular ones would fill it. Which features are
hidden:

    rfm   a random half
    cfm   a feature drawn at random and the floor(k / 2) that share most mutual information with it, so that what is
          left does not give away what is hidden

Some values of the multi-valued features can be dropped on top. An item's id must not be among the features: it would
tell the views apart at once. The correction by log p_j, for batches that hold popular items more often, is not in the
formula of the paper.

Source: Yao et al., "Self-supervised Learning for Large-scale Item Recommendations", CIKM 2021, arXiv 2007.12865; Yi et
al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019 (the correction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.fields import FieldEmbedding, mlp
from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.schema import Rows, Schema
from workingpapers.methods.recommenders.sequences import Log, padded

Masking = Literal["cfm", "rfm", "none"]


def in_batch_info_nce(
    a: Tensor, b: Tensor, temperature: float, *, log_q: Tensor | None = None, ids: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of finding row i of b by row i of a, by cosine.

    Args:
        a, b: (N, d); a zero vector has cosine 0 to everything.
        temperature: divides the cosines.
        log_q: (N,) log of how often each row of b is expected in a batch, which is subtracted from its logits.
        ids: (N,) of what the rows are; another row of the same id is no negative.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    if log_q is not None:
        logits = logits - log_q
    if ids is not None:
        same = ids[:, None] == ids
        logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(a), device=a.device))


def feature_mutual_info(present: Sequence[ArrayLike], *, normalized: bool = False) -> NDArray[np.float64]:
    """Return the mutual information of all pairs of features over a catalogue, (k, k) in nats.

    A feature is a partition of the items. For a multi-valued one each item's set of values counts as one value.

    Args:
        present: for each feature its values, (n,) or (n, values) padded with 0.
        normalized: divide by the mean of both entropies, which takes away the advantage of features of many values;
            features of one value then have 0.
    """
    from sklearn.metrics import mutual_info_score, normalized_mutual_info_score

    measure = normalized_mutual_info_score if normalized else mutual_info_score
    labels = []
    for column in present:
        values = np.asarray(column)
        values = np.sort(values.reshape(len(values), -1), axis=1)
        labels.append(np.unique(values, axis=0, return_inverse=True)[1].ravel())
    constant = [len(np.unique(label)) < 2 for label in labels]
    found = np.zeros((len(labels), len(labels)))
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            found[i, j] = 0.0 if constant[i] or constant[j] else measure(a, b)
    return found


class FeatureMasker:
    """Draws which features each of two views hides.

    Args:
        mode: "cfm", "rfm" or "none" (both views see everything).
        num_features: k.
        mutual_info: (k, k), for "cfm".
        seed: of the draws.
    """

    def __init__(
        self, mode: Masking, num_features: int, mutual_info: ArrayLike | None = None, *, seed: int | None = None
    ) -> None:
        if mode not in ("cfm", "rfm", "none"):
            raise ValueError(f"mode is {mode!r}; allowed: 'cfm', 'rfm', 'none'")
        if mode != "none" and num_features < 2:
            raise ValueError(f"there are {num_features} features; to hide some in each view takes 2")
        self.mode, self.num_features = mode, num_features
        self.rng = np.random.default_rng(seed)
        if mode == "cfm":
            information = np.asarray(mutual_info, np.float64)
            if information.shape != (num_features, num_features) or not np.isfinite(information).all():
                raise ValueError(
                    f"mutual_info must be finite and {num_features, num_features}; got {information.shape}"
                )
            information = information.copy()
            np.fill_diagonal(information, np.inf)  # the seed comes first
            self.nearest = np.argsort(-information, axis=1, kind="stable")

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return which features the first and the second view hide, (k,) each."""
        count, hidden = self.num_features, torch.zeros(self.num_features, dtype=torch.bool)
        if self.mode == "none":
            return hidden, hidden.clone()
        if self.mode == "cfm":
            # With two features the seed and its partner are everything: then the seed alone is hidden.
            size = min(count // 2 + 1, count - 1)
            hidden[self.nearest[self.rng.integers(count), :size].copy()] = True
        else:
            hidden[self.rng.permutation(count)[: count // 2]] = True
        return hidden, ~hidden


class ItemTower(nn.Module):
    """Encodes items by their features.

    Args:
        schema: of the features; without the item's id.
        dim: d, of each feature's vector and of the encoding.
        hidden: widths of the network between.
    """

    def __init__(self, schema: Schema, dim: int, hidden: tuple[int, ...] = (128,)) -> None:
        super().__init__()
        self.embedding = FieldEmbedding(schema, dim)
        self.default = nn.Parameter(torch.empty(self.embedding.num_fields, dim).normal_(std=0.01))
        self.network = mlp(self.embedding.num_fields * dim, hidden, out=dim)

    def forward(self, rows: Rows, hidden: Tensor | None = None) -> Tensor:
        """Return (B, d); features that `hidden` (k,) marks are replaced by their default vectors."""
        x = self.embedding(rows)
        if hidden is not None:
            x = torch.where(hidden.to(x.device)[:, None], self.default, x)
        found: Tensor = self.network(x.flatten(1))
        return found


class HistoryTower(nn.Module):
    """Encodes a history: the mean of learned vectors of its items, then a network."""

    def __init__(self, num_items: int, dim: int, hidden: tuple[int, ...] = (128,), dropout: float = 0.0) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(num_items + 1, dim, mode="mean", padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=0.1)
        self.dropout, self.network = nn.Dropout(dropout), mlp(dim, hidden, out=dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, d) of ids (B, L), 0 for padding."""
        found: Tensor = self.network(self.dropout(self.vectors(ids)))
        return found


class TwoTowerSSL(nn.Module):
    """Both towers and both losses.

    Args:
        query_tower: ids (B, L) in, (B, d) out.
        item_tower: rows and hidden features in, (B, d) out.
        rows: the V items of the catalogue.
        counts: (V,) how often each was taken.
        masker: of the auxiliary task.
        alpha: weight of the auxiliary loss (0.2); 0 leaves it out.
        temperature, ssl_temperature: of the two losses (0.07 and 0.1).
        value_dropout: share of the values of multi-valued features that each view loses on top (0).
        items: where the auxiliary task's items come from: evenly from the "catalogue", or from the "log".
    """

    counts: Tensor

    def __init__(
        self,
        query_tower: nn.Module,
        item_tower: nn.Module,
        rows: Rows,
        counts: Tensor,
        masker: FeatureMasker,
        *,
        alpha: float = 0.2,
        temperature: float = 0.07,
        ssl_temperature: float = 0.1,
        value_dropout: float = 0.0,
        items: Literal["catalogue", "log"] = "catalogue",
    ) -> None:
        super().__init__()
        if not 0 <= alpha < math.inf or not 0 <= value_dropout < 1:
            raise ValueError(f"alpha is {alpha}, value_dropout {value_dropout}; need >= 0, and from 0 to below 1")
        if not temperature > 0 or not ssl_temperature > 0:
            raise ValueError(f"temperature is {temperature} and ssl_temperature {ssl_temperature}; need > 0 of both")
        if items not in ("catalogue", "log"):
            raise ValueError(f"items is {items!r}; allowed: 'catalogue', 'log'")
        self.query_tower, self.item_tower, self.masker = query_tower, item_tower, masker
        self.alpha, self.temperature, self.ssl_temperature = alpha, temperature, ssl_temperature
        self.value_dropout, self.items = value_dropout, items
        self.rows = rows
        self.register_buffer("counts", counts.double())

    def draw(self, size: int) -> Tensor:
        """Return the items of a batch of the auxiliary task, (size,)."""
        if self.items == "log":
            return torch.multinomial(self.counts, size, replacement=True)
        return torch.randint(len(self.rows), (size,), device=self.counts.device)

    def _rows(self, items: Tensor) -> Rows:
        return self.rows[items.cpu()].to(self.counts.device)

    def _thinned(self, rows: Rows) -> Rows:
        if not self.value_dropout:
            return rows
        kept = {name: torch.rand(x.shape, device=x.device) >= self.value_dropout for name, x in rows.lists.items()}
        return replace(rows, lists={name: x * kept[name] for name, x in rows.lists.items()})

    def main_loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of pairs of a history (B, L), as ids, and the position of what came next, (B,)."""
        log_q = torch.log(self.counts[targets].clamp(min=1) / self.counts.sum()).float()
        items = self.item_tower(self._rows(targets))
        return in_batch_info_nce(self.query_tower(ids), items, self.temperature, log_q=log_q, ids=targets)

    def ssl_loss(self, items: Tensor) -> Tensor:
        """Return the auxiliary loss of items (B,), by position."""
        rows = self._rows(items)
        a, b = (self.item_tower(self._thinned(rows), hidden) for hidden in self.masker.sample())
        return in_batch_info_nce(a, b, self.ssl_temperature, ids=items)

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the whole loss of histories (B, L) and of what came next (B, 1), both as ids."""
        main = self.main_loss(ids, labels[:, 0] - 1)
        return main + self.alpha * self.ssl_loss(self.draw(len(ids))) if self.alpha else main

    def encode_items(self) -> Tensor:
        """Return the whole catalogue's encodings, (V, d), of length 1."""
        return F.normalize(self.item_tower(self.rows.to(self.counts.device)), dim=1)

    def scores(self, ids: Tensor) -> Tensor:
        """Return the cosines of histories with all items, (B, V)."""
        return F.normalize(self.query_tower(ids), dim=1) @ self.encode_items().T


class TwoTowerRecommender(NeuralRecommender):
    """Two towers on a log whose catalogue has features; the auxiliary task has weight `alpha`.

    Args:
        kinds: of the features, see `Schema.fit`; the item's id must not be one of them.
        alpha: weight of the auxiliary task (0.2); 0 leaves it out.
        masking: "cfm", "rfm", or "none".
        ssl_items: where the task's items come from: evenly from the "catalogue", or from the "log".
        temperature, ssl_temperature: of the two losses (0.07 and 0.1).
        value_dropout: share of the values of multi-valued features that each view loses on top (0).
        hidden: widths of either tower's network (128).
        options: see `NeuralRecommender`; here each item but a user's first is an example with the `max_len` items
            before it.
    """

    def __init__(
        self,
        *,
        kinds: Mapping[str, str] | None = None,
        alpha: float = 0.2,
        masking: Masking = "cfm",
        ssl_items: Literal["catalogue", "log"] = "catalogue",
        temperature: float = 0.07,
        ssl_temperature: float = 0.1,
        value_dropout: float = 0.0,
        hidden: tuple[int, ...] = (128,),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.kinds = kinds
        self.alpha = alpha
        self.masking = masking
        self.ssl_items = ssl_items
        self.temperature = temperature
        self.ssl_temperature = ssl_temperature
        self.value_dropout = value_dropout
        self.hidden = hidden

    def _build(self, log: Log) -> nn.Module:
        if log.features is None:
            raise ValueError("TwoTowerRecommender needs a log with features of its items")
        schema = Schema.fit([log.features], kinds=self.kinds, min_count=1)
        rows = schema.encode(log.features)
        tower = ItemTower(schema, self.dim, self.hidden)
        names = tower.embedding.names
        # Normalised: the plain information is largest with whatever feature has the most values.
        information = feature_mutual_info(_columns(schema, rows), normalized=True)
        mode: Masking = self.masking if self.alpha else "none"
        masker = FeatureMasker(mode, len(names), information, seed=torch.initial_seed())
        return TwoTowerSSL(
            HistoryTower(len(log.items), self.dim, self.hidden, self.dropout),
            tower,
            rows,
            torch.from_numpy(log.counts()),
            masker,
            alpha=self.alpha,
            temperature=self.temperature,
            ssl_temperature=self.ssl_temperature,
            value_dropout=self.value_dropout,
            items=self.ssl_items,
        )

    def _examples(self, log: Log) -> tuple[Tensor, Tensor]:
        before = [history[max(0, i - self.max_len) : i] for history in log.histories for i in range(1, len(history))]
        after = [history[i : i + 1] for history in log.histories for i in range(1, len(history))]
        if not before:
            raise ValueError("no history has two items to learn from")
        return padded(before, self.max_len), padded(after, 1)


def _columns(schema: Schema, rows: Rows) -> list[NDArray[Any]]:
    """Return the values of the fields in the order of `FieldEmbedding`; numbers are cut into tenths."""
    numbers = rows.numbers.numpy()
    tenths = [np.searchsorted(np.quantile(x, np.linspace(0.1, 0.9, 9)), x) for x in numbers.T]
    multi = [rows.lists[field.name].numpy() for field in schema.of_kind("multi")]
    return [*rows.ids.numpy().T, *multi, *tenths]
