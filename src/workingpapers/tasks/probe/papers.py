"""The papers' entries on frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.probe.baselines import FROZEN, tuned, tuned_logistic_regression, tuned_svm
from workingpapers.tasks.probe.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.tasks.probe.examples import Examples

RATES = [{"learning_rate": rate} for rate in (1e-3, 3e-3, 3e-4, 1e-2, 1e-4, 3e-2)]


class Standardised:
    """A head on features whose channels (last axis) were scaled to mean 0 and variance 1 over the training part.

    What logistic regression gets from a StandardScaler, for tokens (N, L, D) too; float16 stays float16.
    """

    def __init__(self, head: Any) -> None:
        self.head = head

    def fit(self, X: Any, y: Any) -> Standardised:
        """Learn the scales and fit the head."""
        import numpy as np

        axes = tuple(range(X.ndim - 1))
        self.mean = X.mean(axis=axes, dtype=np.float32)
        spread = X.std(axis=axes, dtype=np.float32)
        self.scale = np.where(spread > 0, spread, 1)
        self.head.fit(self._scaled(X), y)
        return self

    def _scaled(self, X: Any) -> Any:
        import numpy as np

        scaled = np.empty_like(X)
        largest = np.finfo(X.dtype).max  # float16 may be too small for a channel that was all but constant in training
        for rows in np.array_split(np.arange(len(X)), -(-len(X) // 1024)):  # float32 in passing only
            scaled[rows] = np.clip((X[rows] - self.mean) / self.scale, -largest, largest)
        return scaled

    @property
    def classes_(self) -> Any:
        """The labels in the order of the probability columns."""
        return self.head.classes_

    def predict_proba(self, X: Any) -> Any:
        """Return the class probabilities, (N, K)."""
        return self.head.predict_proba(self._scaled(X))

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy."""
        return float(self.head.score(self._scaled(X), y))


def _log(head: Any, context: Context) -> None:
    """Log a fitted head's loss curve."""
    for epoch, loss in enumerate(head.loss_curve_, start=1):
        context.log("training loss by epoch", epoch, loss)


@task.entry("standard", paper="moment-probing", needs=["tokens"])
def moment_probing(train: Examples, context: Context) -> Any:
    """Second moments of the tokens beside their mean (MomentProbe), hidden width 128."""
    from workingpapers.methods.heads.moment_probing import MomentProbeClassifier

    options: dict[str, Any] = {"hidden_dim": 128, "max_epochs": context.budget.epochs, "random_state": context.seed}
    found = tuned(lambda **choice: Standardised(MomentProbeClassifier(**options, **choice)), RATES, train, context)
    _log(found.head, context)
    return found


@task.entry(*FROZEN, paper="generative-probe", needs=["pooled"])
def generative_probe(train: Examples, context: Context) -> Any:
    """Naive Bayes with one variance per feature (TiedGaussianNB), its smoothing chosen on a validation part."""
    from workingpapers.methods.heads.naive_bayes import TiedGaussianNB

    # Relative smoothing: features that are (nearly) dead within the classes must not get (nearly) infinite weights.
    grid = [{"var_smoothing": share} for share in (1e-2, 1e-9, 1e-1, 1e-3, 1e-4, 1.0)]
    return tuned(lambda **choice: TiedGaussianNB(smoothing="relative", **choice), grid, train, context)


@task.entry("standard", paper="grassmann", needs=["pooled"])
def grassmann(train: Examples, context: Context) -> Any:
    """A subspace of four dimensions per class, trained on the Grassmannian (GrassmannLinear)."""
    from workingpapers.methods.heads.grassmann import GrassmannClassifier

    dimensions = max(1, min(4, train.X.shape[1] // 2))  # narrow tables: a subspace of all dimensions tells nothing
    options: dict[str, Any] = {
        "subspace_dim": dimensions,
        "max_epochs": context.budget.epochs,
        "random_state": context.seed,
    }
    grid = [{"learning_rate": rate} for rate in (0.1, 0.03, 0.3, 0.01, 1.0, 0.003)]
    head = tuned(lambda **choice: GrassmannClassifier(**options, **choice), grid, train, context)
    _log(head, context)
    return head


@task.entry("standard", paper="hyperspherical", needs=["pooled"])
def hyperspherical(train: Examples, context: Context) -> Any:
    """Normalised softmax on the unit sphere (NormalizedLinear)."""
    from workingpapers.methods.heads.hyperspherical import HypersphericalClassifier

    options: dict[str, Any] = {"max_epochs": context.budget.epochs, "random_state": context.seed}
    head = tuned(lambda **choice: HypersphericalClassifier(**options, **choice), RATES, train, context)
    _log(head, context)
    return head


@task.entry("standard", "label-efficiency", "multi-view", paper="off-the-shelf", needs=["pooled"])
def off_the_shelf_single(train: Examples, context: Context) -> Any:
    """Unit-length features and a linear SVM, one view (CNN-SVM)."""
    return tuned_svm(train, context)


@task.entry("multi-view", paper="off-the-shelf", needs=["multi-view"])
def off_the_shelf(train: Examples, context: Context) -> Any:
    """Sixteen views, signed roots, unit length, linear SVM, summed decisions (CNNaug-SVM)."""
    return tuned_svm(train, context, power=0.5)


@task.entry("multi-scale", paper="s2-scaling", needs=["scales-1-2"])
def s2_scaling(train: Examples, context: Context) -> Any:
    """Logistic regression on the features of both scales, the larger one in tiles, side by side."""
    return tuned_logistic_regression(train, context)
