"""The baselines of `anomaly` that judge an image by one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.anomaly.settings import FALSE_ALARMS, task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workingpapers.tasks.anomaly.examples import Detector, Examples

NEIGHBOURS = 5
VARIANCE = 0.95  # share that the principal components keep


class SideBySide:
    """A scikit-learn model on all levels side by side, each centred and divided by its total standard deviation.

    Every level then weighs the same in a distance, whatever its width and scale; one level alone is only rescaled.

    Args:
        train: the training part.
        model: unfitted.
        score: fitted model and vectors (m, D) in, scores (m,) out; higher is more anomalous.
    """

    def __init__(self, train: Examples, model: Any, score: Callable[[Any, NDArray[Any]], NDArray[Any]]) -> None:
        import numpy as np

        self.means = [level.mean(axis=0, dtype=np.float64) for level in train.levels]
        totals = [np.sqrt(level.var(axis=0, dtype=np.float64).sum()) for level in train.levels]
        self.scales = [total if total > 0 else 1.0 for total in totals]  # a level that never varies has no scale
        self.model = model.fit(self._joined(train.levels))
        self._score = score

    def _joined(self, levels: list[NDArray[Any]]) -> NDArray[Any]:
        import numpy as np

        parts = zip(levels, self.means, self.scales, strict=True)
        return np.concatenate([(level - mean) / scale for level, mean, scale in parts], axis=1)

    def score(self, levels: list[NDArray[Any]]) -> NDArray[Any]:
        """Return one number per image, (m,); higher is more anomalous."""
        return self._score(self.model, self._joined(levels))


def _calibrated(fit: Callable[[Examples], Any], train: Examples) -> Detector:
    from workingpapers.tasks.anomaly.examples import calibrated

    return calibrated(fit, train)


def _nearest(train: Examples) -> SideBySide:
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(train)))
    return SideBySide(train, neighbours, lambda model, X: model.kneighbors(X)[0].mean(axis=1))


@task.entry(needs=["levels"])
def knn(train: Examples, context: Context) -> Detector:
    """Mean distance to the 5 nearest normal images, all levels side by side (DN2)."""
    return _calibrated(_nearest, train)


@task.entry(needs=["pixels"])
def pixels_knn(train: Examples, context: Context) -> Detector:
    """The same on the pixels at 16 × 16: what no model at all gives."""
    return _calibrated(_nearest, train)


@task.entry(needs=["levels"])
def isolation_forest(train: Examples, context: Context) -> Detector:
    """How few random splits set an image apart, 200 trees."""
    from sklearn.ensemble import IsolationForest

    def fit(part: Examples) -> SideBySide:
        forest = IsolationForest(n_estimators=200, random_state=context.seed)
        return SideBySide(part, forest, lambda model, X: -model.score_samples(X))

    return _calibrated(fit, train)


@task.entry(needs=["levels"])
def one_class_svm(train: Examples, context: Context) -> Detector:
    """One-class SVM with an RBF kernel of the usual width (gamma="scale")."""
    from sklearn.svm import OneClassSVM

    def fit(part: Examples) -> SideBySide:
        # nu bounds the share of training images outside, which is what the nominal rate of false alarms is.
        machine = OneClassSVM(nu=FALSE_ALARMS, gamma="scale")
        return SideBySide(part, machine, lambda model, X: -model.score_samples(X))

    return _calibrated(fit, train)


def _residual(model: Any, X: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.linalg.norm(X - model.inverse_transform(model.transform(X)), axis=1)


@task.entry(needs=["levels"])
def pca_reconstruction(train: Examples, context: Context) -> Detector:
    """What the principal components with 95 % of the variance cannot reconstruct."""
    from sklearn.decomposition import PCA

    return _calibrated(lambda part: SideBySide(part, PCA(VARIANCE, svd_solver="full"), _residual), train)
