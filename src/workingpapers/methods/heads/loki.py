"""Loki: predict labels a classifier never saw, by replacing argmax with the Fréchet mean of a label metric.

A classifier knows K of the N labels of a metric space with distances d. Its K probabilities weigh the known labels, and
the prediction is the label, known or not, nearest to all of them in the mean square:

    y(x) = argmin_y sum_i P_i(x) d(lambda_i, y)^2
    batched:  S = P @ D[observed]^2          (B, K) @ (K, N) -> (B, N);   y = argmin of each row

Nothing is trained. With K = N this is minimum-Bayes-risk decoding under squared distance: it may lower accuracy while
it lowers the mean squared distance, so report both. The labels that can come out at all are the *locus* of the observed
ones: in a tree all of whose nodes are labels the subtree that they span, in a complete graph just themselves. A leaf
never beats an observed sibling, so give the rule inner nodes, paths or embeddings to move along.

Source: Roberts et al., "Geometry-Aware Adaptation for Pretrained Models", NeurIPS 2023, arXiv 2307.12226 (the rule, its
theory of locus covers, the selection of the next class), and the authors' published scripts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array, issparse
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

BLOCK = 2**23  # numbers in a temporary: 64 MiB of float64


class FrechetMeanDecoder:
    """The decision rule alone: probabilities of K observed labels in, one of N labels out.

    Works block by block over the labels: `predict` never holds the (B, N) scores, and `distances` may be memory-mapped.

    Args:
        distances: (N, N) distances between all labels, 0 on the diagonal; or, where that is too large, the (K, N)
            rows of the observed labels alone with `observed=None`.
        observed: (K,) row of each probability column, in the order of the columns; None takes all rows in order.
        power: exponent of the distance: 2 is the Fréchet mean (as published), 1 the Fréchet median.
        temperature: the probabilities are raised to 1 / temperature and normalised again, as if the logits had been
            divided by it; 1 leaves them alone. The softmax of bare cosines is almost uniform: CLIP's scale of 100 is
            temperature 0.01 there.

    Raises:
        ValueError: distances that are not finite, negative or without a zero in each observed row (similarities?),
            an observed index out of range or repeated, a power or temperature that isn't positive.
    """

    def __init__(
        self,
        distances: ArrayLike,
        observed: ArrayLike | None = None,
        *,
        power: float = 2,
        temperature: float = 1.0,
    ) -> None:
        for name, value in (("power", power), ("temperature", temperature)):
            if not 0 < value < np.inf:
                raise ValueError(f"{name} is {value!r}; it must be positive and finite")
        matrix = np.asanyarray(distances)
        if matrix.ndim != 2 or not 0 < matrix.shape[0] <= matrix.shape[1]:
            raise ValueError(f"distances must be (N, N), or (K, N) with K <= N; got shape {matrix.shape}")
        self.power = power
        self.temperature = temperature
        self._rows = matrix if observed is None else matrix[_checked_observed(observed, len(matrix))]
        _check_distances(self._rows)

    def scores(self, proba: ArrayLike) -> NDArray[np.float64]:
        """Return the weighted mean of d^power from the observed labels to every label, (B, N); lower is better.

        Args:
            proba: (B, K) probabilities; each row sums to 1 (within 1 %, and is normalised then).

        Raises:
            ValueError: another number of columns, or rows that are no probabilities (logits, one-vs-rest scores).
        """
        weights = self._weights(proba)
        scores = np.empty((len(weights), self._rows.shape[1]))
        for start, block in self._blocks(weights):
            scores[:, start : start + block.shape[1]] = block
        return scores

    def predict(self, proba: ArrayLike) -> NDArray[np.int64]:
        """Return the index 0..N-1 of the best label of each row of `proba` (B, K); the smallest index of equals."""
        weights = self._weights(proba)
        best, label = np.full(len(weights), np.inf), np.zeros(len(weights), dtype=np.int64)
        for start, block in self._blocks(weights):
            nearest = block.argmin(axis=1)
            score = block[np.arange(len(block)), nearest]
            better = score < best
            best[better], label[better] = score[better], start + nearest[better]
        return label

    def _blocks(self, weights: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield the scores of one range of labels after the other, each with its first label."""
        width = max(1, BLOCK // max(weights.shape))
        for start in range(0, self._rows.shape[1], width):
            block = np.asarray(self._rows[:, start : start + width], dtype=np.float64)
            yield start, weights @ block**self.power

    def _weights(self, proba: ArrayLike) -> NDArray[np.float64]:
        weights: NDArray[np.float64] = check_array(proba, dtype=np.float64, input_name="proba")
        if weights.shape[1] != len(self._rows):
            raise ValueError(f"proba has {weights.shape[1]} columns; there are {len(self._rows)} observed labels")
        bad = (weights < 0).any(axis=1) | (np.abs(weights.sum(axis=1) - 1) > 0.01)
        if bad.any():
            row = weights[bad.argmax()]
            raise ValueError(f"proba must hold probabilities; row {bad.argmax()} sums to {row.sum():.4g}: {row}")
        if self.temperature != 1:
            weights = (weights / weights.max(axis=1, keepdims=True)) ** (1 / self.temperature)
        return weights / weights.sum(axis=1, keepdims=True)


class LokiClassifier(ClassifierMixin, BaseEstimator):
    """A classifier that answers with any of N labels although it was trained on K of them.

    The columns of the estimator's probabilities (`classes_`, which scikit-learn sorts) are matched to the rows of
    `distances` by name. A fitted estimator goes in as `sklearn.frozen.FrozenEstimator(estimator)`.

    Args:
        estimator: a classifier with predict_proba.
        distances: (N, N) distances between the labels. None is the discrete metric on the labels of y, under which
            the rule is argmax.
        labels: (N,) the labels in the order of `distances`; given exactly when `distances` is.
        power: exponent of the distance, 2 as published (see FrechetMeanDecoder).
        temperature: divides the logits, 1 leaves the probabilities alone (see FrechetMeanDecoder).

    Attributes:
        classes_: (N,) every label that `predict` may return, in the order of `labels`.
        estimator_: the fitted classifier; its predict_proba covers the K observed labels.
        observed_: (K,) positions of `estimator_.classes_` in `classes_`.
        decoder_: the FrechetMeanDecoder.
    """

    def __init__(
        self,
        estimator: Any,
        distances: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        power: float = 2,
        temperature: float = 1.0,
    ) -> None:
        self.estimator = estimator
        self.distances = distances
        self.labels = labels
        self.power = power
        self.temperature = temperature

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit the estimator to whatever X it takes and labels y (m,), which need not hold all N labels.

        Raises:
            ValueError: an estimator without predict_proba, labels that are repeated or do not fit `distances`, or
                a label in y that `labels` does not name.
        """
        if not hasattr(self.estimator, "predict_proba"):
            raise ValueError(f"estimator must have predict_proba; {self.estimator!r} has none")
        if (self.distances is None) != (self.labels is None):
            raise ValueError("give distances and labels together, or neither")
        check_classification_targets(y)
        estimator = clone(self.estimator).fit(X, y)
        seen = estimator.classes_
        labels = seen if self.labels is None else np.asarray(self.labels)
        distances = 1.0 - np.eye(len(seen)) if self.distances is None else np.asanyarray(self.distances)
        position = _positions(labels.tolist())
        if distances.shape != (len(position), len(position)):
            raise ValueError(f"distances must be (N, N) for the N = {len(position)} labels; got {distances.shape}")
        unknown = [name for name in seen.tolist() if name not in position]
        if unknown:
            raise ValueError(f"y holds labels that `labels` does not name: {unknown}")
        observed = np.array([position[name] for name in seen.tolist()])
        self.decoder_ = FrechetMeanDecoder(distances, observed, power=self.power, temperature=self.temperature)
        self.estimator_, self.classes_, self.observed_ = estimator, labels, observed
        shared = (name for name in ("n_features_in_", "feature_names_in_") if hasattr(estimator, name))
        self.__dict__.update({name: getattr(estimator, name) for name in shared})
        return self

    def scores(self, X: Any) -> NDArray[np.float64]:
        """Return the weighted mean of d^power to each label of `classes_`, (m, N); lower is better."""
        check_is_fitted(self)
        return self.decoder_.scores(self.estimator_.predict_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label nearest in the mean to the probable ones, (m,)."""
        check_is_fitted(self)
        return self.classes_[self.decoder_.predict(self.estimator_.predict_proba(X))]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


def distances_from_graph(graph: Any, labels: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
    """Return the lengths of the shortest paths between labels, (N, N), in an undirected graph.

    Args:
        graph: a (V, V) scipy.sparse adjacency whose entries are edge lengths (nodes are 0..V-1), or an iterable of
            edges (u, v) of length 1 or (u, v, length) between nodes of any hashable kind. Of parallel edges the
            shortest counts.
        labels: the N nodes that the matrix is about, in its order; the other nodes only carry paths. None takes all
            nodes of an adjacency; a list of edges has no order, so there it must be given.

    Raises:
        ValueError: no path between two labels (both are named), edge lengths that aren't positive, unknown or
            repeated labels or none.
    """
    edges: Iterable[tuple[Any, Any, Any]]
    if issparse(graph):
        names: list[Any] = list(range(graph.shape[0]) if labels is None else labels)
        if graph.shape[0] != graph.shape[1] or not set(names) <= set(range(graph.shape[0])):
            raise ValueError(f"graph must be (V, V) and labels in 0..V-1; got shape {graph.shape}, labels {names}")
        entries = graph.tocoo()
        edges = zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist(), strict=True)
    elif labels is None:
        raise ValueError("a list of edges needs `labels`, the nodes in the order of the matrix")
    else:
        names = list(labels)
        edges = ((*edge, 1.0) if len(edge) == 2 else edge for edge in graph)
    if not names:
        raise ValueError("labels is empty; at least one is needed")
    index = _positions(names)  # the labels come first
    lengths: dict[tuple[int, int], float] = {}
    for u, v, length in edges:
        if not (isinstance(length, int | float | np.number) and 0 < length < np.inf):
            raise ValueError(f"edge lengths must be positive and finite; {u!r} to {v!r} has {length!r}")
        i, j = sorted((index.setdefault(u, len(index)), index.setdefault(v, len(index))))
        lengths[i, j] = min(float(length), lengths.get((i, j), np.inf))  # scipy would add parallel edges up
    ends = np.array(list(lengths), dtype=int).reshape(-1, 2).T
    adjacency = coo_array((list(lengths.values()), ends), shape=(len(index), len(index)), dtype=float).tocsr()
    rows = range(len(names))
    distances = shortest_path(adjacency, directed=False, indices=rows)[:, : len(rows)]
    unreachable = np.argwhere(np.isinf(distances))
    if len(unreachable):
        u, v = (names[i] for i in unreachable[0])
        raise ValueError(f"the graph is disconnected: there is no path between {u!r} and {v!r}")
    return distances


def distances_from_embeddings(embeddings: ArrayLike, *, unit_norm: bool = False) -> NDArray[np.float64]:
    """Return the Euclidean distances between label embeddings, (N, N).

    Args:
        embeddings: (N, D) one vector per label, for example of its name by a text encoder.
        unit_norm: scale each vector to length 1 first (squared distance 2 - 2 cos): what a zero-shot classifier that
            compares cosines with these embeddings implies; its metric then needs no outside source.

    Raises:
        ValueError: embeddings that are not finite, or a zero vector with `unit_norm`.
    """
    vectors = check_array(embeddings, dtype=np.float64, input_name="embeddings")
    if unit_norm:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if (norms == 0).any():
            raise ValueError(f"embedding {int(norms.argmin())} is zero and has no direction")
        vectors = vectors / norms
    return euclidean_distances(vectors - vectors.mean(axis=0))  # centred: less cancellation


def distances_from_hierarchy(paths: Sequence[tuple[Hashable, ...]]) -> NDArray[np.float64]:
    """Return the path lengths in a label tree, (N, N), each edge counting 1.

    Args:
        paths: each label's way down from the root, such as ("animals", "cat"); ("animals",) is the inner node above
            it and () the root. Inner nodes that are not listed carry paths without being labels.

    Raises:
        ValueError: a path that is not a tuple (a bare string would be spelled out), or one that occurs twice.
    """
    for path in paths:
        if not isinstance(path, tuple):
            raise ValueError(f"each path must be a tuple such as ('animals', 'cat'); got {path!r}")
    edges = {(path[:depth], path[: depth - 1]) for path in paths for depth in range(1, len(path) + 1)}
    return distances_from_graph(edges, paths)


def locus(distances: ArrayLike, observed: ArrayLike) -> NDArray[np.int64]:
    """Return every label that is a Fréchet mean of the observed ones for some weights, sorted indices.

    In a tree all of whose nodes are labels (recognised from the distances) this is the subtree that the observed
    labels span; otherwise each label costs one linear programme (`naive_locus`).

    Args:
        distances: (N, N) distances between all labels.
        observed: (K,) indices of the labels that the classifier knows.

    Raises:
        ValueError: distances that are no metric on N labels, or indices out of range or repeated.
    """
    matrix, known = _checked_metric(distances, observed)
    if not _is_tree(matrix):
        return naive_locus(matrix, known)
    # y lies on the path from the first observed label to another one: no detour.
    detour = matrix[known[0]] + matrix[known] - matrix[known[0], known][:, None]
    return np.flatnonzero((detour <= 1e-9 * matrix.max()).any(axis=0))


def naive_locus(distances: ArrayLike, observed: ArrayLike) -> NDArray[np.int64]:
    """Return the locus by its definition: label y is in it when max_w min_z S_z(w) - S_y(w) >= 0, w in the simplex.

    As `locus` otherwise. A label that only ties with others counts, within 1e-9 of the largest squared distance.
    """
    matrix, known = _checked_metric(distances, observed)
    cost = (matrix[known] / (matrix.max() or 1.0)) ** 2
    count, labels = cost.shape
    objective = np.r_[np.zeros(count), -1.0]  # the weights and the margin t, which is maximised
    bounds = [(0, None)] * count + [(None, 1)]
    simplex = np.r_[np.ones(count), 0.0][None]
    reachable = []
    for y in range(labels):
        others = np.arange(labels) != y
        constraints = np.c_[(cost[:, [y]] - cost[:, others]).T, np.ones(labels - 1)]
        best = linprog(objective, constraints, np.zeros(labels - 1), simplex, [1.0], bounds, method="highs")
        if -best.fun >= -1e-9:
            reachable.append(y)
    return np.array(reachable, dtype=np.int64)


def is_locus_cover(distances: ArrayLike, observed: ArrayLike) -> bool:
    """Return whether every label can be predicted from the observed ones (arguments and errors as in `locus`)."""
    return len(locus(distances, observed)) == np.shape(distances)[0]


def select_next_label(distances: ArrayLike, observed: ArrayLike) -> int:
    """Return the label to annotate next: the one farthest from the current locus, the smallest index of equals.

    In a tree this label adds the longest path to the locus. Arguments as in `locus`.

    Raises:
        ValueError: every label is reachable already, or as in `locus`.
    """
    reachable = locus(distances, observed)
    gap = np.asarray(distances, dtype=np.float64)[reachable].min(axis=0)
    gap[reachable] = -np.inf
    if len(reachable) == len(gap):
        raise ValueError(f"all {len(gap)} labels are reachable already")
    return int(gap.argmax())


def naive_frechet_mean(
    proba: NDArray[np.float64], distances: NDArray[np.float64], observed: Sequence[int], power: float = 2
) -> list[int]:
    """Return the Fréchet mean of each row by the definition, two loops; as `FrechetMeanDecoder`, inputs unchecked."""
    predicted = []
    for weights in proba:
        costs = [sum(p * d[i] ** power for p, i in zip(weights, observed, strict=True)) for d in distances]
        predicted.append(costs.index(min(costs)))
    return predicted


def _positions(names: Iterable[Any]) -> dict[Any, int]:
    """Return the position of each name; names must be unique."""
    position: dict[Any, int] = {}
    for name in names:
        if name in position:
            raise ValueError(f"label {name!r} occurs twice")
        position[name] = len(position)
    return position


def _check_distances(rows: NDArray[Any]) -> None:
    """Refuse rows of distances that are not finite, negative or nowhere zero."""
    for row in rows:  # one by one: the matrix may be larger than the memory
        if not np.isfinite(row).all() or not 0 <= row.min() <= 1e-6 * row.max():
            values = f"got values from {row.min():.4g} to {row.max():.4g}"
            raise ValueError(f"distances must be finite and 0 or more, and 0 from a label to itself; {values}")


def _checked_observed(observed: ArrayLike, count: int) -> NDArray[np.int64]:
    known = np.asarray(observed)
    if known.ndim != 1 or not len(known) or not np.issubdtype(known.dtype, np.integer):
        raise ValueError(f"observed must be a list of one or more label indices; got {observed!r}")
    if known.min() < 0 or known.max() >= count or len(np.unique(known)) < len(known):
        raise ValueError(f"observed must be different indices in 0..{count - 1}; got {known.tolist()}")
    return known


def _checked_metric(distances: ArrayLike, observed: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    matrix = np.asarray(distances, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"distances must be (N, N); got shape {matrix.shape}")
    known = _checked_observed(observed, len(matrix))
    _check_distances(matrix)
    return matrix, known


def _is_tree(distances: NDArray[np.float64]) -> bool:
    """Return whether the distances are path lengths in a tree whose nodes are exactly the labels."""
    along = shortest_path(minimum_spanning_tree(distances), directed=False)
    return np.allclose(along, distances, rtol=1e-9, atol=0)
