"""Train on Parquet files of 1, 3 and 10 million rows x 24 columns, streamed: rows per second and memory.

    python benchmarks/recommenders/streaming.py [--millions 1 3 10] [--threads 2]

The files are made up, written part by part into a temporary folder (0.5 GB, and 0.9 GB for the encoded rows) and
deleted: 16 columns of integers and four of text whose values follow a power law, three of numbers, and a label that
follows some of them. On each a factorisation machine is trained for one epoch, as `fit` does, in a process of its own,
whose peak of resident memory is told; it holds memory-mapped rows too, which the system would take back if others
needed it. The goal is below 4 GB, and as many rows per second at 10 million as at one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workingpapers.methods.recommenders.baselines import FM
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.streaming import Labels, labelled, parquet_batches, store
from workingpapers.methods.recommenders.training import Plan, train

COLUMNS, TEXTS, NUMBERS, LEAST, MOST = 20, 4, 3, 10, 50_000
PART = 250_000  # rows that are made and written at a time


def parts(rows: int) -> Iterator[pd.DataFrame]:
    """Yield a made-up table in parts."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(LEAST, MOST, COLUMNS).astype(int)
    tastes = [rng.normal(size=n, scale=0.4) for n in sizes]
    for start in range(0, rows, PART):
        n = min(PART, rows - start)
        ids = [np.minimum(np.exp(rng.random(n) * np.log(m + 1)) - 1, m - 1).astype(np.int32) for m in sizes]
        numbers = rng.normal(size=(NUMBERS, n)).astype(np.float32)
        logit = sum(taste[i] for taste, i in zip(tastes, ids, strict=True)) + numbers[0]
        table: dict[str, Any] = {f"c{i}": column for i, column in enumerate(ids)} | {
            f"x{i}": column for i, column in enumerate(numbers)
        }
        for i in range(COLUMNS - TEXTS, COLUMNS):
            table[f"c{i}"] = np.array([f"value-{j:06x}" for j in range(sizes[i])], dtype=object)[ids[i]]
        table["clicked"] = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int8)
        yield pd.DataFrame(table)


def write(path: Path, rows: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for part in parts(rows):
        table = pa.Table.from_pandas(part, preserve_index=False)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer
    writer.close()


def one(path: Path, rows: int, threads: int) -> None:
    """Train on a file, and print a line."""
    torch.set_num_threads(threads)
    marks = [time.perf_counter()]
    labels = Labels()
    schema = Schema.fit(labels.passing(labelled(parquet_batches(path), "clicked")))
    marks.append(time.perf_counter())
    kept, held = store(path, "clicked", path.parent / "encoded", schema, labels.classes(), validation=0.01, seed=0)
    marks.append(time.perf_counter())
    torch.manual_seed(0)
    model = ClickModel(FieldEmbedding(schema, 4), FM(), linear=True)
    history = train(model, *kept, Plan(learning_rate=0.01, batch_size=8192, max_epochs=1), valid=held)
    marks.append(time.perf_counter())
    speeds = [rows / (b - a) for a, b in pairwise(marks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    ids = sum(field.size for field in schema.fields)
    shown = " ".join(f"{speed:12,.0f}" for speed in (*speeds, rows / (marks[-1] - marks[0])))
    print(f"{rows / 1e6:8g} {shown} {peak:8.2f} {ids:9,} {history.auc[0]:7.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {given.threads} threads; rows per second of each stage, peak memory in GB")
    stages = " ".join(f"{stage:>12}" for stage in ("vocabulary", "encoding", "training", "all"))
    print(f"{'millions':>8} {stages} {'GB':>8} {'ids':>9} {'AUC':>7}")
    for millions in given.millions:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "clicks.parquet")
            write(path, round(millions * 1e6))
            process = multiprocessing.get_context("spawn").Process(
                target=one, args=(path, round(millions * 1e6), given.threads)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    main()
