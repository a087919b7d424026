"""The settings of `probe`: what is loaded, what entries see, what is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.probe.embeddings import ImageProblem
    from workingpapers.tasks.probe.examples import Problem

ACCURACY = Metric("accuracy", True, "%", margin=0.5, about="Share of held-back examples classified correctly.")
MACRO_F1 = Metric("macro-f1", True, "%", margin=0.5, about="F1 averaged over classes, whatever their sizes.")
ECE = Metric(
    "ece", False, "%", margin=0.5, about="Expected calibration error: how far confidence is from accuracy (15 bins)."
)

BUDGETS = {
    "quick": Budget("quick", train=2_000, test=1_000, epochs=15, trials=3),
    "full": Budget("full", train=40_000, test=10_000, epochs=30, trials=6),
}


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.probe.examples import prepare

    return prepare(conditions, entries)


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.probe.examples import load

    return load(conditions, entry, seed, prepared)


def _measure(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.probe.examples import classification_metrics

    classifier = fit(problem.train)
    return classification_metrics(problem, classifier)


def _label_efficiency(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    """Fit with 2, 5, 10, ... labels a class and once with all, and score each on the same held-back part.

    Raises:
        UserError: a class with fewer than three training examples, or nothing right with all of them.
    """
    import numpy as np

    from workingpapers.errors import UserError
    from workingpapers.tasks.probe.examples import accuracy

    fewest = int(np.unique(problem.train.y, return_counts=True)[1].min())
    if fewest < 3:
        raise UserError(
            f"This setting needs at least three training examples of each class; the smallest has {fewest}."
        )
    scores = []
    for size, train in problem.train.growing():
        scores.append(accuracy(problem, fit(train)))
        context.log("accuracy by training examples", size, scores[-1])
    if scores[-1] == 0:
        raise UserError("No prediction is right with all labels, so there is no final accuracy to converge to.")
    reached = [100 * score / scores[-1] for score in scores[:-1]]
    return {
        "convergence": sum(reached) / len(reached),
        "mean-accuracy": sum(scores) / len(scores),
        "fewest-accuracy": scores[0],
    }


def _prepare_unseen(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.probe.unseen import prepare

    return prepare(conditions, entries)


def _unseen(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.probe.unseen import measure

    return measure(fit, problem, context.seed)


def _prepare_images(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.probe.embeddings import prepare

    return prepare(conditions)


def _load_images(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> ImageProblem:
    from workingpapers.tasks.probe.embeddings import load

    return load(conditions, seed, prepared)


def _novel(fit: Callable[[Any], Any], problem: ImageProblem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.probe.embeddings import measure_novel

    return measure_novel(fit, problem, context)


def _representation(fit: Callable[[Any], Any], problem: ImageProblem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.probe.embeddings import measure_representation

    return measure_representation(fit, problem, context)


def _frozen(name: str, title: str, **changes: Any) -> Setting:
    """Return a setting on frozen features: the standard one, with what is different."""
    usual: dict[str, Any] = {
        "metrics": (ACCURACY, MACRO_F1, ECE),
        "baseline": "logistic-regression",
        "data": "openmoji",
        "model": "efficientnet-lite0",
        "budgets": BUDGETS,
        "prepare": _prepare,
        "load": _load,
        "measure": _measure,
    }
    return Setting(name=name, title=title, **usual | changes)


def _trained(name: str, title: str, **changes: Any) -> Setting:
    """Return a setting in which every entry trains the same small network from scratch."""
    budgets = {
        "quick": Budget("quick", train=2_500, test=1_000, epochs=20, trials=1),
        "full": Budget("full", train=10_000, test=5_000, epochs=30, trials=1),
    }
    fixed: dict[str, Any] = {
        "model": "",
        "baseline": "softmax",
        "budgets": budgets,
        "prepare": _prepare_images,
        "load": _load_images,
    }
    return Setting(name=name, title=title, **fixed | changes)


task = Task(
    "probe",
    title="Which classifier on frozen features?",
    settings=[
        _frozen("standard", "Accuracy of classifiers on frozen features"),
        _frozen(
            "label-efficiency",
            "How soon classifiers reach their final accuracy as labels are added",
            metrics=(
                Metric("convergence", True, "%", 0.5, "Share of its own final accuracy, averaged over label counts."),
                Metric("mean-accuracy", True, "%", 0.5, "Accuracy averaged over label counts."),
                Metric("fewest-accuracy", True, "%", 0.5, "Accuracy with two labels a class."),
            ),
            measure=_label_efficiency,
        ),
        _frozen(
            "unseen-classes",
            "Classes without a training example, on a label space with distances",
            data="rotated-digits",
            baseline="argmax",
            metrics=(
                Metric("squared-distance", False, "", 0.0, "Mean squared distance of predicted and true label."),
                Metric("accuracy", True, "%", 0.5, ACCURACY.about),
                Metric("unseen-accuracy", True, "%", 0.5, "Accuracy on the classes that training never saw."),
            ),
            prepare=_prepare_unseen,
            measure=_unseen,
        ),
        _frozen(
            "multi-view",
            "Several views of an image against one",
            budgets={
                "quick": Budget("quick", train=800, test=500, epochs=15, trials=3),
                "full": Budget("full", train=5_000, test=2_000, epochs=30, trials=6),
            },
        ),
        _frozen(
            "multi-scale",
            "Several scales of an image against one, same frozen backbone",
            data="openmoji-subgroups",
            baseline="single-scale",
        ),
        _trained(
            "novel-classes",
            "A small network trained with each head, judged on classes it never saw (5 examples each)",
            data="glyphs",
            metrics=(
                Metric("disjoint-accuracy", True, "%", 0.5, "Accuracy among novel classes only."),
                Metric("joint-harmonic-mean", True, "%", 0.5, "Harmonic mean of seen and novel accuracy, all classes."),
            ),
            measure=_novel,
        ),
        _trained(
            "representation",
            "A small network trained with each head: accuracy, and what its features are like",
            data="mnist-5k",
            metrics=(
                Metric("accuracy", True, "%", 0.5, ACCURACY.about),
                Metric("within-class-variance", True, "", 0.0, "Variance of unit features around their class mean."),
                Metric(
                    "transfer-accuracy",
                    True,
                    "%",
                    0.5,
                    "Accuracy of a linear probe on OpenMoji's groups.",
                    optional=True,
                ),
            ),
            measure=_representation,
        ),
    ],
)
