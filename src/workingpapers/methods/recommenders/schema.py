"""The columns of a table of impressions, and how their values become numbers.

A field is categorical (one value a row), multi (several, in no order), a sequence (several, the latest last; it may
share the vocabulary and the vectors of a categorical field, as a history of items does) or numerical. Ids within a
field are 0 for padding, 1 for values that the vocabulary does not have, 2 for missing ones, and from 3 on the values,
the most frequent first. Numbers are standardised; a missing number is the mean, 0.

One pass over batches builds a schema, so a file may be larger than memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.methods.recommenders.columns import as_numbers, check_columns, distinct_of, flattened

Kind = Literal["categorical", "multi", "sequence", "numerical"]
PADDING, UNKNOWN, MISSING, FIRST = 0, 1, 2, 3
MOST_COUNTED = 4_000_000  # distinct values of a column that are counted at a time; beyond, those seen once are dropped


@dataclass(frozen=True)
class Field:
    """A column.

    Attributes:
        name: of the column.
        kind: see the module.
        values: the vocabulary as text, in the order of ids from 3 on; empty for numbers and where `shares` is set.
        shares: the categorical field whose vocabulary a sequence uses.
        length: the most values that a row keeps: the first of a multi field, the last of a sequence.
        mean, scale: by which numbers are standardised.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    shares: str | None = None
    length: int = 1
    mean: float = 0.0
    scale: float = 1.0

    @property
    def size(self) -> int:
        """How many ids the field has."""
        return FIRST + len(self.values)


@dataclass(frozen=True)
class Rows:
    """Rows as a model takes them; N of them, ids local to their fields.

    Attributes:
        ids: (N, M) int32, a column for each categorical field.
        numbers: (N, Q) float32, a column for each numerical field.
        lists: by name of a multi or sequence field, (N, length) int32, padded with 0: a multi field's values first,
            a sequence's last.
    """

    ids: Tensor
    numbers: Tensor
    lists: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> Rows:
        return Rows(self.ids[index], self.numbers[index], {name: x[index] for name, x in self.lists.items()})

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows on a device."""
        lists = {name: x.to(device) for name, x in self.lists.items()}
        return Rows(self.ids.to(device), self.numbers.to(device), lists)

    @classmethod
    def cat(cls, parts: Iterable[Rows]) -> Rows:
        """Join batches of one schema."""
        held = list(parts)
        lists = {name: torch.cat([part.lists[name] for part in held]) for name in held[0].lists}
        return cls(torch.cat([part.ids for part in held]), torch.cat([part.numbers for part in held]), lists)


@dataclass(frozen=True)
class Schema:
    """The fields of a table, in the order of its columns."""

    fields: tuple[Field, ...]

    def of_kind(self, *kinds: Kind) -> list[Field]:
        """Return the fields of given kinds, in order."""
        return [field for field in self.fields if field.kind in kinds]

    def field(self, name: str) -> Field:
        """Return a field by name.

        Raises:
            ValueError: no field has that name.
        """
        for field in self.fields:
            if field.name == name:
                return field
        raise ValueError(f"no field {name!r}; the schema has {[field.name for field in self.fields]}")

    @classmethod
    def fit(
        cls,
        batches: Iterable[pd.DataFrame],
        *,
        kinds: Mapping[str, str] | None = None,
        min_count: int = 2,
        max_values: int = 1_000_000,
        length: int = 50,
    ) -> Self:
        """Build a schema in one pass.

        Args:
            batches: parts of one table.
            kinds: column to "categorical", "multi", "numerical", "sequence" or "sequence of COLUMN". Columns not named
                are numerical if they hold floats or decimals with digits after the point, multi if they hold lists, and
                categorical otherwise: integers are taken for identifiers.
            min_count: values seen less often are unknown; a column of distinct values thereby says nothing (2).
            max_values: the most frequent values of a field that get an id.
            length: the most values kept of a multi or sequence field; of a multi field fewer if no row has so many.

        Raises:
            ValueError: no rows; columns that repeat, are not named by text, or change between batches; kinds that do
                not fit; infinite numbers; dates; dicts.
        """
        counts: Counts | None = None
        for batch in batches:
            counts = counts or Counts(batch, kinds)
            counts.add(batch)
        if counts is None:
            raise ValueError("the table holds no rows")
        return cls(counts.fields(min_count, max_values, length))

    def encode(self, table: pd.DataFrame, first: int = 0) -> Rows:
        """Return the rows of a table that has the schema's columns; others are ignored.

        Args:
            table: or a part of one.
            first: the number of its first row in the whole table, for errors.

        Raises:
            ValueError: a column that is missing or repeated, or holds infinite numbers or what are no numbers.
        """
        check_columns(table)
        absent = [field.name for field in self.fields if field.name not in table.columns]
        if absent:
            raise ValueError(f"the table lacks columns {absent}; it has {list(table.columns)}")
        ids = [self._ids(f, table[f.name]) for f in self.of_kind("categorical")]
        numbers = [(as_numbers(table[f.name], first) - f.mean) / f.scale for f in self.of_kind("numerical")]
        shape = len(table), 0
        return Rows(
            torch.from_numpy(np.stack(ids, axis=1) if ids else np.zeros(shape, np.int32)),
            torch.from_numpy(np.nan_to_num(np.stack(numbers, axis=1)) if numbers else np.zeros(shape)).float(),
            {f.name: torch.from_numpy(self._lists(f, table[f.name])) for f in self.of_kind("multi", "sequence")},
        )

    @cached_property
    def _vocabularies(self) -> dict[str, pd.Index]:
        """By name of a field, its values; kept, since an index that is asked again answers faster."""
        return {field.name: pd.Index(field.values, dtype=object) for field in self.fields}

    def _ids(self, field: Field, column: pd.Series) -> NDArray[np.int32]:
        codes, distinct = distinct_of(field.name, column)
        found = self._vocabularies[field.shares or field.name].get_indexer(pd.Index(distinct, dtype=object))
        ids = np.append(np.where(found < 0, UNKNOWN, found + FIRST), MISSING)  # code -1 is a missing value
        return ids[codes].astype(np.int32)

    def _lists(self, field: Field, column: pd.Series) -> NDArray[np.int32]:
        lengths, values = flattened(column)
        ids = self._ids(field, values)
        row = np.repeat(np.arange(len(column)), lengths)
        place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        if field.kind == "sequence":
            place = place - np.repeat(lengths, lengths) + field.length
        kept = (place >= 0) & (place < field.length)
        padded = np.zeros((len(column), field.length), np.int32)
        padded[row[kept], place[kept]] = ids[kept]
        return padded

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain data."""
        return {"fields": [dataclasses.asdict(field) for field in self.fields]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the schema that `to_json` wrote.

        Raises:
            ValueError: not such data.
        """
        try:
            return cls(tuple(Field(**field | {"values": tuple(field["values"])}) for field in data["fields"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no schema: {error}") from error


class Counts:
    """What one pass finds out about the columns of a table; parts that were counted apart can be added together.

    Args:
        batch: some rows, by which columns are known; they are not counted.
        kinds: see `Schema.fit`.

    Raises:
        ValueError: see `Schema.fit`.
    """

    def __init__(self, batch: pd.DataFrame, kinds: Mapping[str, str] | None) -> None:
        check_columns(batch)
        if kinds is not None and not isinstance(kinds, Mapping):
            raise ValueError(f"kinds is {kinds!r}; it must be a dict of columns to their kinds")
        if not len(batch.columns):
            raise ValueError("the table has no columns to predict from")
        self._columns = _columns(batch, dict(kinds or {}))

    def add(self, batch: pd.DataFrame) -> None:
        """Count the rows of a batch.

        Raises:
            ValueError: other columns, or what does not fit their kinds.
        """
        check_columns(batch)
        if set(batch.columns) != set(self._columns):
            lost, new = sorted(set(self._columns) - set(batch.columns)), sorted(set(batch.columns) - set(self._columns))
            raise ValueError(f"the columns change between batches: a later one lacks {lost} and adds {new}")
        for name, column in self._columns.items():
            column.count(batch[name])

    def merge(self, other: Counts) -> None:
        """Add what was counted of other rows of the same table."""
        for name, column in self._columns.items():
            column.merge(other._columns[name])

    def fields(self, min_count: int, max_values: int, length: int) -> tuple[Field, ...]:
        """Return the fields; see `Schema.fit`.

        Raises:
            ValueError: no rows were counted.
        """
        if not any(column.rows for column in self._columns.values()):
            raise ValueError("the table holds no rows")
        sharing: dict[str, Counter[str]] = {}
        for column in self._columns.values():
            if column.shares is not None:
                sharing.setdefault(column.shares, Counter()).update(column.counts)
        return tuple(
            column.field(column.counts + sharing.get(name, Counter()), min_count, max_values, length)
            for name, column in self._columns.items()
        )


class _Column:
    """What one pass finds out about a column."""

    def __init__(self, name: str, kind: Kind, shares: str | None) -> None:
        self.name, self.kind, self.shares = name, kind, shares
        self.rows, self.longest, self.counts = 0, 1, Counter[str]()
        self.known, self.mean, self.squares = 0, 0.0, 0.0

    def count(self, column: pd.Series) -> None:
        first, self.rows = self.rows, self.rows + len(column)
        if self.kind == "numerical":
            numbers = as_numbers(column, first)
            numbers = numbers[~np.isnan(numbers)]
            if len(numbers):
                self._add(len(numbers), numbers.mean(), ((numbers - numbers.mean()) ** 2).sum())
            return
        values = column
        if self.kind in ("multi", "sequence"):
            lengths, values = flattened(column)
            self.longest = max(self.longest, int(lengths.max(initial=0)))
        codes, distinct = distinct_of(self.name, values)
        self._update(zip(distinct, np.bincount(codes[codes >= 0]).tolist(), strict=True))

    def merge(self, other: _Column) -> None:
        self.rows, self.longest = self.rows + other.rows, max(self.longest, other.longest)
        self._update(other.counts.items())
        if other.known:
            self._add(other.known, other.mean, other.squares)

    def _update(self, counts: Iterable[tuple[str, int]]) -> None:
        """Add counts, maybe several of one value: 3 and "3" are two to pandas, and one here."""
        for value, n in counts:
            self.counts[value] = self.counts.get(value, 0) + n
        if len(self.counts) > MOST_COUNTED:
            self.counts = Counter({value: n for value, n in self.counts.items() if n > 1})

    def _add(self, known: int, mean: float, squares: float) -> None:
        """Merge a part's mean and sum of squared deviations into the column's (Chan et al., 1979)."""
        total, step = self.known + known, mean - self.mean
        self.squares += squares + step**2 * self.known * known / total
        self.mean += step * known / total
        self.known = total

    def field(self, counts: Counter[str], min_count: int, max_values: int, length: int) -> Field:
        if self.kind == "numerical":
            deviation = math.sqrt(self.squares / self.known) if self.known else 0.0
            # Of equal numbers the mean may be off by rounding, which must not become the unit.
            rounding = self.known * abs(self.mean) * np.finfo(np.float64).eps
            return Field(self.name, self.kind, mean=float(self.mean), scale=deviation if deviation > rounding else 1.0)
        ranked = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v))
        kept = () if self.shares else tuple(ranked[:max_values])
        lengths = {"categorical": 1, "multi": min(length, self.longest)}
        return Field(self.name, self.kind, kept, self.shares, lengths.get(self.kind, length))


def _columns(batch: pd.DataFrame, kinds: dict[str, str]) -> dict[str, _Column]:
    """Return an empty count for each column, by the kinds given or else by what it holds."""
    unknown = sorted(map(str, set(kinds) - set(batch.columns)))
    if unknown:
        raise ValueError(f"kinds names columns {unknown} that the table lacks; it has {list(batch.columns)}")
    columns = {}
    for name in batch.columns:
        given = str(kinds.get(name) or _inferred(name, batch[name]))
        kind, _, shares = given.partition(" of ")
        if kind not in get_args(Kind) or (shares and kind != "sequence"):
            raise ValueError(f"column {name!r} has kind {given!r}; allowed: {', '.join(get_args(Kind))}, sequence of X")
        columns[name] = _Column(name, kind, shares or None)  # type: ignore[arg-type]
    for column in columns.values():
        if column.shares and (column.shares not in columns or columns[column.shares].kind != "categorical"):
            raise ValueError(
                f"column {column.name!r} is a sequence of {column.shares!r}, which is no categorical column"
            )
    return columns


def _has_fraction(value: Any) -> bool:
    """Return whether a decimal is written with digits after the point."""
    exponent = value.as_tuple().exponent if isinstance(value, Decimal) else 0
    return isinstance(exponent, int) and exponent < 0


def _inferred(name: str, column: pd.Series) -> Kind:
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
        raise ValueError(
            f"column {name!r} holds {column.dtype}; make numbers or categories of it (hour, weekday) first"
        )
    if pd.api.types.is_float_dtype(column.dtype):
        return "numerical"
    present = column.dropna()
    if len(present) and isinstance(present.iloc[0], (date, timedelta)):
        raise ValueError(f"column {name!r} holds dates; make numbers or categories of it (hour, weekday) first")
    if len(present) and isinstance(present.iloc[0], Decimal):
        return "numerical" if any(_has_fraction(value) for value in present) else "categorical"
    return "multi" if len(present) and isinstance(present.iloc[0], (list, tuple, np.ndarray)) else "categorical"
