"""A schema of a Parquet file by Ray Data: blocks are counted where they lie, and the counts merged here."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workingpapers.methods.recommenders.schema import Counts, Schema

BATCH = 65_536  # rows that are counted at a time


def schema_of_parquet(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    min_count: int = 2,
    max_values: int = 1_000_000,
    length: int = 50,
) -> Schema:
    """Return the schema that `Schema.fit` builds of the batches of a file, by the cluster that Ray is connected to.

    Means and deviations of numbers may differ in their last digits, as they do with other batches; a column of more
    values than are counted at a time may lose other rare ones.

    Args:
        path: a file, or a folder of files, that every machine of the cluster can read.
        columns: to be used; None takes all.
        kinds, min_count, max_values, length: see `Schema.fit`.

    Raises:
        ValueError: see `Schema.fit`.
    """
    import ray.data

    data = ray.data.read_parquet(str(path))
    if columns is not None:
        data = data.select_columns(list(columns))
    total = Counts(data.limit(BATCH).to_pandas(), kinds)

    def count(batch: pd.DataFrame) -> dict[str, list[bytes]]:
        counts = copy.deepcopy(total)
        try:
            counts.add(batch)
        except ValueError as error:  # Ray would wrap it, and repeat the block
            return {"counts": [pickle.dumps(error)]}
        return {"counts": [pickle.dumps(counts)]}

    rows: Any = data.map_batches(count, batch_format="pandas", batch_size=BATCH).iter_rows()
    for row in rows:
        found = pickle.loads(row["counts"])
        if isinstance(found, ValueError):
            raise found
        total.merge(found)
    return Schema(total.fields(min_count, max_values, length))
