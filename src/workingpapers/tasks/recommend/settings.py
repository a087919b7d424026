"""The settings of `recommend`: what is loaded, what entries see, what is scored.

All entries read the same logs. Those that train by epochs hold the last item of each training history out, by which
they compare as many learning rates as `trials` says and, but for those that read texts, keep the best epoch; `epochs`
says how long they train at most. All others use every item and are not tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.recommend.examples import Problem

LAST = {"two-tower": 5, "scarce": 5}  # items of a user that are held back, the latest; 1 elsewhere
NEW = {"cold": 0.2}  # share of the items that are held back from everybody
KEPT = {"scarce": 0.1}  # share of the interactions that are left to learn from
DESCRIBED = ("two-tower", "scarce", "cold")  # settings that need features of the items
SIZES = (8, 16, 32, 64)  # nested

NDCG = Metric("ndcg-10", True, "%", 0.2, "Gain of what was taken, discounted by its place among the first 10.")
RECALL_10 = Metric("recall-10", True, "%", 0.5, "How often what was taken stands among the first 10 of all items.")
RECALL_50 = Metric("recall-50", True, "%", 1.0, "How often what was taken stands among the first 50 of all items.")
TAIL = Metric(
    "tail-recall",
    True,
    "%",
    1.0,
    "Recall at 50 where what was taken belongs to the half of the items that was taken least.",
    optional=True,
)
NEW_NDCG = Metric("new-ndcg-10", True, "%", 0.5, "Gain of what was taken, by its place among the items that are new.")
NEW_RECALL = Metric(
    "new-recall-10", True, "%", 1.0, "How often what was taken stands among the first 10 of the items that are new."
)
BY_SIZE = (
    Metric("mean-ndcg-10", True, "%", 0.2, "NDCG at 10, averaged over the sizes 8, 16, 32 and 64."),
    Metric("smallest-ndcg-10", True, "%", 0.2, "NDCG at 10 of size 8."),
    Metric("largest-ndcg-10", True, "%", 0.2, "NDCG at 10 of size 64."),
    Metric("weights", False, "thousand", 0.0, "What must be kept to have all sizes."),
)

Fit = Callable[[Any], Any]


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.recommend.problems import prepare

    return prepare(conditions, entries)


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.recommend.problems import load

    return load(conditions, seed, prepared)


def _lists(metrics: tuple[Metric, ...]) -> Callable[[Fit, Problem, Context], dict[str, float]]:
    def measure(fit: Fit, problem: Problem, context: Context) -> dict[str, float]:
        from workingpapers.tasks.recommend.examples import list_metrics

        found = list_metrics(problem, fit(problem.train))
        return {metric.name: found[metric.name] for metric in metrics if metric.name in found}

    return measure


def _new(fit: Fit, problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.recommend.examples import new_metrics

    return new_metrics(problem, fit(problem.train))


def _sizes(fit: Fit, problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.recommend.examples import size_metrics

    return size_metrics(problem, fit(problem.train), SIZES, context)


def _setting(
    name: str, title: str, baseline: str, metrics: tuple[Metric, ...], epochs: int = 10, measure: Any = None
) -> Setting:
    return Setting(
        name=name,
        title=title,
        metrics=metrics,
        baseline=baseline,
        data="movielens",
        model="",
        budgets={
            "quick": Budget("quick", train=20_000, test=5_000, epochs=epochs, trials=1),
            "full": Budget("full", train=5_000_000, test=100_000, epochs=100, trials=3),
        },
        prepare=_prepare,
        load=_load,
        measure=measure or _lists(metrics),
    )


task = Task(
    "recommend",
    title="Which recommender of the next item?",
    settings=[
        _setting(
            "standard",
            "The last item of each user out of the whole catalogue, from what the user took before",
            "sasrec",
            (NDCG, RECALL_10, RECALL_50, TAIL),
        ),
        _setting(
            "two-tower",
            "Retrieval of each user's last five items by two towers, the item's on its features alone",
            "two-tower",
            (RECALL_50, TAIL, NDCG),
            epochs=20,
        ),
        _setting(
            "scarce",
            "Each user's last five items, with a tenth of all other interactions to learn from",
            "two-tower",
            (RECALL_50, TAIL, NDCG),
            epochs=20,
        ),
        _setting(
            "cold",
            "A fifth of the items are new: nobody's choice of them was trained on, only what they are is known",
            "content-knn",
            (NEW_NDCG, NEW_RECALL, RECALL_50),
            measure=_new,
        ),
        _setting(
            "sizes",
            "Models of four sizes: cut out of one that was trained once, or each trained alone",
            "fmrlrec-alone",
            BY_SIZE,
            measure=_sizes,
        ),
    ],
)
