"""The baselines of `probe`, and the one way in which every entry chooses its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.probe.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.tasks.probe.examples import Examples

FROZEN = ("standard", "label-efficiency")


def tuned(make: Callable[..., Any], grid: Sequence[Mapping[str, Any]], train: Examples, context: Context) -> Any:
    """Return the classifier of the best choice in a grid, fitted to all training examples.

    Every entry chooses in this way: as many choices as the budget's trials, the most plausible first, each fitted to
    four fifths of the training part and scored by its accuracy on the rest. With fewer than two examples of some class
    nothing can be split off, and the first choice is taken.

    Args:
        make: a choice in, an unfitted classifier out.
        grid: choices, the default first.
        train: what the entry sees.
        context: its budget says how many choices are compared.
    """
    choices = list(grid)[: context.budget.trials]
    parts = train.split() if len(choices) > 1 else None
    best = choices[0]
    if parts:
        inner, held = parts
        best = max(choices, key=lambda choice: make(**choice).fit(inner.X, inner.y).score(held.X, held.y))
    return make(**best).fit(train.X, train.y)


def tuned_logistic_regression(train: Examples, context: Context) -> Any:
    """Fit logistic regression on standardised features, C chosen on a validation part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    grid = [{"C": C} for C in (0.01, 0.001, 0.1, 0.0001, 1.0, 10.0)]
    return tuned(
        lambda **choice: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **choice)),
        grid,
        train,
        context,
    )


def tuned_svm(train: Examples, context: Context, power: float = 1.0) -> Any:
    """Fit a linear SVM on features of unit length, after a signed power, C chosen on a validation part."""
    from workingpapers.methods.features.off_the_shelf import OffTheShelfClassifier

    grid = [{"C": C} for C in (10.0, 1.0, 100.0, 0.1, 1000.0, 0.01)]
    return tuned(lambda **choice: OffTheShelfClassifier(power=power, **choice), grid, train, context)


@task.entry(*FROZEN, "multi-view", needs=["pooled"])
def logistic_regression(train: Examples, context: Context) -> Any:
    """Logistic regression on standardised features, C chosen on a validation part: the linear probe."""
    return tuned_logistic_regression(train, context)


@task.entry(*FROZEN, needs=["pooled"])
def nearest_mean(train: Examples, context: Context) -> Any:
    """The class whose mean feature is nearest by cosine."""
    import warnings

    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    with warnings.catch_warnings(action="ignore"):  # on deviations of zero, which nothing here divides by
        return make_pipeline(Normalizer(), NearestCentroid()).fit(train.X, train.y)


@task.entry(*FROZEN, needs=["pooled"])
def knn(train: Examples, context: Context) -> Any:
    """Votes of the nearest neighbours by cosine, their number chosen on a validation part."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    neighbours = [n for n in (5, 1, 10, 3, 20, 50) if n <= len(train) // 2] or [1]
    return tuned(
        lambda **choice: make_pipeline(Normalizer(), KNeighborsClassifier(weights="distance", **choice)),
        [{"n_neighbors": n} for n in neighbours],
        train,
        context,
    )


@task.entry(*FROZEN, needs=["pooled"])
def lda(train: Examples, context: Context) -> Any:
    """Linear discriminant analysis with Ledoit-Wolf shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline

    return make_pipeline(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")).fit(train.X, train.y)


@task.entry("standard", needs=["pooled"])
def linear_svm(train: Examples, context: Context) -> Any:
    """Linear SVM on standardised features scaled to unit length, C chosen on a validation part."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from workingpapers.methods.features.off_the_shelf import OffTheShelfClassifier

    grid = [{"C": C} for C in (0.1, 1.0, 0.01, 10.0, 0.001, 100.0)]
    return tuned(
        lambda **choice: make_pipeline(StandardScaler(), OffTheShelfClassifier(**choice)),
        grid,
        train,
        context,
    )


@task.entry("standard", needs=["pooled"])
def mlp(train: Examples, context: Context) -> Any:
    """A network with one hidden layer of 256 units, learning rate chosen on a validation part."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def make(**choice: Any) -> Any:
        network = MLPClassifier(
            (256,),
            max_iter=context.budget.epochs,
            batch_size=min(128, len(train) // 2),
            random_state=context.seed,
            **choice,
        )
        return make_pipeline(StandardScaler(), network)

    import warnings

    grid = [{"learning_rate_init": rate} for rate in (1e-3, 3e-4, 3e-3, 1e-4, 1e-2, 3e-5)]
    with warnings.catch_warnings(action="ignore"):  # it may not converge within the budget; no entry has more
        return tuned(make, grid, train, context)


@task.entry("standard", needs=["pixels"])
def pixels_svm(train: Examples, context: Context) -> Any:
    """Linear SVM on the pixels at 16 × 16: what no model at all gives."""
    return tuned_svm(train, context)


@task.entry("standard", needs=["hog"])
def hog_svm(train: Examples, context: Context) -> Any:
    """Linear SVM on histograms of oriented gradients: what hand-made features give."""
    return tuned_svm(train, context)


@task.entry("standard", needs=["random-weights"])
def random_weights_svm(train: Examples, context: Context) -> Any:
    """Linear SVM on the features of the packaged network with random weights: pre-training left out."""
    return tuned_svm(train, context)


@task.entry("multi-scale", needs=["scale-1"])
def single_scale(train: Examples, context: Context) -> Any:
    """Logistic regression on the features of the image at the base size."""
    return tuned_logistic_regression(train, context)


@task.entry("multi-scale", needs=["scale-2-whole"])
def double_size(train: Examples, context: Context) -> Any:
    """Logistic regression on the features of the image at twice the base size, not tiled."""
    return tuned_logistic_regression(train, context)
