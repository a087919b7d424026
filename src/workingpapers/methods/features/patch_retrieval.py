"""Retrieval with off-the-shelf features: PCA-whitened vectors compared by L2 distance, patch by patch.

    z = power(L2(whiten(pca(L2(f)))))                         compared by L2 distance; with patches q_a of the query
    d(q, r) = 1 / |Q| sum_a min_b ||z(q_a) - z(r_b)||_2       and r_b of the reference, which is not symmetric

As one pipeline, the features are `make_pipeline(Normalizer(), PCAWhitener(n_components=500), SignedPower(p=2))` of
`off_the_shelf` and scikit-learn, fitted to images that are not queries.

Source: Sharif Razavian et al., "CNN Features off-the-shelf: an Astounding Baseline for Recognition", CVPR Workshops
2014, arXiv 1403.6382, section 4.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import pairwise_distances_chunked
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from workingpapers.methods.features.off_the_shelf import check_images, checked_views, window


def multi_patch(images: Tensor, levels: int = 4) -> Tensor:
    """Return the patches of the spatial search, (B, 3, H, W) to (B, P, 3, H, W), every one at the image's own size.

    Level h covers the image with h^2 equal patches of side 2 / (h + 1), row by row, neighbours overlapping by half.
    The levels 1 to `levels` follow each other, P = sum_h h^2: 30 patches for 4 levels, the first of which is the image.

    Raises:
        ValueError: images of another shape or type, NaN or infinity in them, or fewer than one level.
    """
    check_images(images)
    patches = [images]
    for h in range(2, 1 + _checked_levels("levels", levels)):
        side = 2 / (h + 1)
        centres = np.linspace(side - 1, 1 - side, h)
        patches += [window(images, side, x, y) for y in centres for x in centres]
    return torch.stack(patches, dim=1)


class PatchRetrieval(BaseEstimator):
    """Nearest images by the mean over the query's patches of the distance to the nearest patch of the reference.

    Features are (N, P, D), patches in the order of `multi_patch`, or (N, D) for images of one patch, already
    transformed (see the module's pipeline). One level is plain L2 ranking; more reference patches never enlarge a
    distance; a reference's clutter costs nothing, a query's does.

    Args:
        levels_ref: levels of the references that take part, the first sum h^2 patches; 4, as in the paper. None takes
            every patch as given, in any order.
        levels_query: the same of the queries; 3, the most that the paper uses.

    Attributes:
        references_: (N, P, D) the references.
    """

    def __init__(self, *, levels_ref: int | None = 4, levels_query: int | None = 3) -> None:
        self.levels_ref = levels_ref
        self.levels_query = levels_query

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Keep the references X, (N, P, D) or (N, D).

        Raises:
            ValueError: features that are not finite, or fewer patches than `levels_ref` has.
        """
        self.references_ = _first_levels(checked_views(self, X, reset=True), "levels_ref", self.levels_ref)
        return self

    def distances(self, X: ArrayLike) -> NDArray[Any]:
        """Return d(query, reference), (Q, N), of queries X, (Q, P, D) or (Q, D).

        Distances come from inner products: they are exact to about 1e-8 of the features' length in float64.

        Raises:
            ValueError: features that are not finite or of another size, or fewer patches than `levels_query` has.
        """
        check_is_fitted(self)
        queries = _first_levels(checked_views(self, X, reset=False), "levels_query", self.levels_query)
        count, num_patches, size = self.references_.shape
        blocks = pairwise_distances_chunked(
            queries.reshape(-1, size),
            self.references_.reshape(-1, size),
            reduce_func=lambda block, start: np.sqrt(block.reshape(-1, count, num_patches).min(axis=2)),
            working_memory=128,  # MiB
            squared=True,
        )
        return np.concatenate(list(blocks)).reshape(len(queries), -1, count).mean(axis=1)

    def search(self, X: ArrayLike, k: int | None = None) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the distances and the indices (Q, k) of the k nearest references of each query, nearest first.

        Args:
            X: (Q, P, D) or (Q, D) queries.
            k: how many, 1 to N; None ranks all references.

        Raises:
            ValueError: a k outside its range, and what `distances` raises.
        """
        distances = self.distances(X)
        count = distances.shape[1]
        if k is not None and not 1 <= k <= count:
            raise ValueError(f"k is {k!r}; with {count} references it must be 1 to {count}")
        ranks = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, ranks, axis=1), ranks


def _first_levels(patches: NDArray[Any], option: str, levels: int | None) -> NDArray[Any]:
    """Return the patches of the levels that take part, of features (N, P, D)."""
    if levels is None:
        return patches
    needed = sum(h * h for h in range(1, 1 + _checked_levels(option, levels)))
    if patches.shape[1] < needed:
        raise ValueError(f"{option} is {levels}, which needs {needed} patches an image; got {patches.shape[1]}")
    return patches[:, :needed]


def _checked_levels(name: str, levels: int) -> int:
    if levels < 1:
        raise ValueError(f"{name} is {levels!r}; it must be at least 1")
    return levels


def naive_patch_distances(queries: NDArray[Any], references: NDArray[Any]) -> NDArray[np.float64]:
    """Return d(query, reference) of patches (Q, A, D) and (N, B, D) by the definition, (Q, N): one pair at a time."""
    distances = np.zeros((len(queries), len(references)))
    for i, query in enumerate(queries):
        for j, reference in enumerate(references):
            distances[i, j] = np.mean([min(np.linalg.norm(q - r) for r in reference) for q in query])
    return distances


def mean_average_precision(ranks: ArrayLike, relevant: ArrayLike, ignore: ArrayLike | None = None) -> float:
    """Return the mean over the queries of the average precision: the mean, over relevant items, of precision there.

    Args:
        ranks: (Q, k) indices of references, nearest first, as from `PatchRetrieval.search`; a relevant reference that
            is missing from them counts with precision 0.
        relevant: (Q, N) booleans, which references answer the query; each query needs one.
        ignore: (Q, N) booleans, references that are taken out of the ranking first, such as the query itself.

    Raises:
        ValueError: shapes that do not fit, an index out of range or twice in a row, or a query without an answer.
    """
    order, answers = np.asarray(ranks), np.asarray(relevant, dtype=bool)
    ignored = np.zeros_like(answers) if ignore is None else np.asarray(ignore, dtype=bool)
    if order.ndim != 2 or answers.ndim != 2 or len(order) != len(answers) or ignored.shape != answers.shape:
        shapes = f"{order.shape}, {answers.shape} and {ignored.shape}"
        raise ValueError(f"ranks (Q, k), relevant (Q, N) and ignore (Q, N) do not fit; got {shapes}")
    if order.size and (order.min() < 0 or order.max() >= answers.shape[1]):
        raise ValueError(f"ranks must be indices from 0 to {answers.shape[1] - 1}")
    if (np.diff(np.sort(order, axis=1), axis=1) == 0).any():
        raise ValueError("a row of ranks names a reference twice")
    answers = answers & ~ignored
    totals = answers.sum(axis=1)
    if not totals.all():
        raise ValueError(f"query {int(np.argmin(totals))} has no relevant reference")
    hits = np.take_along_axis(answers, order, axis=1)
    places = np.cumsum(~np.take_along_axis(ignored, order, axis=1), axis=1)
    precision = np.cumsum(hits, axis=1) / np.maximum(places, 1)
    return float(np.mean((precision * hits).sum(axis=1) / totals))
