"""What entries of `recommend` see, what their items are made of, and how their lists are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.methods.recommenders.fmrlrec import FMRLRecRecommender
from workingpapers.methods.recommenders.metrics import ndcg_at, recall_at
from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.sequences import Log, SequenceRecommender
from workingpapers.tasks.protocol import Context
from workingpapers.tasks.recommend.logs import values_of
from workingpapers.tasks.returned import check_returned

RATES = (3e-3, 1e-3, 1e-2)  # learning rates, in the order in which trials take them
BATCH = 16  # histories of a step: there are few, and steps matter more than their size
WIDTH = 64  # of the item vectors of all networks
CONTENT = 64  # numbers that a modality of the content keeps

Family = FMRLRecRecommender | dict[int, NeuralRecommender]


@dataclass(frozen=True)
class Examples:
    """The training part, as an entry sees it; it returns a fitted `SequenceRecommender`, in `sizes` a `Family`.

    Attributes:
        log: the histories without what is held back, and the whole catalogue with its features.
        kinds: of the features, see `Schema.fit`.
        texts: the features that hold words of texts.
        sentences: what is known of each item as a text.
        new: (V,) items that nobody has taken yet: they are scored, but nothing may be learned from them or against
            them.
    """

    log: Log
    kinds: Mapping[str, str]
    texts: tuple[str, ...]
    sentences: tuple[str, ...]
    new: NDArray[np.bool_]

    def content(self, seed: int) -> NDArray[np.float32] | None:
        """Return frozen features of the items in two modalities side by side, (V, up to 128).

        One is of the words of texts, the other of all other features but numbers; each is TF-IDF, reduced to 64 numbers
        by the singular value decomposition, with rows of length 1 (0 for items without any). None without features.
        Both are fitted on the items that are not new.
        """
        others = [c for c, kind in self.kinds.items() if kind != "numerical" and c not in self.texts]
        found = [self._modality(columns, seed) for columns in (self.texts, others) if columns]
        return np.concatenate(found, axis=1) if found else None

    def _modality(self, columns: Sequence[str], seed: int) -> NDArray[np.float32]:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize

        assert self.log.features is not None
        rows = zip(*(self.log.features[c] for c in columns), strict=True)
        tags = [[f"{c}={v}" for c, x in zip(columns, row, strict=True) for v in values_of(x)] for row in rows]
        known = [row for row, new in zip(tags, self.new, strict=True) if not new]
        if not any(known):
            return np.zeros((len(tags), 1), np.float32)
        try:  # a tag of one item alone says nothing, unless there are no others
            counter = TfidfVectorizer(analyzer=list, min_df=2 if len(tags) > CONTENT else 1).fit(known)
        except ValueError:
            counter = TfidfVectorizer(analyzer=list).fit(known)
        counts = counter.transform(tags)
        size = min(CONTENT, counts.shape[1] - 1, len(known) - 1)
        if size > 0:
            reduction = TruncatedSVD(size, random_state=seed).fit(counts[np.flatnonzero(~self.new)])
            counts = reduction.transform(counts)
        reduced: NDArray[np.float32] = normalize(counts if size > 0 else counts.toarray()).astype(np.float32)
        return reduced


@dataclass(frozen=True)
class Problem:
    """A training part and what is held back.

    Attributes:
        train: what the entry sees.
        histories: n whole histories before what is held back.
        targets: (n,) what was taken then; the entry never sees it.
        rare: (V,) which items belong to the half of the catalogue that was taken least in training; of items that were
            taken equally often, those that come first in the catalogue.
    """

    train: Examples
    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    rare: NDArray[np.bool_]


def tuned(train: Examples, context: Context, kind: type[NeuralRecommender], **options: Any) -> NeuralRecommender:
    """Return the network with the best validation NDCG@10 among the budget's learning rates."""
    usual = {"dim": WIDTH, "batch_size": BATCH, "max_epochs": context.budget.epochs, "random_state": context.seed}
    fitted = [
        kind(**usual | {"learning_rate": rate} | options).fit(train.log) for rate in RATES[: context.budget.trials]
    ]
    best = max(fitted, key=lambda model: max(model.history_, default=0.0))
    for epoch, value in enumerate(best.history_, start=1):
        context.log("validation NDCG@10 by epoch", epoch, 100 * value)
    return best


def list_metrics(problem: Problem, model: SequenceRecommender) -> dict[str, float]:
    """Return NDCG@10, recall@10 and @50 and, where a target is rare, recall@50 of the rare ones, in per cent."""
    check_returned(model, "a fitted SequenceRecommender", "ranks")
    ranks = model.ranks(problem.histories, problem.targets)
    metrics = {
        "ndcg-10": 100 * ndcg_at(ranks, 10),
        "recall-10": 100 * recall_at(ranks, 10),
        "recall-50": 100 * recall_at(ranks, 50),
    }
    rare = problem.rare[problem.targets]
    if rare.any():
        metrics["tail-recall"] = 100 * recall_at(ranks[rare], 50)
    return metrics


def new_metrics(problem: Problem, model: SequenceRecommender) -> dict[str, float]:
    """Return NDCG@10 and recall@10 among the new items, and recall@50 among all, in per cent."""
    check_returned(model, "a fitted SequenceRecommender", "ranks")
    among_new = model.ranks(problem.histories, problem.targets, problem.train.new)
    return {
        "new-ndcg-10": 100 * ndcg_at(among_new, 10),
        "new-recall-10": 100 * recall_at(among_new, 10),
        "recall-50": 100 * recall_at(model.ranks(problem.histories, problem.targets), 50),
    }


def size_metrics(problem: Problem, family: Family, sizes: Sequence[int], context: Context) -> dict[str, float]:
    """Return NDCG@10 in per cent, the mean over sizes and at both ends, and the weights of all; log the whole curve.

    Args:
        problem: with the held-back part.
        family: a model that is cut to each size, whose weights are its own alone, or a model for each size.
        sizes: in ascending order.
        context: where the curve goes.
    """
    nested = isinstance(family, FMRLRecRecommender)
    models = {size: family.cut(size) for size in sizes} if isinstance(family, FMRLRecRecommender) else family
    found = {size: 100 * ndcg_at(models[size].ranks(problem.histories, problem.targets), 10) for size in sizes}
    for size, value in found.items():
        context.log("NDCG@10 by size", size, value)
    kept = [models[sizes[-1]]] if nested else list(models.values())
    return {
        "mean-ndcg-10": sum(found.values()) / len(found),
        "smallest-ndcg-10": found[sizes[0]],
        "largest-ndcg-10": found[sizes[-1]],
        "weights": sum(model.parameters_ for model in kept) / 1000,
    }
