"""Rankings of columns in `ctr`: noise is planted among the columns, and one network judges what ranks at the top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.ctr.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workingpapers.methods.tables.outrank import Null
    from workingpapers.tasks.ctr.examples import Examples, Problem

NOISE = (2, 10, 100, 1_000, 10_000)  # values of each planted column
BINS = 32  # by which numbers are cut into classes of equal size


@dataclass(frozen=True)
class Ranking:
    """What an entry returns.

    Attributes:
        scores: of every column, higher is more useful; None for an entry that takes them all.
    """

    scores: Mapping[str, float] | None


def with_noise(problem: Problem, seed: int) -> Problem:
    """Return a problem with columns of noise in both parts, and its columns in a random order."""
    import numpy as np

    rng = np.random.default_rng([seed, 6])
    planted = {f"planted noise, {n:,} values": n for n in NOISE}
    train = problem.train.table.assign(**{c: rng.integers(n, size=len(problem.train)) for c, n in planted.items()})
    held = problem.table.assign(**{c: rng.integers(n, size=len(problem.clicks)) for c, n in planted.items()})
    order = rng.permutation(np.array(train.columns, dtype=object)).tolist()
    return replace(problem, train=replace(problem.train, table=train[order]), table=held[order], planted=tuple(planted))


def ranking_metrics(problem: Problem, ranking: Ranking, context: Context) -> dict[str, float]:
    """Return the AUC of the tuned network on the top columns, and how often noise ranks higher than another column.

    Raises:
        ValueError: scores that are not finite or not those of the columns.
    """
    import math

    from workingpapers.tasks.ctr.baselines import mlp
    from workingpapers.tasks.ctr.examples import click_metrics

    columns = problem.train.table.columns.tolist()
    if ranking.scores is None:
        return {"auc": click_metrics(problem, mlp(problem.train, context))["auc"]}
    scores = dict(ranking.scores)
    if set(scores) != set(columns) or not all(map(math.isfinite, scores.values())):
        raise ValueError(f"a ranking must have a finite score for each of {columns}; got {scores}")
    others = [c for c in columns if c not in problem.planted]
    pairs = [
        (scores[noise] > scores[c]) + 0.5 * (scores[noise] == scores[c]) for noise in problem.planted for c in others
    ]
    top = sorted(columns, key=lambda c: -scores[c])[: len(others)]
    model = mlp(problem.train.only(top), context)
    return {"auc": click_metrics(problem, model)["auc"], "misranked-noise": 100 * sum(pairs) / len(pairs)}


def classes(train: Examples, column: str) -> NDArray[Any]:
    """Return a column's values as classes 0, 1, ...; numbers are cut at quantiles, missing values are a class."""
    import pandas as pd

    values = train.table[column]
    numerical = train.kinds.get(column) == "numerical" or (
        column not in train.kinds and pd.api.types.is_float_dtype(values.dtype)
    )
    if numerical:
        values = pd.qcut(pd.to_numeric(values), BINS, labels=False, duplicates="drop")
    elif values.dtype == object:  # lists too, which cannot be compared as they are
        values = values.map(str)
    codes: NDArray[Any] = pd.factorize(values, use_na_sentinel=False)[0]
    return codes


@task.entry("feature-ranking")
def mutual_information(train: Examples, context: Context) -> Ranking:
    """Mutual information of each column's values with the label, as counted."""
    from sklearn.metrics import mutual_info_score

    return Ranking({c: float(mutual_info_score(train.clicks, classes(train, c))) for c in train.table.columns})


@task.entry("feature-ranking")
def random_forest(train: Examples, context: Context) -> Ranking:
    """Importances of a random forest of 100 trees on numbered values."""
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    columns = train.table.columns.tolist()
    X = np.stack([classes(train, c) for c in columns], axis=1)
    forest = RandomForestClassifier(n_estimators=100, random_state=context.seed).fit(X, train.clicks)
    return Ranking(dict(zip(columns, forest.feature_importances_.tolist(), strict=True)))


@task.entry("feature-ranking")
def all_features(train: Examples, context: Context) -> Ranking:
    """Every column, the noise too."""
    return Ranking(None)


def _outrank(train: Examples, context: Context, null: Null) -> Ranking:
    import numpy as np

    from workingpapers.methods.tables.outrank import OutRankSelector

    columns = train.table.columns.tolist()
    X = np.stack([classes(train, c) for c in columns], axis=1)
    selector = OutRankSelector(null=null, random_state=context.seed).fit(X, train.clicks)
    return Ranking(dict(zip(columns, selector.scores_.tolist(), strict=True)))


@task.entry("feature-ranking", paper="outrank")
def outrank(train: Examples, context: Context) -> Ranking:
    """Mutual information less that of noise with the same value counts, made by shifting the labels."""
    return _outrank(train, context, "shift")


@task.entry("feature-ranking", paper="outrank")
def outrank_expected(train: Examples, context: Context) -> Ranking:
    """Mutual information less its mean over all orders of the labels, in closed form."""
    return _outrank(train, context, "expected")
