"""Training on Parquet files that are larger than memory: one pass for the vocabulary, one that encodes, then epochs.

The second pass writes ids and numbers into a folder, four bytes each, from where training reads them memory-mapped.
What the operating system holds of that file in memory it takes back when others need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workingpapers.errors import user_path
from workingpapers.methods.recommenders.columns import check_columns, check_labels, from_arrow
from workingpapers.methods.recommenders.schema import Rows, Schema
from workingpapers.progress import counted, watched

ROWS = 131_072  # that are read at a time


def parquet_batches(path: str | Path) -> Iterator[pd.DataFrame]:
    """Yield the table of a Parquet file, or of a folder of such files, in parts of some rows.

    Raises:
        ValueError: no such file, no rows, or a file that is cut off or damaged, by name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    place = user_path(path)
    files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise ValueError(f"{path} is neither a Parquet file nor a folder that holds some")
    done = total = 0
    try:
        for file in files:
            total += parquet.read_metadata(file).num_rows
        with counted(watched(), total, f"reading {place.name}", "rows") as report:
            for file in files:
                with parquet.ParquetFile(file) as held:
                    for batch in held.iter_batches(ROWS):
                        yield from_arrow(batch)
                        done += len(batch)
                        report(done)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read, it may be cut off or damaged: {error}") from error
    if not done:
        raise ValueError(f"{path} holds no rows")


def labelled(batches: Iterator[pd.DataFrame], label: str) -> Iterator[tuple[pd.DataFrame, NDArray[Any]]]:
    """Yield features and labels of parts of a table.

    Raises:
        ValueError: columns that repeat, no column of that name, or one that lacks values.
    """
    before = 0
    for batch in batches:
        check_columns(batch)
        if label not in batch:
            raise ValueError(f"there is no column {label!r} for the labels; there are {list(batch.columns)}")
        missing = batch[label].isna().to_numpy()
        if missing.any():
            raise ValueError(f"column {label!r} has no label in row {before + int(missing.argmax())}")
        before += len(batch)
        yield batch.drop(columns=label), batch[label].to_numpy()


class Labels:
    """Gathers the kinds of labels while parts of a table pass through."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def passing(self, parts: Iterator[tuple[pd.DataFrame, NDArray[Any]]]) -> Iterator[pd.DataFrame]:
        """Yield the features."""
        for table, labels in parts:
            try:
                self.seen.update(pd.unique(labels).tolist())
            except TypeError as error:
                raise ValueError(f"the labels are not single values: {error}") from error
            yield table

    def classes(self) -> NDArray[Any]:
        """Return the labels there are, sorted.

        Raises:
            ValueError: as `check_labels`.
        """
        check_labels(self.seen)
        return np.unique(np.array(list(self.seen)))


class StoredRows:
    """Rows that are written one part after the other, and read memory-mapped.

    Args:
        folder: where; made if it isn't there.
        schema: of the rows.
    """

    def __init__(self, folder: Path, schema: Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rows, lists = 0, schema.of_kind("multi", "sequence")
        self.widths = {"ids": len(schema.of_kind("categorical")), "numbers": len(schema.of_kind("numerical"))}
        self.widths |= {f"list-{i}": field.length for i, field in enumerate(lists)} | {"labels": 1}
        self.names = [field.name for field in lists]
        self.files = {name: (folder / name).open("wb") for name in self.widths}

    def write(self, rows: Rows, labels: NDArray[np.int64]) -> None:
        """Append rows and their labels (N,)."""
        arrays = [rows.ids.numpy(), rows.numbers.numpy(), *(rows.lists[name].numpy() for name in self.names)]
        for file, array in zip(self.files.values(), [*arrays, labels.astype(np.float32)], strict=True):
            file.write(np.ascontiguousarray(array).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Close the files; closing twice does nothing."""
        for file in self.files.values():
            file.close()

    def read(self) -> tuple[Rows, Tensor]:
        """Return the rows and their labels (N,), memory-mapped; nothing can be written after."""
        self.close()
        ids, numbers, *lists, labels = (self._mapped(name) for name in self.widths)
        return Rows(ids, numbers, dict(zip(self.names, lists, strict=True))), labels.squeeze(1)

    def _mapped(self, name: str) -> Tensor:
        kind = torch.float32 if name in ("numbers", "labels") else torch.int32
        size = self.rows * self.widths[name]
        if not size:
            return torch.zeros((self.rows, self.widths[name]), dtype=kind, device="cpu")
        file = self.files[name].name
        return torch.from_file(file, shared=False, size=size, dtype=kind, device="cpu").view(self.rows, -1)


def store(
    path: str | Path, label: str, folder: Path, schema: Schema, classes: NDArray[Any], validation: float, seed: int
) -> tuple[tuple[Rows, Tensor], tuple[Rows, Tensor]]:
    """Encode a Parquet file into a folder; return rows and labels to train on, and those drawn for validation.

    Args:
        path, label: the file and its column of labels.
        folder: where the encoded rows go.
        schema: of the columns; classes: the two labels.
        validation: chance of a row to be drawn.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    with closing(StoredRows(folder / "train", schema)) as kept, closing(StoredRows(folder / "valid", schema)) as held:
        for table, labels in labelled(parquet_batches(path), label):
            rows, targets = schema.encode(table), np.searchsorted(classes, labels)
            drawn = rng.random(len(rows)) < validation
            for part, chosen in ((kept, ~drawn), (held, drawn)):
                part.write(rows[torch.from_numpy(np.flatnonzero(chosen))], targets[chosen])
        return kept.read(), held.read()
