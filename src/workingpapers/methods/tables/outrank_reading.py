"""Tables in files, a batch of rows at a time, and how many distinct values a column has."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workingpapers.errors import (
    TABLES,
    UserError,
    check_quotes,
    check_separator,
    existing_file,
    table_kind,
    unknown_name,
    unreadable,
)
from workingpapers.methods.recommenders.columns import from_arrow
from workingpapers.progress import counted, watched

MB = 1_000_000


def batches(path: Path, label: str, size: int) -> Generator[pd.DataFrame]:
    """Yield a file's rows, `size` at a time, and show how far it is; columns of text files are text.

    Raises:
        UserError: a file that is missing, cut off or of another format, columns that repeat, rows of more values than
            the header has names, or no such label.
    """
    file = existing_file(path)
    kind = table_kind(file)
    if not kind:
        raise UserError(f"{path} is no {', '.join(TABLES[:-1])} or {TABLES[-1]} file.")
    try:
        yield from _parquet(file, label, size) if kind == ".parquet" else _text(file, label, size, kind)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's and pandas' errors are ValueErrors
        if isinstance(error, UserError):
            raise
        raise unreadable(file, error) from error


def _parquet(path: Path, label: str, size: int) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet

    done = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_header(path, file.schema_arrow.names, label)
        with counted(watched(), file.metadata.num_rows, f"reading {path.name}", "rows") as report:
            for batch in file.iter_batches(batch_size=size):
                if len(batch):
                    yield from_arrow(batch)
                done += len(batch)
                report(done)


def _text(path: Path, label: str, size: int, kind: str) -> Iterator[pd.DataFrame]:
    options: dict[str, Any] = {"sep": "\t" if kind == ".tsv" else ",", "dtype": str, "index_col": False}
    header = pd.read_csv(path, header=None, nrows=1, **options)
    check_separator(path, header.iloc[0].astype(str).tolist(), options["sep"])
    _check_header(path, header.iloc[0].astype(str).tolist(), label)
    options["compression"] = "gzip" if path.suffix.lower() == ".gz" else None
    done, total = 0, path.stat().st_size // MB
    with (
        path.open("rb") as file,
        pd.read_csv(file, chunksize=size, **options) as reader,
        counted(watched(), total, f"reading {path.name}", "MB") as report,
    ):
        while True:
            with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
                try:
                    batch = next(reader, None)
                except pd.errors.ParserWarning as error:  # else it would drop the last columns
                    more = f"rows hold more values than the header has names ({header.shape[1]})"
                    raise UserError(f"{path}: {more}.") from error
            if batch is None:
                return
            if kind == ".tsv":
                check_quotes(path, batch, done)
            if len(batch):
                yield batch
            done += len(batch)
            report(file.tell() // MB)


def _check_header(path: Path, names: list[str], label: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path} has columns {repeated} more than once.")
    if label not in names:
        raise unknown_name("column", label, names, "The option label names the one to be told about.", of=path.name)
    if len(names) < 2:
        raise UserError(f"{path} has no column beside the label {label!r}.")


class Distinct:
    """Counts distinct values by the smallest of their hashes (Bar-Yossef et al., 2002)."""

    KEPT = 1024

    def __init__(self) -> None:
        self.smallest = np.zeros(0, np.uint64)

    def add(self, column: pd.Series) -> None:
        """Count the values of a batch."""
        values = column.dropna().unique()
        hashed = pd.util.hash_array(np.asarray(values, dtype=object).astype(str).astype(object))
        self.smallest = np.union1d(self.smallest, hashed)[: self.KEPT]

    def count(self) -> int:
        """Return how many different values there were: exact below 1,024, to about 3 % beyond."""
        if len(self.smallest) < self.KEPT:
            return len(self.smallest)
        return round((self.KEPT - 1) / (float(self.smallest[-1]) / 2.0**64))
