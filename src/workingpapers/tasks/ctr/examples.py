"""The impressions of `ctr`: what entries see and how it is split, the search they share, and how they are scored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workingpapers.data.impressions import HELD_BACK, Impressions, load_impressions
from workingpapers.data.splits import stratified
from workingpapers.errors import UserError
from workingpapers.methods.recommenders.metrics import auc, calibration, gauc, log_loss
from workingpapers.tasks.protocol import (
    Budget,
    Conditions,
    Context,
    Prepared,
    load_task,
)
from workingpapers.tasks.returned import check_returned, checked_probabilities

if TYPE_CHECKING:
    import pandas as pd

    from workingpapers.methods.recommenders.estimator import ClickClassifier

SHARE = 0.8  # of either part that a seed draws at most, where the parts are given
FEWEST = 20  # clicks, and rows without, that a training part needs: two of each to validate on
# Pairs of learning rate and weight decay, in the order in which trials take them.
GRID = ((1e-3, 1e-4), (3e-3, 1e-4), (1e-3, 0.0), (3e-3, 0.0), (1e-3, 1e-3), (3e-3, 1e-3))
VALIDATION = 0.1  # of the training rows
BATCH = 512  # rows, of a small table a twentieth: one step per epoch would train nothing


@dataclass(frozen=True)
class Examples:
    """The training part, as an entry sees it; it returns a fitted `Clicker`.

    In the setting history that has `history_` too; other settings have classes of their own for what they get back.

    Attributes:
        table: n rows of features.
        clicks: (n,) 0 or 1.
        kinds: see `Impressions.kinds`.
        every_epoch: whether training goes on to the last epoch before the best one is kept; otherwise it stops early.
    """

    table: pd.DataFrame
    clicks: NDArray[np.int64]
    kinds: Mapping[str, str]
    every_epoch: bool = False

    def __len__(self) -> int:
        return len(self.clicks)

    def only(self, columns: list[str]) -> Examples:
        """Return the examples with some of their columns."""
        return replace(self, table=self.table[columns], kinds={c: k for c, k in self.kinds.items() if c in columns})


class Clicker(Protocol):
    """Something fitted that predicts clicks."""

    def predict_proba(self, table: Any) -> NDArray[Any]:
        """Return the probabilities of no click and of a click, (m, 2)."""


@dataclass(frozen=True)
class Problem:
    """A training part and a held-back part.

    Attributes:
        train: what the entry sees.
        table: m held-back rows of features.
        clicks: (m,) their labels; the entry never sees them.
        users: (m,) whose impressions they are; None where the data have no column for it.
        planted: columns of the features that are noise.
    """

    train: Examples
    table: pd.DataFrame
    clicks: NDArray[np.int64]
    users: NDArray[Any] | None = None
    planted: tuple[str, ...] = ()


def prepare(conditions: Conditions) -> Prepared:
    """Look at the impressions once for all runs.

    Raises:
        UserError: they cannot be used, or not in this setting.
    """
    from workingpapers.methods.recommenders.schema import Schema

    data = load_impressions(conditions.data, label=conditions.label)
    problem = load(conditions, 0, Prepared(data.fingerprint, ""))
    remarks = list(data.remarks)
    try:
        Schema.fit([problem.train.table], kinds=problem.train.kinds).encode(problem.table)
        if os.environ.get("RAY_ADDRESS") and data.name.endswith(".parquet"):
            remarks.append(_counted_by_ray(data, problem.train))
    except ValueError as error:
        raise UserError(f"{data.name}: {error}.") from error
    return Prepared(data.fingerprint, "", tuple(remarks))


def _counted_by_ray(data: Impressions, train: Examples) -> str:
    """Build the features of the whole file on the cluster at RAY_ADDRESS, which `try --ray` sets; return a remark.

    Raises:
        ValueError: a column that can be no feature.
    """
    import logging

    import ray

    from workingpapers.methods.recommenders.ray_schema import schema_of_parquet

    with ray.init(log_to_driver=False, logging_level="ERROR"):
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        path = Path(data.name).expanduser().absolute()
        schema = schema_of_parquet(path, columns=list(train.table.columns), kinds=train.kinds)
    values = sum(len(field.values) for field in schema.fields)
    return (
        f"Ray Data read {len(schema.fields)} columns of {data.name} in blocks: {values:,} values occur twice or more."
    )


def load(conditions: Conditions, seed: int, prepared: Prepared | None = None) -> Problem:
    """Draw a seed's training and held-back rows.

    Args:
        conditions: which impressions, which budget.
        seed: of what is drawn.
        prepared: tells whether they are still those that were prepared; None does not ask.

    Raises:
        UserError: other impressions than those that were prepared, too few rows of a class, no feature that is not a
            history, or no history or users where the setting needs them.
    """
    data = load_impressions(conditions.data, label=conditions.label)
    if prepared:
        prepared.check_data(data.name, data.fingerprint)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    histories = [column for column, kind in data.kinds.items() if kind.startswith("sequence")]
    if conditions.setting == "history" and not (histories and data.user):
        raise UserError(
            f"{data.name} has no {'column user' if histories else 'history'}; the setting history needs both: a column "
            "user, and for a column X a column X_history. The packaged data 'movielens' have them."
        )
    kept, held = rows(data, budget, seed)
    for part, chosen, fewest in (("training", kept, FEWEST), ("held-back", held, 1)):
        counts = np.bincount(data.clicks[chosen], minlength=2)
        if counts.min() < fewest:
            raise UserError(
                f"{data.name}: the {part} part has {counts[1]} clicks and {counts[0]} rows without; it needs {fewest} "
                "of each."
            )
    whole = Examples(data.table, data.clicks, data.kinds, conditions.setting == "history")
    if conditions.setting != "history":
        whole = whole.only([column for column in data.table.columns if column not in histories])
    train = replace(whole, table=_at(whole.table, kept), clicks=data.clicks[kept])
    users = None if data.user is None else data.table[data.user].astype(str).to_numpy()[held]
    return Problem(train, _at(whole.table, held), data.clicks[held], users)


def _at(table: pd.DataFrame, chosen: NDArray[np.int64]) -> pd.DataFrame:
    return table.iloc[chosen].reset_index(drop=True)


def rows(data: Impressions, budget: Budget, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the rows to train on and of those held back, both drawn by class within the budget.

    Where the data say what is held back, a seed draws four fifths of either part at most, so that seeds differ;
    elsewhere it holds back a fifth at random.
    """
    rng = np.random.default_rng([seed, 1])
    if data.held is None:
        everything = np.arange(len(data))
        held = stratified(rng, data.clicks, min(budget.test, round(HELD_BACK * len(data))))
        rest = np.setdiff1d(everything, held)
        return rest[stratified(rng, data.clicks[rest], min(budget.train, len(rest)))], held
    kept, held = np.flatnonzero(~data.held), np.flatnonzero(data.held)
    kept = kept[stratified(rng, data.clicks[kept], min(budget.train, round(SHARE * len(kept))))]
    return kept, held[stratified(rng, data.clicks[held], min(budget.test, round(SHARE * len(held))))]


def tuned(train: Examples, context: Context, kind: type[ClickClassifier], **options: Any) -> Any:
    """Return the classifier of the best validation AUC among the budget's pairs of learning rate and weight decay.

    The tenth of the rows to validate on is the same for all networks of a seed, and each keeps its best epoch there.
    """
    fitted = []
    for rate, decay in GRID[: context.budget.trials]:
        model = kind(
            kinds=train.kinds,
            learning_rate=rate,
            weight_decay=decay,
            batch_size=min(BATCH, max(32, len(train) // 20)),
            max_epochs=context.budget.epochs,
            patience=context.budget.epochs if train.every_epoch else 2,
            validation=VALIDATION,
            random_state=context.seed,
            **options,
        )
        fitted.append(model.fit(train.table, train.clicks))
    best = max(fitted, key=lambda model: max(model.history_.auc))
    for epoch, value in enumerate(best.history_.auc, start=1):
        context.log("validation AUC by epoch", epoch, 100 * value)
    return best


def click_probabilities(problem: Problem, model: Clicker) -> NDArray[Any]:
    """Return the probabilities of a click for the held-back rows, (m,); the model may change its copy of them.

    Raises:
        UserError: no model of clicks, or no probabilities.
    """
    check_returned(model, "a fitted click model", "predict_proba")
    return checked_probabilities(model.predict_proba(problem.table.copy()), (len(problem.clicks), 2))[:, 1]


def click_metrics(problem: Problem, model: Clicker) -> dict[str, float]:
    """Return AUC, log loss and calibration on the held-back rows."""
    p = click_probabilities(problem, model)
    return {
        "auc": 100 * auc(problem.clicks, p),
        "log-loss": log_loss(problem.clicks, p),
        "calibration": 100 * abs(calibration(problem.clicks, p) - 1),
    }


def history_metrics(problem: Problem, model: Any) -> dict[str, float]:
    """Return AUC within users and over all, log loss, and by how much the last epoch is below the best one.

    Raises:
        UserError: no user has both a click and none among the held-back rows.
    """
    p = click_probabilities(problem, model)
    check_returned(model, "a fitted click model", "predict_proba", "history_")
    try:
        within = gauc(problem.clicks, p, problem.users)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError("No user has both a click and an impression without among the held-back rows.") from error
    validation = model.history_.auc
    return {
        "gauc": 100 * within,
        "auc": 100 * auc(problem.clicks, p),
        "log-loss": log_loss(problem.clicks, p),
        "final-drop": 100 * (max(validation) - validation[-1]),
    }
