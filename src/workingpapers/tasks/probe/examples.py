"""The data of `probe` on frozen features: what entries see, how it is split, and how predictions are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workingpapers.data.datasets import load_dataset
from workingpapers.data.features import extract
from workingpapers.data.models import Later, load_model
from workingpapers.data.splits import by_class, some, stratified, subset
from workingpapers.data.types import Backbone, LabelledData
from workingpapers.errors import UserError
from workingpapers.tasks.probe.views import VIEWS
from workingpapers.tasks.protocol import (
    Conditions,
    Entry,
    Prepared,
    load_task,
    prepared_features,
    views_of,
)
from workingpapers.tasks.returned import check_returned, checked_probabilities

LABELS_PER_CLASS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
FEWEST_PER_CLASS = 5  # three to train and tune on, two to test


@dataclass(frozen=True)
class Examples:
    """The training part, as an entry sees it; it returns a fitted classifier with `classes_` and `predict_proba`.

    In the setting unseen-classes it returns one with `predict`, whose labels may be any of the K.

    Attributes:
        X: (N, D) vectors in float32, or (N, L, D) tokens or (N, V, D) views in float16, as the entry's `needs` say.
        y: (N,) labels 0..K-1; every class occurs unless the setting holds classes back.
        classes: K, all classes that predictions may name.
        seed: for what the splits below draw.
        distances: (K, K) metric between the classes, where the data set has one.
    """

    X: NDArray[Any]
    y: NDArray[np.int64]
    classes: int
    seed: int
    distances: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Return some of the examples."""
        return replace(self, X=self.X[rows], y=self.y[rows])

    def split(self, share: float = 0.2) -> tuple[Examples, Examples] | None:
        """Return a part to fit on and a part to choose on, by class; None where a class has fewer than two."""
        if np.bincount(self.y, minlength=1)[np.unique(self.y)].min() < 2:
            return None
        rng = np.random.default_rng(self.seed)
        held = np.concatenate([some(rng, rows, max(1, round(share * len(rows)))) for rows in by_class(self.y)])
        kept = np.setdiff1d(np.arange(len(self)), held)
        return self.take(kept), self.take(np.sort(held))

    def growing(self) -> Iterator[tuple[int, Examples]]:
        """Yield sizes and training sets: 2, 5, 10, ... examples a class, each within the next, and last all."""
        rng = np.random.default_rng(self.seed)
        groups = [rng.permutation(rows) for rows in by_class(self.y)]
        smallest = min(len(rows) for rows in groups)
        for count in (count for count in LABELS_PER_CLASS if count < smallest):
            rows = np.sort(np.concatenate([group[:count] for group in groups]))
            yield len(rows), self.take(rows)
        yield len(self), self


@dataclass(frozen=True)
class Problem:
    """A training part and a held-back part.

    Attributes:
        train: what the entry sees.
        inputs: (M, ...) held-back features.
        labels: (M,) their labels; the entry never sees them.
    """

    train: Examples
    inputs: NDArray[Any]
    labels: NDArray[np.int64]


def pool(conditions: Conditions) -> LabelledData:
    """Return the examples that any seed may draw from: twice the budget, the same for all seeds.

    Raises:
        UserError: fewer than two classes, a class with fewer than five examples, or with none in the training part.
    """
    data = load_dataset(conditions.data, label=conditions.label)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    counts = np.bincount(data.labels, minlength=len(data.class_names))
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise UserError(f"{data.name} has {len(present)} class with examples; to classify takes at least two.")
    rare = [f"{data.class_names[k]} ({counts[k]})" for k in present if counts[k] < FEWEST_PER_CLASS]
    if rare:
        raise UserError(
            f"{data.name}: classes with fewer than {FEWEST_PER_CLASS} examples cannot be split into parts to train, "
            f"choose and test on: {', '.join(rare[:5])}{' ...' if len(rare) > 5 else ''}."
        )
    rng = np.random.default_rng(0)
    if data.part is None:
        return subset(data, stratified(rng, data.labels, 2 * (budget.train + budget.test), FEWEST_PER_CLASS))
    untrained = np.setdiff1d(present, data.labels[data.part == "train"])
    if len(untrained):
        names = ", ".join(data.class_names[k] for k in untrained[:5])
        raise UserError(f"{data.name}: classes without an example to train on: {names}{' ...' * (len(untrained) > 5)}.")
    rows = []
    for part, count in (("train", budget.train), ("test", budget.test)):
        here = np.flatnonzero(data.part == part)
        rows.append(here[stratified(rng, data.labels[here], 2 * count, FEWEST_PER_CLASS)])
    return subset(data, np.concatenate(rows))


def prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    """Compute and cache the features that the entries need.

    Raises:
        UserError: data or model cannot be used, or an entry needs something else than a view.
    """
    needs = views_of(entries, VIEWS)
    data = pool(conditions)
    if data.images is None:  # features that somebody computed already: no model is needed
        return prepared_features(conditions, entries, data, data.remarks, lambda need: features(data, None, need))
    backbone = load_model(conditions.model)
    for need in needs:
        features(data, backbone, need)
    return Prepared(data.fingerprint, backbone.fingerprint, data.remarks, Later(backbone))


def features(data: LabelledData, backbone: Backbone | None, need: str) -> NDArray[Any]:
    """Return the features of a need, from the cache or computed; data that are features already serve as they are.

    Args:
        data: images or features.
        backbone: the model; None is enough for features.
        need: a view by name.

    Raises:
        UserError: the need is of images, and the data are features.
    """
    if data.images is None and data.features is not None:
        if need == "tokens":
            return data.features
        if need == "pooled":
            return data.features if data.features.ndim == 2 else data.features.mean(axis=1)
        raise UserError(f"{data.name} has features {data.features.shape} where images are needed.")
    assert backbone is not None
    view, model = VIEWS[need](backbone)
    return extract(data, model, view)


def load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    """Draw a seed's training and held-back parts.

    Official test examples are only ever held back. Without an official split, 30 % of each class are held back. Of
    either part a seed draws the budget's number, and never more than four fifths, so that seeds differ.

    Raises:
        UserError: the data are others than those that were prepared.
    """
    data = pool(conditions)
    prepared.check_data(data.name, data.fingerprint)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    rng = np.random.default_rng([seed, 1])
    if data.part is None:
        held = np.concatenate([some(rng, rows, max(2, round(0.3 * len(rows)))) for rows in by_class(data.labels)])
        kept = np.setdiff1d(np.arange(len(data)), held)
        share = 1.0
    else:
        kept, held = np.flatnonzero(data.part == "train"), np.flatnonzero(data.part == "test")
        share = 0.8
    kept = kept[stratified(rng, data.labels[kept], min(budget.train, round(share * len(kept))))]
    held = np.sort(held)
    held = held[stratified(rng, data.labels[held], min(budget.test, round(share * len(held))))]
    X = features(data, prepared.model, entry.needs[0])
    inner, outer = (X[rows].astype(np.float32) if X.ndim == 2 else X[rows] for rows in (kept, held))
    train = Examples(inner, data.labels[kept], len(data.class_names), seed, data.label_distances)
    return Problem(train, outer, data.labels[held])


def probabilities(problem: Problem, classifier: Any) -> NDArray[np.float64]:
    """Return a classifier's probabilities of the held-back examples for all K classes, (M, K).

    Raises:
        UserError: no classifier, classes that are no labels of the training part, or no probabilities.
    """
    check_returned(classifier, "a fitted classifier", "classes_", "predict_proba")
    rows, count = len(problem.labels), problem.train.classes
    classes = np.asarray(classifier.classes_)
    distinct = len(np.intersect1d(classes, np.arange(count)))
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or distinct < classes.size:
        shown = ", ".join(map(repr, classes.ravel()[:5].tolist())) + (", ..." if classes.size > 5 else "")
        raise UserError(
            f"The classes_ of the entry's classifier are {shown}; labels are different ones of 0 to {count - 1}."
        )
    found = np.zeros((rows, count))
    found[:, classes] = checked_probabilities(classifier.predict_proba(problem.inputs), (rows, classes.size))
    return found


def accuracy(problem: Problem, classifier: Any) -> float:
    """Return the percentage of held-back examples that a classifier gets right; it may change its copy of them."""
    own = replace(problem, inputs=problem.inputs.copy())  # others are scored by the same examples after it
    return float(100 * np.mean(probabilities(own, classifier).argmax(axis=1) == problem.labels))


def classification_metrics(problem: Problem, classifier: Any) -> dict[str, float]:
    """Return accuracy, macro-F1 and expected calibration error, in per cent."""
    from sklearn.metrics import f1_score

    found = probabilities(problem, classifier)
    predicted = found.argmax(axis=1)
    return {
        "accuracy": 100 * np.mean(predicted == problem.labels),
        "macro-f1": 100 * f1_score(problem.labels, predicted, average="macro", zero_division=0.0),
        "ece": 100 * calibration_error(found.max(axis=1), predicted == problem.labels),
    }


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 15) -> float:
    """Return the expected calibration error: |mean confidence - accuracy| over equal bins, weighted by their sizes.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with its 15 bins.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(place, confidence, bins) - np.bincount(place, correct, bins)
    return float(np.abs(gaps).sum() / len(confidence))
