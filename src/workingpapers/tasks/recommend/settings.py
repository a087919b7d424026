"""The settings of `recommend`: what is loaded, what entries see, what is scored.

All entries read the same logs and keep the epoch that is best on the last item of each training history; `trials` says
how many learning rates they compare by it, `epochs` how long at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.recommend.examples import Problem

NDCG = Metric("ndcg-10", True, "%", 0.2, "Gain of what was taken, discounted by its place among the first 10.")
RECALL_10 = Metric("recall-10", True, "%", 0.5, "How often what was taken stands among the first 10 of all items.")
RECALL_50 = Metric("recall-50", True, "%", 1.0, "How often what was taken stands among the first 50 of all items.")
TAIL = Metric(
    "tail-recall",
    True,
    "%",
    1.0,
    "Recall at 50 where what was taken belongs to the rarer half of the items.",
    optional=True,
)


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.recommend.examples import prepare

    return prepare(conditions)


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.recommend.examples import load

    return load(conditions, seed)


def _measure(metrics: tuple[Metric, ...]) -> Callable[[Callable[[Any], Any], Problem, Context], dict[str, float]]:
    def measure(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
        from workingpapers.tasks.recommend.examples import list_metrics

        found = list_metrics(problem, fit(problem.train))
        return {metric.name: found[metric.name] for metric in metrics if metric.name in found}

    return measure


def _setting(name: str, title: str, baseline: str, metrics: tuple[Metric, ...], epochs: int) -> Setting:
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
        measure=_measure(metrics),
    )


LAST = {"standard": 1, "two-tower": 5}  # items of a user that are held back, the latest

task = Task(
    "recommend",
    title="Which recommender of the next item?",
    settings=[
        _setting(
            "standard",
            "The last item of each user out of the whole catalogue, from what the user took before",
            "sasrec",
            (NDCG, RECALL_10, RECALL_50, TAIL),
            epochs=10,
        ),
        _setting(
            "two-tower",
            "Retrieval of each user's last five items by two towers, the item's on its features alone",
            "two-tower",
            (RECALL_50, TAIL, NDCG),
            epochs=20,
        ),
    ],
)
