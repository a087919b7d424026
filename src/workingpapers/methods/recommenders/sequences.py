"""Logs of who took what, and recommenders of the next item: histories, the split, batches, ranked lists.

Items have positions 0 to V - 1 in a log. Models read batches of ids (B, L): position + 1, 0 for padding on the *right*.
A causal model never looks at what comes later, so that padding on the right can't leak into the states that count, and
no model needs a mask for it.

    fit(log)                  train on a log
    score(histories)          (B, V), a score for every item of the catalogue
    recommend(histories, k)   the best k items of each, without those in the history
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from workingpapers.methods.recommenders.metrics import ranks
from workingpapers.methods.recommenders.options import check_options, check_types

Histories = Sequence[NDArray[np.int64]]
SCORED = 256  # histories whose scores of all items are held at a time


@dataclass(frozen=True)
class Log:
    """Who took what, in the order of time.

    Attributes:
        items: (V,) the catalogue: labels of the items, by position.
        users: (U,) labels of the users.
        histories: for each user the positions of the items taken, the latest last.
        features: V rows, what is known of each item; None where nothing is.
    """

    items: NDArray[np.object_]
    users: NDArray[np.object_]
    histories: list[NDArray[np.int64]]
    features: pd.DataFrame | None = None

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        *,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        features: pd.DataFrame | None = None,
    ) -> Self:
        """Make a log of a table of interactions; rows of one time keep the table's order.

        Args:
            table: a row for each interaction.
            user, item, time: its columns; times are numbers or dates.
            features: a row for each item, indexed by its label; items without interactions join the catalogue.

        Raises:
            ValueError: no table of pandas', no rows, missing columns or values, times that are infinite or without an
                order, or items that `features` lacks or repeats.
        """
        if not isinstance(table, pd.DataFrame):
            raise ValueError(f"a log is made of a pandas.DataFrame; got {type(table).__name__}")
        absent = [column for column in (user, item, time) if column not in table.columns]
        if absent:
            raise ValueError(f"the log lacks columns {absent}; it has {list(table.columns)}")
        if table.empty:
            raise ValueError("the log holds no rows")
        twice = table.columns[table.columns.duplicated()].intersection([user, item, time])
        if len(twice):
            raise ValueError(f"column {twice[0]!r} occurs more than once")
        for column in (user, item, time):
            if table[column].isna().any():
                row = int(table[column].isna().to_numpy().argmax())
                raise ValueError(f"column {column!r} has no value in row {row}")
        ordered = _in_order(table, time)
        if features is None:
            codes, labels = _factorized(ordered[item])
        else:
            labels, codes = features.index, _positions(features, ordered[item])
        people, names = _factorized(ordered[user])
        order = np.argsort(people, kind="stable")
        histories = np.split(codes[order].astype(np.int64), np.cumsum(np.bincount(people))[:-1])
        return cls(np.asarray(labels, object), np.asarray(names, object), histories, features)

    def __len__(self) -> int:
        return len(self.histories)

    def counts(self) -> NDArray[np.int64]:
        """Return how often each item was taken, (V,)."""
        return np.bincount(np.concatenate([*self.histories, np.zeros(0, np.int64)]), minlength=len(self.items))

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return the log of some users; the catalogue stays whole."""
        return replace(self, users=self.users[rows], histories=[self.histories[row] for row in rows])

    def positions(self, labels: Iterable[Hashable]) -> NDArray[np.int64]:
        """Return the positions of items by their labels.

        Raises:
            ValueError: an item that the catalogue lacks.
        """
        wanted = list(labels)
        found = pd.Index(self.items, dtype=object).get_indexer(pd.Index(wanted, dtype=object))
        if (found < 0).any():
            raise ValueError(f"the catalogue has no item {wanted[int((found < 0).argmax())]!r}")
        return found.astype(np.int64)


def _in_order(table: pd.DataFrame, time: str) -> pd.DataFrame:
    """Return a table in the order of its column of times."""
    times = table[time]
    if pd.api.types.is_numeric_dtype(times):
        odd = np.isinf(times.to_numpy(np.float64))
    elif pd.api.types.is_datetime64_any_dtype(times):
        odd = np.zeros(len(times), bool)
    else:  # of text "10" would come before "9"
        odd = times.map(lambda value: isinstance(value, str)).to_numpy(bool)
    if odd.any():
        row = int(odd.argmax())
        shown = repr(times.iloc[row]) if isinstance(times.iloc[row], str) else times.iloc[row]
        raise ValueError(f"column {time!r} holds {shown} in row {row}; times must be finite numbers or dates")
    try:
        return table.sort_values(time, kind="stable")
    except TypeError as error:
        raise ValueError(f"column {time!r} holds times that have no order: {error}") from error


def _factorized(column: pd.Series) -> tuple[NDArray[np.intp], Any]:
    """Return the place of each value among the distinct ones, and these in their order."""
    try:
        return pd.factorize(column, sort=True)
    except TypeError as error:
        raise ValueError(f"column {column.name!r} holds values that are not single ones: {error}") from error


def _positions(features: pd.DataFrame, items: pd.Series) -> NDArray[np.int64]:
    if not features.index.is_unique:
        raise ValueError(
            f"features has item {features.index[features.index.duplicated()].tolist()[0]!r} more than once"
        )
    codes = features.index.get_indexer(pd.Index(items))
    if (codes < 0).any():
        raise ValueError(f"features lacks item {items[codes < 0].tolist()[0]!r}")
    return codes.astype(np.int64)


class Split(NamedTuple):
    """A log parted by time within each user.

    Attributes:
        train: every user's history without what is held back.
        histories: what each prediction may be made from; targets: (n,) the item that came.
    """

    train: Log
    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]


def leave_last_out(log: Log, last: int = 1) -> Split:
    """Hold back the last items of every user with at least two more; each is a target of its own.

    What is held back is in no training history, and all of a user's targets are predicted from the same history, that
    before the first of them. Users with fewer items are trained on whole.

    Args:
        log: of everything.
        last: items of a user to hold back (1).

    Raises:
        ValueError: `last` below 1, or no user with enough items.
    """
    if last < 1:
        raise ValueError(f"last is {last}; it must be 1 or more")
    train = [history[:-last] if len(history) >= last + 2 else history for history in log.histories]
    held = [i for i, history in enumerate(log.histories) if len(history) >= last + 2]
    if not held:
        raise ValueError(f"no user has {last + 2} items, {last} of them to hold back")
    histories = [train[i] for i in held for _ in range(last)]
    return Split(replace(log, histories=train), histories, np.concatenate([log.histories[i][-last:] for i in held]))


def leave_new_out(log: Log, new: NDArray[np.bool_]) -> Split:
    """Hold back items from everybody, as if they had come after the training.

    Of a user who took such items the last one with two others before it is the target; it is predicted from the others
    before it, and nothing later is trained on. All other users keep what they took of the other items, maybe nothing.

    Args:
        log: of everything.
        new: (V,) which items are held back.

    Raises:
        ValueError: `new` of another length, or no user with a target.
    """
    if np.shape(new) != (len(log.items),):
        raise ValueError(f"new has shape {np.shape(new)}; the catalogue has {len(log.items)} items")
    train, histories, targets = [], [], []
    for history in log.histories:
        held = new[history]
        possible = np.flatnonzero(held & (np.cumsum(~held) >= 2))
        if len(possible):
            end = int(possible[-1])
            histories.append(history[:end][~held[:end]])
            targets.append(history[end])
            train.append(histories[-1])
        else:
            train.append(history[~held])
    if not targets:
        raise ValueError("no user took a new item after two others")
    return Split(replace(log, histories=train), histories, np.array(targets, np.int64))


def thinned(log: Log, share: float, rng: np.random.Generator) -> Log:
    """Return a log with a share of its interactions, drawn evenly; users may keep nothing.

    Raises:
        ValueError: a share that is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it must be above 0 and at most 1")
    ends = np.cumsum([len(history) for history in log.histories])
    kept = np.zeros(ends[-1], bool)
    kept[rng.permutation(ends[-1])[: max(1, round(share * ends[-1]))]] = True
    parts = np.split(kept, ends[:-1])
    return replace(log, histories=[history[part] for history, part in zip(log.histories, parts, strict=True)])


def item_vectors(features: ArrayLike, count: int) -> Tensor:
    """Return features of a catalogue of `count` items as a tensor (count, D), float32.

    Raises:
        ValueError: they are of another shape, not finite, or no numbers.
    """
    try:
        found = torch.as_tensor(features if isinstance(features, Tensor) else np.asarray(features, np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"item_features must be numbers, ({count}, D): {error}") from error
    if found.ndim != 2 or len(found) != count or not found.isfinite().all():
        raise ValueError(f"item_features must be finite and ({count}, D); got {tuple(found.shape)}")
    return found.float()


def padded(histories: Histories, length: int, fill: int = 0) -> Tensor:
    """Return the last `length` items of histories as ids (B, L), padded on the right; L is at most `length`.

    Ids are positions + 1; with `fill` -1 they are positions, as `metrics.ranks` takes them.
    """
    kept = [torch.from_numpy(np.asarray(history[-length:], np.int64) + 1 + fill) for history in histories]
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=fill)


def windows(histories: Histories, length: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels (N, L), 0 where there is none: every item but a user's first is a label exactly once.

    A history longer than `length` + 1 is cut into parts from its end on, each of which starts with the item that the
    part before ends with.
    """
    parts = [
        history[max(0, end - length - 1) : end] for history in histories for end in range(len(history), 1, -length)
    ]
    if not parts:
        raise ValueError("no history has two items to learn from")
    return padded([part[:-1] for part in parts], length), padded([part[1:] for part in parts], length)


def last_of(states: Tensor, ids: Tensor) -> Tensor:
    """Return the state (B, d) at the last item of each row, of states (B, L, d) and ids padded on the right."""
    return states[torch.arange(len(ids), device=ids.device), (ids != 0).sum(dim=1) - 1]


class SequenceRecommender(BaseEstimator):
    """Recommends what comes next; subclasses define `_fit` and `_scores`.

    Attributes:
        items_: (V,) labels of the catalogue.
    """

    def fit(self, log: Log) -> Self:
        """Train on a log.

        Raises:
            ValueError: no log, one without interactions, or an option out of its range.
        """
        if not isinstance(log, Log):
            raise ValueError(f"fit takes a Log, which Log.from_table makes of a table; got {type(log).__name__}")
        if not len(log) or not sum(map(len, log.histories)):
            raise ValueError("the log holds no interactions")
        check_options(self)
        self.items_ = log.items
        try:
            self._fit(log)
        except BaseException:  # Ctrl-C too; half a training, or that of another catalogue, would answer as a whole
            del self.items_
            raise
        return self

    def _fit(self, log: Log) -> None:
        raise TypeError(f"{type(self).__name__} does not define _fit")

    def _scores(self, histories: Histories) -> Tensor:
        """Return scores (B, V) of histories that hold one item at least."""
        raise TypeError(f"{type(self).__name__} does not define _scores")

    def score(self, histories: Histories) -> Tensor:
        """Return a score for every item of the catalogue after each history, (B, V).

        Args:
            histories: B arrays of positions, the latest last (`Log.positions` makes them of labels).

        Raises:
            ValueError: an empty history, or one that holds other things than positions of the catalogue; scores that
                are not finite.
        """
        check_is_fitted(self, "items_")
        checked: list[NDArray[np.int64]] = []
        for row, history in enumerate(histories):
            given = np.asarray(history)
            if given.shape == (0,):
                raise ValueError(f"history {row} is empty; a recommendation needs one item at least")
            if given.ndim != 1 or given.dtype.kind not in "iu":
                raise ValueError(
                    f"history {row} must hold positions of items; got {given.dtype} of shape {given.shape}"
                )
            if given.min() < 0 or given.max() >= len(self.items_):
                raise ValueError(f"history {row} holds positions outside 0 to {len(self.items_) - 1}")
            checked.append(given.astype(np.int64))  # of small types, positions + 1 might overflow
        starts = range(0, len(checked), SCORED)
        parts = [self._scores(checked[start : start + SCORED]).float().cpu() for start in starts]
        found = torch.cat(parts) if parts else torch.zeros(0, len(self.items_))
        if not torch.isfinite(found).all():
            raise ValueError(f"{type(self).__name__} gives scores that are NaN or infinite")
        return found

    def recommend(self, histories: Histories, k: int = 10) -> NDArray[np.object_]:
        """Return the labels of the k best items after each history, (B, k), none of which is in it.

        Raises:
            ValueError: k below 1, or fewer than k items outside a history; and as `score`.
        """
        check_types(SequenceRecommender.recommend, {"k": k})
        scores = self.score(histories)
        fewest = len(self.items_) - max((len(set(history)) for history in histories), default=0)
        if not 1 <= k <= fewest:
            raise ValueError(f"k is {k}; it must be from 1 to {fewest}, the items that are in no history")
        for row, history in enumerate(histories):
            scores[row, torch.from_numpy(np.asarray(history, np.int64))] = -torch.inf
        return self.items_[scores.topk(k).indices.numpy()]

    def ranks(self, histories: Histories, targets: NDArray[np.int64], among: NDArray[np.bool_] | None = None) -> Tensor:
        """Return the rank (0 is first) of each target (B,) among all items but those of its history.

        Args:
            histories: as `score` takes them.
            targets: what came next.
            among: (V,) the items to rank, the targets among them; all if None.

        Raises:
            ValueError: not one target for each history, or one that is not among the items; and as `score`.
        """
        given, last = np.asarray(targets), len(self.items_) - 1
        if given.shape != (len(histories),):
            raise ValueError(f"targets have shape {given.shape}; {len(histories)} histories need one each")
        if len(given) and not 0 <= given.min() <= given.max() <= last:
            raise ValueError(f"targets hold positions {given.min()} to {given.max()}; the items are 0 to {last}")
        kept = np.ones(len(self.items_), bool) if among is None else among
        if not kept[targets].all():
            raise ValueError("a target is not among the items to rank")
        place = torch.from_numpy(np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1))  # the last stands for padding
        longest = max(map(len, histories), default=0)
        found = []
        for i in range(0, len(histories), SCORED):
            part = histories[i : i + SCORED]
            scores = self.score(part)[:, torch.from_numpy(kept)]
            found.append(ranks(scores, place[targets[i : i + SCORED]], place[padded(part, longest, fill=-1)]))
        return torch.cat(found) if found else torch.zeros(0)
