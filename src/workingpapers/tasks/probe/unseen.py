"""Setting `unseen-classes`: some classes have no training example, but the distances between all classes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.probe.baselines import tuned_logistic_regression
from workingpapers.tasks.probe.settings import task
from workingpapers.tasks.protocol import Conditions, Context, Entry, Prepared
from workingpapers.tasks.returned import check_returned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workingpapers.tasks.probe.examples import Examples, Problem

OBSERVED = 0.4  # share of the classes that training sees


def prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    """Compute and cache the features that the entries need, of data that this setting can use.

    Raises:
        UserError: data or model cannot be used.
    """
    from workingpapers.tasks.probe import examples

    data = examples.pool(conditions)
    _check(data.labels, data.label_distances)
    return examples.prepare(conditions, entries)


def _check(labels: NDArray[np.int64], distances: NDArray[np.float64] | None) -> NDArray[np.float64]:
    import numpy as np

    from workingpapers.errors import UserError

    if distances is None:
        raise UserError(
            "This setting needs distances between the classes; of the known data sets rotated-digits and "
            "openmoji-subgroups have them."
        )
    present = len(np.unique(labels))
    if present < 5:
        raise UserError(f"This setting needs at least five classes; the data set has {present}.")
    return distances


def measure(fit: Callable[[Any], Any], problem: Problem, seed: int) -> dict[str, float]:
    """Hold back three fifths of the classes from training and score the predictions over all of them.

    Raises:
        UserError: the data set has no distances between its classes, or fewer than five classes; or the entry's
            predictions are no labels.
    """
    import numpy as np

    from workingpapers.errors import UserError

    train = problem.train
    distances = _check(train.y, train.distances)
    present = np.unique(train.y)
    count = max(2, round(OBSERVED * len(present)))
    observed = np.random.default_rng([seed, 2]).permutation(present)[:count]
    model = fit(train.take(np.flatnonzero(np.isin(train.y, observed))))
    check_returned(model, "a fitted classifier", "predict")
    predicted = np.asarray(model.predict(problem.inputs))
    if predicted.shape != problem.labels.shape or not np.isin(predicted, np.arange(train.classes)).all():
        raise UserError(
            f"predict returned {predicted.dtype} {predicted.shape}, {predicted.ravel()[:5].tolist()} ...; needed: "
            f"labels 0 to {train.classes - 1} of shape {problem.labels.shape}."
        )
    predicted = predicted.astype(np.int64)
    right, unseen = predicted == problem.labels, ~np.isin(problem.labels, observed)
    return {
        "squared-distance": float(np.mean(distances[problem.labels, predicted] ** 2)),
        "accuracy": 100 * float(right.mean()),
        "unseen-accuracy": 100 * float(right[unseen].mean()),
    }


def _decoded(train: Examples, context: Context, power: float) -> Any:
    """Return logistic regression whose probabilities are decoded by the distances between the classes."""
    import numpy as np
    from sklearn.frozen import FrozenEstimator

    from workingpapers.methods.heads.loki import LokiClassifier

    known = FrozenEstimator(tuned_logistic_regression(train, context))
    return LokiClassifier(known, train.distances, np.arange(train.classes), power=power).fit(train.X, train.y)


@task.entry("unseen-classes", needs=["pooled"])
def argmax(train: Examples, context: Context) -> Any:
    """The most probable class that training saw, by logistic regression."""
    return tuned_logistic_regression(train, context)


@task.entry("unseen-classes", paper="loki", needs=["pooled"])
def loki(train: Examples, context: Context) -> Any:
    """The class with the smallest mean squared distance to the probable ones (Fréchet mean)."""
    return _decoded(train, context, power=2)


@task.entry("unseen-classes", needs=["pooled"])
def frechet_median(train: Examples, context: Context) -> Any:
    """The class with the smallest mean distance to the probable ones."""
    return _decoded(train, context, power=1)


@task.entry("unseen-classes", needs=["pooled"])
def ridge_embedding(train: Examples, context: Context) -> Any:
    """Ridge regression to an embedding of the distances, then the nearest class."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places = _embedded(train.distances)
    ridge = RidgeCV(alphas=[10.0**k for k in range(-1, context.budget.trials - 1)])
    regression = make_pipeline(StandardScaler(), ridge)
    return _NearestPlace(regression.fit(train.X, places[train.y]), places)


def _embedded(distances: Any) -> Any:
    """Return points (K, d) with nearly the given distances (classical scaling, Torgerson 1952)."""
    import numpy as np

    centre = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-0.5 * centre @ np.square(distances) @ centre)
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] * np.sqrt(values[kept])


class _NearestPlace:
    """Predicts the class whose place is nearest to what a regression says."""

    def __init__(self, regression: Any, places: Any) -> None:
        self.regression, self.places = regression, places

    def predict(self, X: Any) -> Any:
        """Return the class of each row."""
        from scipy.spatial.distance import cdist

        return cdist(self.regression.predict(X).reshape(len(X), -1), self.places).argmin(axis=1)
