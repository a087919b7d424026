"""The user's own table: CSV, TSV (either also .gz) or Parquet.

It has a column of labels, and features or one column of images beside it.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import re
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.checks import checked, encode, finite
from workingpapers.data.images import SUFFIXES, Encoded, digest, inspect
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError, check_quotes, check_separator, table_kind, unreadable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

PART = "part"
UNNAMED = re.compile(r"Unnamed: \d+")  # what pandas calls columns without a name


def from_table(path: Path, name: str, label: str) -> LabelledData:
    """Read a table.

    If one column holds images (paths relative to the table's folder, encoded bytes, or Hugging Face's structs with
    `bytes`), these are the examples; otherwise all other columns must be numbers and are the features. A column `part`
    with "train" and "test" is the split.

    Raises:
        UserError: no such label column, rows without a label, several image columns, columns that are neither numbers
            nor images, NaN or infinity, or unreadable images.
    """
    table = read_table(path, label)
    check_labels(str(path), table, label)
    pictures = [c for c in table.columns if c not in (label, PART) and _holds_images(table[c])]
    if len(pictures) > 1:
        raise UserError(f"{path} has several image columns ({', '.join(map(str, pictures))}); one is allowed.")
    if pictures:
        return _images(table, path, name, label, pictures[0])
    return _features(table, path, name, label)


def read_table(path: Path, label: str) -> pd.DataFrame:
    """Return the file's table; a CSV's labels stay text, so that a class may be called "NA" or "007".

    Raises:
        UserError: it cannot be read, has columns of one name, or rows of more values than the header has names.
    """
    try:
        if table_kind(path) == ".parquet":
            _check_names(path, _column_names(path))
            return _read_parquet(path)
        return _read_csv(path, label)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        if isinstance(error, UserError):
            raise
        raise unreadable(path, error, " as a table") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        whole = pd.read_parquet(path)
        return whole.set_axis([str(name) for name in whole.columns], axis=1)  # pandas keeps numbers as names
    except TypeError:  # pandas cannot read all types that it writes: lists of Arrow's are none to it
        from pyarrow import parquet

        table = parquet.read_table(path)
        index = [name for name in table.schema.pandas_metadata["index_columns"] if isinstance(name, str)]
        found: pd.DataFrame = table.drop_columns(index).to_pandas(ignore_metadata=True)
        return found


def _read_csv(path: Path, label: str) -> pd.DataFrame:
    import pandas as pd

    options: dict[str, Any] = {"sep": _separator(path), "index_col": False}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, **options)
    check_separator(path, header.iloc[0].astype(str).tolist(), _separator(path))
    _check_names(path, header.iloc[0].fillna("").tolist())  # as written: below, pandas renames those that repeat
    with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
        try:
            table = pd.read_csv(path, low_memory=False, **options)
        except pd.errors.ParserWarning as error:  # else it would drop the last columns
            raise UserError(f"{path}: rows hold more values than the header has names ({header.shape[1]}).") from error
    if options["sep"] == "\t":
        check_quotes(path, table)
    if label in table.columns:
        texts = pd.read_csv(path, usecols=[label], dtype=str, keep_default_na=False, **options)
        table[label] = texts[label].str.strip()
    return table


def _check_names(path: Path, names: list[str]) -> None:
    nameless = next((name for name in names if name == "" or UNNAMED.fullmatch(name)), None)
    if nameless is not None:
        raise UserError(
            f"{path} has a column {repr(nameless) if nameless else 'without a name'}. Row numbers, which `to_csv()` of "
            "pandas writes there, would count as values: leave them out (`index=False`), or name the column."
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has columns {repeated} more than once.")


def check_header(path: Path, name: str, label: str) -> None:
    """Refuse a file without a column of labels by its first line alone; one that cannot be read so passes.

    Raises:
        UserError: no such column, with the nearest ones.
    """
    try:
        names = _column_names(path)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error):  # the reader will say what is wrong
        return
    if names:
        check_separator(name, names, _separator(path))
        check_label(name, names, label)


def _separator(path: Path) -> str:
    return "\t" if table_kind(path) == ".tsv" else ","


def _column_names(path: Path) -> list[str]:
    if table_kind(path) == ".parquet":
        from pyarrow.parquet import read_schema

        return [str(column) for column in read_schema(path).names]
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=_separator(path))
        return next((row for row in rows if row), [])  # blank lines are no header


def check_label(name: str, columns: list[str], label: str) -> None:
    """Refuse a column of labels that a table does not have.

    Raises:
        UserError: with the nearest columns.
    """
    if label not in columns:
        alike = difflib.get_close_matches(label, columns, n=3, cutoff=0.4)
        shown = [repr(column) for column in (alike or columns)]
        if len(shown) > 10:  # labels stand first or last
            shown[5:-4] = ["..."]
        said = f"; {'nearest' if alike else 'it has'}: {', '.join(shown) or 'no columns'}"
        raise UserError(f"{name} has no column {label!r} for the labels{said}. The option label names it.")


def check_labels(name: str, table: pd.DataFrame, label: str) -> None:
    """Refuse a table without a label in each of its rows.

    Raises:
        UserError: no such column, with the nearest ones; no rows; or rows without a label.
    """
    columns = [str(column) for column in table.columns]
    check_label(name, columns, label)
    if columns.count(label) > 1:
        raise UserError(f"{name} has columns ['{label}'] more than once.")
    if table.empty:
        raise UserError(f"{name} holds no rows.")
    missing = int((table[label].isna() | (table[label].astype(str) == "")).sum())
    if missing:
        raise UserError(f"{name}: {missing} of {len(table)} rows have no label in column {label!r}.")


def classes(table: pd.DataFrame, name: str, label: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return a table's labels as indices (N,), and their names; see `encode`.

    Raises:
        UserError: labels that are quantities; names the table and the column.
    """
    try:
        return encode(table[label].tolist())
    except UserError as error:
        raise UserError(f"{name}, column {label!r}: {error}") from error


def _part(table: pd.DataFrame) -> NDArray[Any] | None:
    return table[PART].fillna("").to_numpy(dtype=str) if PART in table else None


def _holds_images(column: pd.Series[Any]) -> bool:
    """Tell by a column's first value whether it holds images or paths to them."""
    values = column.dropna()
    first = values.iloc[0] if len(values) else None
    if isinstance(first, dict):
        return "bytes" in first
    return isinstance(first, bytes) or (isinstance(first, str) and Path(first).suffix.lower() in SUFFIXES)


def _source(value: object, folder: Path) -> Path | bytes:
    """Return where a cell's image is; a cell without one gives empty bytes, which no decoder reads."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return folder / value
    return value if isinstance(value, bytes) else b""


def _images(table: pd.DataFrame, path: Path, name: str, label: str, column: str) -> LabelledData:
    sources = [_source(value, path.parent) for value in table[column]]
    seen, skipped = inspect(sources, [str(s) if isinstance(s, Path) else f"row {i}" for i, s in enumerate(sources)])
    kept = [i for i, image in enumerate(seen) if image is not None]
    table = table.iloc[kept]
    labels, class_names = classes(table, str(path), label)
    part = _part(table)
    return checked(
        LabelledData(
            name=name,
            fingerprint=digest(labels, *class_names, *(s[0] for s in seen if s), *([] if part is None else part)),
            labels=labels,
            class_names=class_names,
            images=Encoded([sources[i] for i in kept]),
            part=part,
            skipped=tuple(skipped),
        )
    )


def _features(table: pd.DataFrame, path: Path, name: str, label: str) -> LabelledData:
    import numpy as np
    import pandas as pd

    rest = table.drop(columns=[c for c in (label, PART) if c in table.columns])
    if not rest.shape[1]:
        raise UserError(f"{path} has no column beside the labels, {label!r}.")
    others = [str(c) for c in rest.columns if not pd.api.types.is_numeric_dtype(rest[c])]
    if others:
        shown = ", ".join(map(repr, others[:5])) + (", ..." if len(others) > 5 else "")
        values = rest[others[0]]
        odd = np.flatnonzero(values.notna() & pd.to_numeric(values.astype(str), errors="coerce").isna())
        first = f" The first holds {str(values.iloc[odd[0]])[:40]!r} in row {odd[0]}." if len(odd) else ""
        raise UserError(f"{path}: {len(others)} columns hold neither numbers nor images: {shown}.{first}")
    features = rest.to_numpy(dtype=np.float64, na_value=np.nan)
    labels, class_names = classes(table, str(path), label)
    return checked(
        LabelledData(
            name=name,
            fingerprint="",
            labels=labels,
            class_names=class_names,
            features=finite(features, [str(c) for c in rest.columns]),
            part=_part(table),
        )
    )
