"""The Gaussian of normal features, in the variants that its paper compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.anomaly.settings import FALSE_ALARMS, task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workingpapers.tasks.anomaly.examples import Detector, Examples


class Gaussian:
    """`GaussianAnomalyDetector` on the levels as they are; channels that never vary in training can be left out.

    Args:
        train: the training part.
        varying: leave those out; their variance gives no scale to measure a distance by.
        options: of the detector.
    """

    def __init__(self, train: Examples, *, varying: bool = False, **options: Any) -> None:
        import numpy as np

        from workingpapers.methods.anomaly.gaussian import GaussianAnomalyDetector

        self._kept: list[Any] = [np.ptp(level, axis=0) > 0 if varying else slice(None) for level in train.levels]
        self.detector = GaussianAnomalyDetector(fpr=FALSE_ALARMS, **options).fit(self._chosen(train.levels))

    def _chosen(self, levels: list[NDArray[Any]]) -> list[NDArray[Any]]:
        chosen = [level[:, kept] for level, kept in zip(levels, self._kept, strict=True)]
        return [level for level in chosen if level.shape[1]]

    def score(self, levels: list[NDArray[Any]]) -> NDArray[Any]:
        """Return the mean distance over the levels, (m,)."""
        return self.detector.anomaly_score(self._chosen(levels))


def _by_chi_square(train: Examples, **options: Any) -> Detector:
    """Return a Gaussian with the threshold that its own law gives: no image is left out for it."""
    from workingpapers.tasks.anomaly.examples import Detector

    model = Gaussian(train, **options)
    return Detector(model, model.detector.threshold())


@task.entry(paper="gaussian-ad", needs=["levels"])
def gaussian_ad(train: Examples, context: Context) -> Detector:
    """Mahalanobis distance, shrunk full covariance, mean over levels; chi-square threshold."""
    return _by_chi_square(train)


@task.entry(paper="gaussian-ad", needs=["levels"])
def gaussian_ad_npca(train: Examples, context: Context) -> Detector:
    """The same in the components of least variance (NPCA, behind 99 %); chi-square threshold."""
    return _by_chi_square(train, reduction="npca")


@task.entry(paper="gaussian-ad", needs=["levels"])
def gaussian_ad_pca(train: Examples, context: Context) -> Detector:
    """The same in the components of most variance (PCA, up to 99 %); chi-square threshold."""
    return _by_chi_square(train, reduction="pca")


@task.entry(paper="gaussian-ad", needs=["levels"])
def gaussian_ad_diagonal(train: Examples, context: Context) -> Detector:
    """Variances alone (standardised Euclidean distance), mean over levels; chi-square threshold."""
    return _by_chi_square(train, covariance="diag", varying=True)


@task.entry(paper="gaussian-ad", needs=["levels"])
def gaussian_ad_euclidean(train: Examples, context: Context) -> Detector:
    """Euclidean distance to the mean, mean over levels; it has no law, so its threshold is from images left out."""
    from workingpapers.tasks.anomaly.examples import calibrated

    return calibrated(lambda part: Gaussian(part, covariance="identity"), train)
