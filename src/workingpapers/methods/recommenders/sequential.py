"""The usual recommenders of the next item: popularity, neighbours by use or by content, ALS, SASRec and GRU4Rec.

Item vectors E (V, d) are input and output of the networks: x_k = E[item k], and after a history with state z in R^d the
score of item v is z . E_v. Both are trained by cross-entropy over the full catalogue,

    loss = mean over positions k of -log softmax_v(z_k . E_v)[item k + 1]

and not by one sampled negative as SASRec's authors did: with the full softmax SASRec is a far stronger baseline.

Sources: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, arXiv 1808.09781; Hidasi et al.,
"Session-based Recommendations with Recurrent Neural Networks", ICLR 2016, arXiv 1511.06939; Klenitskiy and Vasilev,
"Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?", RecSys 2023, arXiv 2309.07602 (the loss); Hu,
Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008 (ALS).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.sequences import Histories, Log, SequenceRecommender, item_vectors, last_of
from workingpapers.progress import counted, watched

BLOCK = 1024  # items whose similarities to all others are held at a time


class TiedSequenceModel(nn.Module):
    """A causal network on item vectors that also score the next item.

    Args:
        num_items: V.
        body: (B, L, d) in, states (B, L, d) out; a state depends on its own and on earlier steps alone.
        dim: d.
        dropout: of the inputs.
    """

    def __init__(self, num_items: int, body: nn.Module, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.items.weight[1:], std=0.02)
        self.body, self.dropout = body, nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the states (B, L, d) of ids (B, L)."""
        states: Tensor = self.body(self.dropout(self.items(ids)))
        return states

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy over all items, averaged over the positions that have a label."""
        real = labels != 0
        return F.cross_entropy(self(ids)[real] @ self.items.weight[1:].T, labels[real] - 1)

    def scores(self, ids: Tensor) -> Tensor:
        """Return the scores of all items after each history, (B, V)."""
        return last_of(self(ids), ids) @ self.items.weight[1:].T


class CausalTransformer(nn.Module):
    """Transformer blocks with normalisation first, learnt positions and a final norm, (B, L, d) to (B, L, d)."""

    def __init__(self, dim: int, max_len: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(max_len, dim).normal_(std=0.02))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(dim), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of inputs."""
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device)
        states: Tensor = self.layers(x + self.positions[:length], mask=mask, is_causal=True)
        return states


class GRUBody(nn.Module):
    """A gated recurrent unit, (B, L, d) to (B, L, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.unit = nn.GRU(int(dim), int(dim), batch_first=True)  # torch takes no integers of numpy's here

    def forward(self, x: Tensor) -> Tensor:
        """Return the states of inputs."""
        states: Tensor = self.unit(x)[0]
        return states


class SASRecRecommender(NeuralRecommender):
    """Self-attention over the history (SASRec), with the full softmax.

    Args:
        blocks: transformer blocks (2, as in the paper).
        heads: of attention (2); divides `dim`.
        options: see `NeuralRecommender`.
    """

    def __init__(self, *, blocks: int = 2, heads: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.blocks = blocks
        self.heads = heads

    def _build(self, log: Log) -> nn.Module:
        if self.blocks < 1 or self.heads < 1 or self.dim % self.heads:
            raise ValueError(
                f"blocks is {self.blocks}, heads {self.heads}; need 1 or more, and heads to divide {self.dim}"
            )
        body = CausalTransformer(self.dim, self.max_len, self.blocks, self.heads, self.dropout)
        return TiedSequenceModel(len(log.items), body, self.dim, self.dropout)


class GRU4RecRecommender(NeuralRecommender):
    """A gated recurrent unit over the history (GRU4Rec), with the full softmax; for options see `NeuralRecommender`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)

    def _build(self, log: Log) -> nn.Module:
        return TiedSequenceModel(len(log.items), GRUBody(self.dim), self.dim, self.dropout)


class PopularityRecommender(SequenceRecommender):
    """Scores an item by how often it was taken, whatever the history."""

    def _fit(self, log: Log) -> None:
        self.counts_ = torch.from_numpy(log.counts()).float()

    def _scores(self, histories: Histories) -> Tensor:
        return self.counts_.repeat(len(histories), 1)


def matrix(histories: Histories, num_items: int) -> sparse.csr_array:
    """Return the 0/1 matrix (U, V) of who took what."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = np.concatenate([*histories, np.zeros(0, np.int64)]).astype(np.int64)
    found = sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(histories), num_items))
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


class ItemKNNRecommender(SequenceRecommender):
    """Scores an item by its similarity to the items of the history, summed.

    The similarity of two items is the shrunk cosine of the sets of people who took them,
    |A and B| / (sqrt(|A| |B|) + shrink); each item keeps its nearest neighbours.

    Args:
        neighbours: kept of each item (100).
        shrink: holds similarities down that few people stand for (10).
    """

    def __init__(self, *, neighbours: int = 100, shrink: float = 10.0) -> None:
        self.neighbours = neighbours
        self.shrink = shrink

    def _fit(self, log: Log) -> None:
        if self.neighbours < 1 or not self.shrink >= 0:
            raise ValueError(f"neighbours is {self.neighbours}, shrink {self.shrink}; need 1 or more, 0 or more")
        taken = matrix(log.histories, len(log.items))
        size = np.sqrt(taken.sum(axis=0))
        blocks = []
        with counted(watched(), len(size), "finding neighbours", "items") as report:
            for start in range(0, len(size), BLOCK):
                blocks.append(self._nearest(taken, size, start))
                report(min(start + BLOCK, len(size)))
        self.similarity_ = sparse.csr_array(sparse.vstack(blocks))

    def _nearest(self, taken: sparse.csr_array, size: NDArray[np.float32], start: int) -> sparse.csr_array:
        """Return the similarities of a block of items to all, without all but the nearest neighbours of each."""
        together = (taken[:, start : start + BLOCK].T @ taken).toarray()
        similarity = together / np.maximum(np.outer(size[start : start + BLOCK], size) + self.shrink, 1e-9)
        own = np.arange(len(similarity))
        similarity[own, start + own] = 0
        if self.neighbours < len(size):
            lowest = np.partition(similarity, -self.neighbours, axis=1)[:, -self.neighbours, None]
            similarity[similarity < lowest] = 0
        return sparse.csr_array(similarity)

    def _scores(self, histories: Histories) -> Tensor:
        return torch.from_numpy((matrix(histories, len(self.items_)) @ self.similarity_.T).toarray())


class ContentRecommender(SequenceRecommender):
    """Scores an item by the cosine of its features and those of each item of the history, summed.

    Nothing is learned, so that items which nobody has taken yet are scored like all others.

    Args:
        item_features: (V, D) in the order of the log's catalogue; an item of zeros is like none.
    """

    def __init__(self, *, item_features: ArrayLike) -> None:
        self.item_features = item_features

    def _fit(self, log: Log) -> None:
        self.vectors_ = F.normalize(item_vectors(self.item_features, len(log.items)), dim=1)

    def _scores(self, histories: Histories) -> Tensor:
        sums = matrix(histories, len(self.items_)) @ self.vectors_.numpy()
        return torch.from_numpy(sums) @ self.vectors_.T


class ALSRecommender(SequenceRecommender):
    """Matrix factorisation for implicit feedback by alternating least squares; needs the package `implicit`.

    Args:
        factors: width of the vectors (64).
        regularization, alpha, iterations: as the package has them (0.05, 10, 15).
        random_state: seed of the initialisation.
    """

    def __init__(
        self,
        *,
        factors: int = 64,
        regularization: float = 0.05,
        alpha: float = 10.0,
        iterations: int = 15,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.alpha = alpha
        self.iterations = iterations
        self.random_state = random_state

    def _fit(self, log: Log) -> None:
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise ValueError(
                "ALSRecommender needs the package 'implicit': pip install 'workingpapers[implicit]'"
            ) from error
        weights = (self.regularization, self.alpha)
        if min(self.factors, self.iterations) < 1 or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(
                f"factors is {self.factors}, iterations {self.iterations}, regularization {self.regularization} and "
                f"alpha {self.alpha}; they must be finite, the first two 1 or more and the others 0 or more"
            )
        self.model_ = AlternatingLeastSquares(
            factors=self.factors,
            regularization=self.regularization,
            alpha=self.alpha,
            iterations=self.iterations,
            random_state=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        taken = sparse.csr_matrix(matrix(log.histories, len(log.items)))
        with counted(watched(), self.iterations, "alternating least squares", "iterations") as report:
            self.model_.fit(taken, show_progress=False, callback=lambda iteration, *_: report(iteration + 1))

    def _scores(self, histories: Histories) -> Tensor:
        taken = sparse.csr_matrix(matrix(histories, len(self.items_)))
        people = self.model_.recalculate_user(np.arange(len(histories)), taken)
        return torch.from_numpy(np.asarray(people) @ np.asarray(self.model_.item_factors).T)
