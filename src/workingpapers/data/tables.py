"""The user's own table: CSV or Parquet with a column of labels, and features or one column of images beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.checks import checked, encode, finite
from workingpapers.data.images import SUFFIXES, Encoded, digest, inspect
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PART = "part"


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
    if label not in table.columns:
        raise UserError(no_column(path, label, [str(c) for c in table.columns]))
    missing = int((table[label].isna() | (table[label].astype(str) == "")).sum())
    if missing:
        raise UserError(f"{path}: {missing} of {len(table)} rows have no label in column {label!r}.")
    if table.empty:
        raise UserError(f"{path} holds no rows.")
    pictures = [c for c in table.columns if c not in (label, PART) and _holds_images(table[c])]
    if len(pictures) > 1:
        raise UserError(f"{path} has several image columns ({', '.join(map(str, pictures))}); one is allowed.")
    if pictures:
        return _images(table, path, name, label, pictures[0])
    return _features(table, path, name, label)


def read_table(path: Path, label: str) -> pd.DataFrame:
    """Return the file's table; a CSV's labels stay text, so that a class may be called "NA" or "007".

    Raises:
        UserError: it cannot be read.
    """
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(path, low_memory=False)
        if label in table.columns:
            table[label] = pd.read_csv(path, usecols=[label], dtype=str, keep_default_na=False)[label].str.strip()
        return table
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise UserError(f"{path} cannot be read as a table: {error}") from error


def no_column(path: Path | str, label: str, columns: list[str]) -> str:
    """Return the message for a column of labels that isn't there, with the nearest columns."""
    import difflib

    nearest = difflib.get_close_matches(label, columns, n=3, cutoff=0.4) or columns[:8]
    return f"{path} has no column {label!r} for the labels; nearest: {', '.join(map(repr, nearest)) or 'no columns'}."


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
    labels, class_names = encode(table[label].tolist())
    part = table[PART].to_numpy(dtype=str) if PART in table else None
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
    others = [str(c) for c in rest.columns if not pd.api.types.is_numeric_dtype(rest[c])]
    if others:
        shown = ", ".join(map(repr, others[:5])) + (", ..." if len(others) > 5 else "")
        raise UserError(f"{path}: {len(others)} columns hold neither numbers nor images: {shown}.")
    features = rest.to_numpy(dtype=np.float64, na_value=np.nan)
    labels, class_names = encode(table[label].tolist())
    return checked(
        LabelledData(
            name=name,
            fingerprint="",
            labels=labels,
            class_names=class_names,
            features=finite(features, [str(c) for c in rest.columns]),
            part=table[PART].to_numpy(dtype=str) if PART in table else None,
        )
    )
