"""Tables of any kind as pandas', and their columns as distinct values, numbers, lists of values, or labels."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import column_or_1d

INTEGERS = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
SEPARATOR = "|"  # between the values of a multi or sequence column that holds text


def from_arrow(table: Any) -> pd.DataFrame:
    """Return an Arrow table or batch in pandas; integers stay integers, where some are missing too.

    pandas' own choice for these are floats, which hold no integers beyond 2^53, and which pass for measured numbers.
    Of what pandas wrote into a table, only which columns are an index counts, and they are left out: it restores no
    types of Arrow's that are nested.
    """
    import pyarrow as pa

    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    index = [name for name in index if isinstance(name, str) and name in table.schema.names]
    table = table.drop_columns(index) if index else table

    nullable = {pa.type_for_alias(t.lower()): getattr(pd, f"{t}Dtype")() for t in INTEGERS}
    some = any(pa.types.is_integer(column.type) and column.null_count for column in table.columns)
    found: pd.DataFrame = table.to_pandas(types_mapper=nullable.get if some else None, ignore_metadata=True)
    return found


def check_columns(table: pd.DataFrame) -> None:
    """Refuse a table whose columns repeat or are not named by text.

    Raises:
        ValueError: names the columns.
    """
    repeated = sorted({str(name) for name in table.columns[table.columns.duplicated()]})
    if repeated:
        raise ValueError(f"columns {repeated} occur more than once")
    odd = [name for name in table.columns if not isinstance(name, str)]
    if odd:
        raise ValueError(f"columns must be named by text; got {odd[:5]}")


def distinct_of(name: str, column: pd.Series) -> tuple[NDArray[np.intp], list[str]]:
    """Return the place of each value among the distinct ones, -1 where it is missing, and these as text.

    Raises:
        ValueError: values that cannot be told apart, such as dicts; names the column.
    """
    try:
        codes, distinct = pd.factorize(column)
    except TypeError as error:
        raise ValueError(f"column {name!r} holds values that are not single ones: {error}") from error
    return codes, as_text(distinct)


def as_text(values: Any) -> list[str]:
    """Return distinct values as text; whole numbers are written as integers, so that 3 and 3.0 are one value."""
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, Decimal):  # 0.5 and 0.50 are one value too
        digits = f"{value:f}"
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return str(value)


def as_numbers(column: pd.Series, first: int = 0) -> NDArray[np.float64]:
    """Return a column as float64, missing values as NaN.

    Args:
        column: of a table, or of a part of one.
        first: the number of its first row in the whole table, for errors.

    Raises:
        ValueError: what are no numbers, infinite ones, or such as float32 cannot hold.
    """
    if column.dtype.kind in "mM":
        raise ValueError(f"column {column.name!r} is numerical, but holds {column.dtype}")
    try:
        numbers = pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise ValueError(f"column {column.name!r} is numerical, but holds other things: {error}") from error
    if np.isinf(numbers).any():
        row = first + int(np.isinf(numbers).argmax())
        raise ValueError(f"column {column.name!r} holds infinite numbers, in row {row} first")
    beyond = np.abs(numbers) > np.finfo(np.float32).max
    if beyond.any():
        row = int(beyond.argmax())
        said = f"holds {numbers[row]:g} in row {first + row}, which is beyond float32's range"
        raise ValueError(f"column {column.name!r} {said}")
    return numbers


def labels_of(y: ArrayLike) -> NDArray[Any]:
    """Return labels (N,) of any array or column: whole numbers and booleans stay so, in pandas' own types too.

    Raises:
        ValueError: more than one column, a missing label, or as `check_labels`.
    """
    if isinstance(getattr(y, "dtype", None), pd.api.extensions.ExtensionDtype):  # scikit-learn makes floats of some
        y = pd.Series(np.asarray(y, object)).infer_objects().to_numpy()
    labels = column_or_1d(y, warn=True)
    missing = pd.isna(labels)
    if missing.any():
        raise ValueError(f"y has no label in row {int(missing.argmax())}")
    try:
        check_labels(pd.unique(labels))
    except TypeError as error:
        raise ValueError(f"the labels are not single values: {error}") from error
    if labels.dtype == object and len(labels) and not isinstance(labels[0], str):  # no metric would take them
        raise ValueError(f"Unknown label type: objects such as {labels[0]!r}; give y.astype(int) or y.astype(bool)")
    return labels


def check_labels(labels: Iterable[Any]) -> None:
    """Refuse labels that have no order, or that a saved model could not hold, such as dates.

    Raises:
        ValueError: labels that are neither all text nor all numbers or booleans; names one.
    """
    held = list(labels)
    text = [label for label in held if isinstance(label, str)]
    others = [x for x in held if isinstance(x, np.timedelta64) or not isinstance(x, (str, Real, np.bool_))]
    if others or 0 < len(text) < len(held):
        odd = repr(others[0]) if others else f"{text[0]!r} among numbers"
        allowed = "labels must be all text, or all whole numbers or booleans"
        raise ValueError(f"Unknown label type: {allowed}; there is {odd}")


def flattened(column: pd.Series) -> tuple[NDArray[np.int64], pd.Series]:
    """Return how many values each row of a multi or sequence column has, and all of them one after the other.

    Text is split at "|"; anything else that is no list is one value. Missing rows have no values.
    """
    rows = [_several(cell) for cell in column]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return lengths, pd.Series([v for row in rows for v in row], name=column.name, dtype=object)


def _several(cell: Any) -> list[Any]:
    if isinstance(cell, str):
        return cell.split(SEPARATOR) if cell else []
    if isinstance(cell, (list, tuple, np.ndarray)):
        return list(cell)
    return [] if pd.isna(cell) else [cell]
