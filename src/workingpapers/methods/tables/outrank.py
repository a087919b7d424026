"""OutRank: which columns of a click log tell something about the label, whatever their number of values.

Plain mutual information I(X;Y) = H(Y) - H(Y|X), from counts, prefers columns of many values: a column of distinct
values has all of H(Y). What a noise column X~ with the same value counts would score is therefore taken off:

    score(X, Y) = I(X;Y) - I(X~;Y) = H(Y|X~) - H(Y|X)         in nats

    shift      X~ keeps the rows of X and reads, for a value that occurs c times, the label c rows on
    permute    X~ reads labels in random order
    expected   the mean of I over all orders of the labels, in closed form (as in adjusted mutual information)

If X and Y are the same up to names nothing is taken off, so that the score is H(Y). A shift is fair only where rows are
exchangeable: logs sorted by user, time or label must be shuffled, which the selector does with each batch. And as the
shifted rows of different values overlap, their mix of labels is not quite that of Y, which leaves noise of the size of
|log(p / (1 - p))| sqrt(p (1 - p) / n) in the score for n rows of which a share p is clicks. The other two keep the mix:
with few rows, or weak columns, prefer "expected", which adds no noise of its own and takes about five times as long.

Ranking in three terms (3MR) starts with the best column and adds, again and again, the one with the largest

    score(f, Y) - alpha agg_s score(s, f) + beta agg_s score(s x f, Y)        over the columns s chosen so far

so that a column which repeats a chosen one falls back and one that only tells something together with it rises.

Source: Škrlj and Mramor, "OutRank: Speeding up AutoML-based Model Search for Large Sparse Data sets with
Cardinality-aware Feature Ranking", RecSys 2023, arXiv 2309.01552, and the authors' code.
"""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from workingpapers.errors import UserError, UserRemark
from workingpapers.methods.recommenders.options import check_options, check_types
from workingpapers.methods.tables.outrank_reading import Distinct, batches

Null = Literal["shift", "permute", "expected", "none"]
Codes = NDArray[np.int64]


def cardinality_aware_mi(x: ArrayLike, y: ArrayLike, *, null: Null = "shift", random_state: Any = None) -> float:
    """Return how much more a column tells about a label than noise with the same value counts, in nats.

    Args:
        x: (n,) values of any kind; a missing value is a value.
        y: (n,) labels of any kind.
        null: what is taken off, see the module ("shift", as published); "none" is plain mutual information.
        random_state: of the order that "permute" draws.

    Raises:
        ValueError: no rows, lengths that differ, or an unknown null.
    """
    first, second = codes(x), codes(y)
    if len(first) != len(second) or not len(first):
        raise ValueError(f"x has {len(first)} values and y {len(second)}; they must be as many, and 1 or more")
    check_types(cardinality_aware_mi, {"null": null})
    return _scores(first, second, null, check_random_state(random_state))[0]


def codes(values: ArrayLike, name: str = "x") -> Codes:
    """Return values as numbers 0, 1, .. in the order of their first appearance; all missing ones are one value.

    Raises:
        ValueError: values, such as lists, that cannot be told apart quickly; names the column.
    """
    column = values if isinstance(values, pd.Series) else np.asarray(values)
    if column.ndim != 1:
        raise ValueError(f"{name} must be one column; got shape {column.shape}")
    try:
        return pd.factorize(column, use_na_sentinel=False)[0].astype(np.int64, copy=False)
    except TypeError as error:
        raise ValueError(f"column {name!r} holds values that are not single ones: {error}") from error


def _scores(x: Codes, y: Codes, null: Null, rng: np.random.RandomState) -> tuple[float, float]:
    """Return the score and the plain mutual information of coded columns."""
    n, joint = len(x), _joint(x, y)
    values, labels = np.bincount(x), np.bincount(y)
    raw = (_xlogx(np.array([n])) - _xlogx(values) - _xlogx(labels) + _xlogx(joint)) / n
    same = len(joint) == len(values) == len(labels)
    if null == "none" or same:
        return raw, raw
    if null == "expected":
        from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

        return raw - float(expected_mutual_information(contingency_matrix(x, y, sparse=True), n)), raw
    other = np.concatenate([y, y])[np.arange(n) + values[x]] if null == "shift" else rng.permutation(y)
    return (_xlogx(joint) - _xlogx(_joint(x, other))) / n, raw


def _joint(x: Codes, y: Codes) -> Codes:
    """Return how often each pair occurs, for those that do."""
    width = int(y.max()) + 1
    pair = x * width + y
    if (int(x.max()) + 1) * width <= 8 * len(x):
        counts = np.bincount(pair)
        return counts[counts > 0]
    return np.unique(pair, return_counts=True)[1]


def _xlogx(counts: Codes) -> float:
    larger = counts[counts > 1].astype(np.float64)  # a count of 1 adds nothing
    return float((larger * np.log(larger)).sum())


def cross(a: Codes, b: Codes) -> Codes:
    """Return the codes of pairs of values."""
    return codes(a * (int(b.max()) + 1) + b)


def order_3mr(
    relevance: NDArray[np.float64],
    redundancy: NDArray[np.float64],
    relation: NDArray[np.float64],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    agg: Literal["median", "mean"] = "median",
) -> list[int]:
    """Return the columns, best first, by the three terms of the module.

    Of a cross of s and f the score holds what s tells alone, so columns that tell nothing are told apart only once a
    column that needs them is chosen; and a median forgets redundancy with one of several columns, which a mean keeps.

    Args:
        relevance: (F,) scores with the label.
        redundancy: (F, F) scores between columns.
        relation: (F, F) scores of crossed columns with the label.
        alpha, beta: weights of the last two (1, as published).
        agg: over the columns chosen so far ("median", as published).
    """
    fold = np.median if agg == "median" else np.mean
    chosen = [int(np.argmax(relevance))]
    left = [f for f in range(len(relevance)) if f != chosen[0]]
    while left:
        pairs = np.ix_(chosen, left)
        gain = relevance[left] - alpha * fold(redundancy[pairs], axis=0) + beta * fold(relation[pairs], axis=0)
        chosen.append(left.pop(int(np.argmax(gain))))
    return chosen


class OutRankSelector(SelectorMixin, BaseEstimator):
    """Keeps the columns that rank first; rows may come in batches, which are scored one by one.

    Args:
        k: how many columns to keep (10); all where there are fewer.
        method: "myopic" ranks by the score alone, "3mr" by the three terms of the module, at a cost that grows with the
            square of the number of columns.
        null: see the module.
        alpha, beta: of 3MR.
        agg: "median" or "mean", over batches, weighed by their rows, and over chosen columns.
        batch_size: rows that `fit` scores at a time; None takes all at once.
        random_state: of the order in which the rows of a batch are looked at.

    Attributes:
        scores_: (F,) nats; ranking_: (F,) places, 1 is the best.
        mutual_information_: (F,) plain mutual information, nats.
        redundancy_, relation_: (F, F), with "3mr" only.
    """

    def __init__(
        self,
        k: int = 10,
        *,
        method: Literal["myopic", "3mr"] = "myopic",
        null: Null = "shift",
        alpha: float = 1.0,
        beta: float = 1.0,
        agg: Literal["median", "mean"] = "median",
        batch_size: int | None = None,
        random_state: Any = 0,
    ) -> None:
        self.k = k
        self.method = method
        self.null = null
        self.alpha = alpha
        self.beta = beta
        self.agg = agg
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Rank the columns of X (n, F), a frame or an array of any kind of values, by labels y (n,).

        Raises:
            ValueError: lengths that differ, labels that are numbers to be regressed on, or an option out of its range.
        """
        columns, labels = self._columns(X, y, reset=True)
        self._start()
        order = self._rng.permutation(len(labels))
        size = self.batch_size or len(labels)
        for rows in (order[start : start + size] for start in range(0, len(labels), size)):
            self._add([codes(column[rows]) for column in columns], codes(labels[rows]))
        self._finish()
        return self

    def partial_fit(self, X: Any, y: ArrayLike) -> Self:
        """Score one more batch, whatever its size, and rank by all seen so far."""
        first = not hasattr(self, "ranking_")
        columns, labels = self._columns(X, y, reset=first)
        if first:
            self._start()
        order = self._rng.permutation(len(labels))
        self._add([column[order] for column in columns], labels[order])
        self._finish()
        return self

    def _columns(self, X: Any, y: Any, *, reset: bool) -> tuple[list[Codes], Codes]:
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        if isinstance(X, pd.DataFrame) and not len(X.columns):
            raise ValueError("X has no columns to rank")
        if isinstance(X, pd.DataFrame) and len(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            labels = column_or_1d(y)
            if len(labels) != len(X):
                raise ValueError(f"X has {len(X)} rows and y {len(labels)}; they must agree")
            columns = [codes(X.iloc[:, f], str(name)) for f, name in enumerate(X.columns)]
        else:
            X, labels = validate_data(self, X, y, dtype=None, ensure_all_finite="allow-nan", reset=reset)
            columns = [codes(X[:, f]) for f in range(X.shape[1])]
        check_classification_targets(labels)
        return columns, codes(labels, "y")

    def _start(self) -> None:
        self._check_options()
        self._rows: list[int] = []
        self._batches: dict[str, list[NDArray[np.float64]]] = {}
        self._rng = check_random_state(self.random_state)

    def _check_options(self) -> None:
        check_options(self)
        if not np.isfinite([self.alpha, self.beta]).all():
            raise ValueError(f"alpha is {self.alpha} and beta {self.beta}; they must be finite")
        if self.k < 1:
            raise ValueError(f"k is {self.k}; it must be 1 or more")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be 1 or more, or None")

    def _add(self, columns: list[Codes], labels: Codes) -> None:
        found = np.array([_scores(column, labels, self.null, self._rng) for column in columns])
        new = {"scores": found[:, 0], "mutual_information": found[:, 1]}
        if self.method == "3mr":
            new["redundancy"], new["relation"] = np.zeros((2, len(columns), len(columns)))
            for i, j in zip(*np.triu_indices(len(columns), 1), strict=True):
                between = _scores(columns[i], columns[j], self.null, self._rng)[0]
                crossed = _scores(cross(columns[i], columns[j]), labels, self.null, self._rng)[0]
                new["redundancy"][i, j] = new["redundancy"][j, i] = between
                new["relation"][i, j] = new["relation"][j, i] = crossed
        self._rows.append(len(labels))
        for name, value in new.items():
            self._batches.setdefault(name, []).append(value)

    def _finish(self) -> None:
        for name, values in self._batches.items():
            setattr(self, f"{name}_", _folded(np.stack(values), np.array(self._rows), self.agg))
        if self.method == "3mr":
            terms = self.scores_, self.redundancy_, self.relation_
            order = order_3mr(*terms, alpha=self.alpha, beta=self.beta, agg=self.agg)
        else:
            order = np.argsort(-self.scores_, kind="stable").tolist()
        self.ranking_ = np.empty(len(order), np.int64)
        self.ranking_[order] = np.arange(1, len(order) + 1)

    def _get_support_mask(self) -> NDArray[np.bool_]:
        check_is_fitted(self)
        kept: NDArray[np.bool_] = self.ranking_ <= self.k
        return kept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags


def _folded(batches: NDArray[np.float64], rows: NDArray[np.int64], agg: str) -> NDArray[np.float64]:
    """Return the mean or the median of scores (batches, ..) weighed by the rows of their batches."""
    weight = rows.reshape(-1, *[1] * (batches.ndim - 1)) / rows.sum()
    if agg == "mean":
        mean: NDArray[np.float64] = (batches * weight).sum(axis=0)
        return mean
    order = np.argsort(batches, axis=0)
    passed = np.take_along_axis(np.broadcast_to(weight, batches.shape), order, axis=0).cumsum(axis=0)
    ranked = np.take_along_axis(batches, order, axis=0)
    lower = (passed < 0.5 - 1e-12).sum(axis=0, keepdims=True)
    upper = (passed < 0.5 + 1e-12).sum(axis=0, keepdims=True)  # the next one too where half is reached exactly
    ends = [np.take_along_axis(ranked, np.minimum(at, len(rows) - 1), axis=0)[0] for at in (lower, upper)]
    median: NDArray[np.float64] = (ends[0] + ends[1]) / 2
    return median


def rank_file(
    path: str | Path,
    label: str,
    *,
    method: Literal["myopic", "3mr"] = "myopic",
    null: Null = "shift",
    batch_size: int = 100_000,
    random_state: int = 0,
) -> pd.DataFrame:
    """Rank the columns of a CSV or Parquet file, which may be larger than memory: one batch is held at a time.

    Args:
        path: ends in .csv, .tsv (both also .gz) or .parquet.
        label: the column to be told something about.
        method, null, random_state: see `OutRankSelector`.
        batch_size: rows of a batch (100,000). Each is scored alone and the median taken, so values should be seen
            several times in a batch.

    Returns:
        A row for each column, best first: feature, score and mutual_information (nats), coverage (share of rows with a
        value), values (how many distinct ones; estimated to about 3 % from a thousand on).

    Raises:
        UserError: a file that is missing, cut off or of another format; columns that repeat; no rows; no such label;
            labels that are missing, all different or all the same.
    """
    selector = OutRankSelector(method=method, null=null, random_state=random_state)
    selector._check_options()
    check_types(rank_file, {"batch_size": batch_size})
    if batch_size < 2:
        raise UserError(f"batch_size is {batch_size}; it must be 2 or more.")
    rows, filled, sketches = 0, pd.Series(dtype=np.float64), dict[str, Distinct]()
    labels: set[Any] = set()
    with closing(batches(Path(path), label, batch_size)) as parts:  # its bar ends before an error is told
        for batch in parts:
            target = batch.pop(label)
            _check_label(target, label, rows)
            labels.update(target.unique())
            rows, filled = rows + len(batch), filled.add(batch.notna().sum(), fill_value=0)
            for name in batch.columns:
                try:
                    sketches.setdefault(name, Distinct()).add(batch[name])
                except TypeError as error:
                    raise UserError(f"The column {name!r} of {path} does not hold single values: {error}.") from error
            if target.nunique() > 1:  # a batch of one label says nothing
                selector.partial_fit(batch, target.astype(str))
    if not rows:
        raise UserError(f"{path} holds no rows.")
    if len(labels) < 2:
        raise UserError(f"The label {label!r} has the values {sorted(map(str, labels))} in {rows} rows; it needs two.")
    if not hasattr(selector, "ranking_"):
        raise UserError(
            f"{path} is sorted by {label!r}: no {batch_size} rows in turn have two labels. Shuffle it first."
        )
    names = list(selector.feature_names_in_)
    values = {name: min(sketches[name].count(), int(filled[name])) for name in names}
    _remark_on([name for name in names if values[name] > max(20, 0.9 * filled[name])])
    found = pd.DataFrame(
        {
            "feature": names,
            "score": selector.scores_,
            "mutual_information": selector.mutual_information_,
            "coverage": [filled[name] / rows for name in names],
            "values": [values[name] for name in names],
        }
    )
    return found.iloc[np.argsort(selector.ranking_)].reset_index(drop=True)


def _remark_on(distinct: list[str]) -> None:
    """Remark that columns in which nearly every row has a value of its own score nothing."""
    if distinct:
        shown = ", ".join(map(repr, distinct[:5])) + (f" and {len(distinct) - 5} more" if len(distinct) > 5 else "")
        said = f"Nearly every row has a value of its own in {shown}, so nothing is said about them."
        warnings.warn(f"{said} Cut numbers into ranges first.", UserRemark, stacklevel=3)


def _check_label(target: pd.Series, label: str, before: int) -> None:
    missing = np.flatnonzero(target.isna())
    if len(missing):
        raise UserError(f"The label {label!r} is missing in row {before + int(missing[0])}.")
    if len(target) > 20 and target.nunique() == len(target):
        raise UserError(f"The label {label!r} differs in every row ({target.iloc[0]!r}, ..); it must have few values.")
