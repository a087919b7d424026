"""The settings of `ctr`: what is loaded, what entries see, what is scored.

Every entry compares the same few pairs of learning rate and weight decay by the AUC on a tenth of its training rows,
which also stops its training; `trials` says how many pairs, `epochs` how long at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.protocol import Budget, Conditions, Context, Entry, Metric, Prepared, Setting, Task

if TYPE_CHECKING:
    from workingpapers.tasks.ctr.examples import Problem

AUC = Metric("auc", True, "%", 0.2, "How often a click scores higher than no click: area under the ROC curve.")
LOG_LOSS = Metric("log-loss", False, "nats", 0.002, "Mean negative log-likelihood of what happened.")
BUDGETS = (50, 30, 10)  # of memory, in percent of a full table
CALIBRATION = Metric("calibration", False, "%", 1.0, "How far the sum of predicted probabilities is from the clicks.")


def _check(conditions: Conditions) -> None:
    from workingpapers.data.impressions import check_impressions

    check_impressions(conditions.data, conditions.label)


def _prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    from workingpapers.tasks.ctr.examples import prepare

    return prepare(conditions)


def _load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.ctr.examples import load

    return load(conditions, seed, prepared)


def _load_noisy(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    from workingpapers.tasks.ctr.rankings import with_noise

    return with_noise(_load(conditions, entry, seed, prepared), seed)


def _clicks(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.ctr.examples import click_metrics

    return click_metrics(problem, fit(problem.train))


def _history(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.ctr.examples import history_metrics

    return history_metrics(problem, fit(problem.train))


def _tables(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.ctr.tables import table_metrics

    return table_metrics(problem, fit(problem.train), context.seed)


def _curves(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.ctr.budgets import curve_metrics

    return curve_metrics(problem, fit(problem.train), context)


def _ranking(fit: Callable[[Any], Any], problem: Problem, context: Context) -> dict[str, float]:
    from workingpapers.tasks.ctr.rankings import ranking_metrics

    return ranking_metrics(problem, fit(problem.train), context)


def _budgets(train: int, epochs: int) -> dict[str, Budget]:
    return {
        "quick": Budget("quick", train=train, test=10_000, epochs=epochs, trials=2),
        "full": Budget("full", train=1_000_000, test=200_000, epochs=20, trials=6),
    }


def _setting(name: str, title: str, **changes: Any) -> Setting:
    """Return a setting: the standard one, with what is different."""
    usual: dict[str, Any] = {
        "metrics": (AUC, LOG_LOSS, CALIBRATION),
        "baseline": "mlp",
        "data": "movielens",
        "model": "",
        "budgets": _budgets(train=20_000, epochs=10),
        "prepare": _prepare,
        "load": _load,
        "measure": _clicks,
        "check": _check,
    }
    return Setting(name=name, title=title, **usual | changes)


task = Task(
    "ctr",
    title="Which model of clicks, and which embedding table?",
    settings=[
        _setting("standard", "Ranking of impressions by models that were tuned alike, on later or other rows"),
        _setting(
            "history",
            "Models that read what a user took before, ranked within each user",
            baseline="sum-pooling",
            metrics=(
                Metric("gauc", True, "%", 0.2, "AUC within each user, averaged by the user's rows."),
                AUC,
                LOG_LOSS,
                Metric("final-drop", False, "%", 0.2, "Validation AUC lost from the best to the last epoch."),
            ),
            budgets=_budgets(train=15_000, epochs=5),
            measure=_history,
        ),
        _setting(
            "tables",
            "One network on embedding tables that save memory",
            baseline="full-table",
            metrics=(
                AUC,
                LOG_LOSS,
                Metric("table-size", False, "kB", 0.0, "Of the table in service, with indices, codes and masks."),
                Metric("lookup-time", False, "ms", 0.0, "Of 16,384 random ids on the CPU; median of 15."),
            ),
            budgets=_budgets(train=15_000, epochs=8),
            measure=_tables,
        ),
        _setting(
            "table-budgets",
            "The same network on tables of a half, three tenths and a tenth of the memory: a curve for each",
            baseline="narrower-tables",
            metrics=tuple(
                Metric(f"auc-{p}", True, "%", 0.2, f"AUC on a table of {p} % of the bytes.", optional=p < max(BUDGETS))
                for p in BUDGETS
            ),
            budgets=_budgets(train=15_000, epochs=8),
            measure=_curves,
        ),
        _setting(
            "feature-ranking",
            "Rankings of columns among which noise was planted",
            baseline="mutual-information",
            data="flights",
            metrics=(
                Metric("auc", True, "%", 0.2, "AUC of the same network on as many top columns as are no noise."),
                Metric(
                    "misranked-noise",
                    False,
                    "%",
                    1.0,
                    "Pairs of a planted and another column in which the planted one ranks higher; ties count half.",
                    optional=True,
                ),
            ),
            load=_load_noisy,
            measure=_ranking,
        ),
    ],
)
