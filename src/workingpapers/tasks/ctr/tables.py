"""The embedding tables of `ctr`: one network of 128 and 64 units on each of them, and what they take.

Width 20 divides into the halves and tenths at which tables are compared. `budgets` compares tables by a curve each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.ctr.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.methods.tables.common import Table
    from workingpapers.tasks.ctr.examples import Examples, Problem

DIM = 20
LOOKUPS, REPETITIONS = 16_384, 15
# A learning rate of the gates at which unused ones close within a search of 8 epochs of some dozens of steps.
GATES: dict[str, Any] = {"learning_rate": 1e-2, "search_epochs": 8}
SEARCH: dict[str, Any] = {"rounds": 10}  # of widths
HASHES = 64  # of DHE; the published 1,024 serve tables of millions of values and leave a small one no network
# A quarter of the published choices of MGQE, which serve tables of millions of values and take their time.
# Blocks of rows that are merged: the published 10,000 would be the whole table.
OWN_SIZE: dict[str, dict[str, Any]] = {
    "autodim": {},
    "mgqe": {"choices": 64, "rare_choices": 16},
    "dedup": {"block": 4},
    "pep": {},
}


def network(train: Examples, context: Context, table: str = "full", *, dim: int = DIM, **options: Any) -> Any:
    """Return the network on a table, tuned."""
    from workingpapers.methods.recommenders.baselines import TableMLPClassifier
    from workingpapers.tasks.ctr.examples import tuned

    return tuned(train, context, TableMLPClassifier, table=table, table_options=options, dim=dim)


def _unlogged(context: Context) -> Context:
    """Return the context for a fit that only finds something out for another."""
    return replace(context, curves={})


def table_of(model: Any) -> Table:
    """Return the table of a fitted network."""
    found: Table = model.model_.embedding.table
    return found


def table_metrics(problem: Problem, model: Any, seed: int) -> dict[str, float]:
    """Return AUC and log loss on the held-back rows, and bytes and lookup time of the table in service."""
    from workingpapers.tasks.ctr.examples import click_metrics

    found = click_metrics(problem, model)
    table = table_of(model).cpu().eval()
    return {
        "auc": found["auc"],
        "log-loss": found["log-loss"],
        "table-size": table.serving_bytes() / 1000,
        "lookup-time": lookup_time(table.served().eval(), seed),
    }


def lookup_time(table: Table, seed: int) -> float:
    """Return the milliseconds that a table takes to answer for random ids; the median of some repetitions."""
    import statistics
    import time

    import torch

    ids = torch.randint(table.num_ids, (LOOKUPS,), generator=torch.Generator().manual_seed(seed))
    seconds = []
    with torch.inference_mode():
        table(ids)
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            table(ids)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


@task.entry("tables")
def full_table(train: Examples, context: Context) -> Any:
    """A vector of 20 numbers for every value."""
    return network(train, context)


@task.entry("tables")
def narrow_table(train: Examples, context: Context) -> Any:
    """Vectors of half the width: what a method at half the memory has to beat."""
    return network(train, context, dim=DIM // 2)


@task.entry("tables")
def narrow_table_tenth(train: Examples, context: Context) -> Any:
    """Vectors of a tenth of the width."""
    return network(train, context, dim=DIM // 10)


@task.entry("tables")
def hashed_tables(train: Examples, context: Context) -> Any:
    """A hashed table for each field, half the memory."""
    return network(train, context, "hashed", ratio=0.5)


@task.entry("tables")
def hashed_tables_tenth(train: Examples, context: Context) -> Any:
    """A hashed table for each field, a tenth of the memory."""
    return network(train, context, "hashed", ratio=0.1)


@task.entry("tables", paper="unified-embedding")
def unified_embedding(train: Examples, context: Context) -> Any:
    """One hashed table for all fields, half the memory."""
    return network(train, context, "unified", ratio=0.5)


@task.entry("tables", paper="unified-embedding")
def unified_embedding_tenth(train: Examples, context: Context) -> Any:
    """One hashed table for all fields, a tenth of the memory."""
    return network(train, context, "unified", ratio=0.1)


@task.entry("tables", paper="optfs")
def optfs(train: Examples, context: Context) -> Any:
    """Values chosen by learned gates, then trained again from an early state."""
    return network(train, context, "optfs", **GATES)


@task.entry("tables", paper="optfs")
def optfs_random_restart(train: Examples, context: Context) -> Any:
    """Values chosen by learned gates, then trained from other random weights."""
    return network(train, context, "optfs", restart="random", **GATES)


@task.entry("tables")
def frequency_cut_off(train: Examples, context: Context) -> Any:
    """The most frequent values, as many as OptFS keeps."""
    learned: Any = table_of(optfs(train, _unlogged(context)))
    share = learned.keep_ratio
    return network(train, context, "cut-off", share=share)


@task.entry("tables", paper="optembed")
def optembed(train: Examples, context: Context) -> Any:
    """Rows by learned thresholds, widths by a search, then trained again."""
    return network(train, context, "optembed", **SEARCH)


@task.entry("tables")
def random_widths(train: Examples, context: Context) -> Any:
    """OptEmbed with random widths of as many parameters in place of its search."""
    from workingpapers.methods.tables import optembed as method

    found: Any = table_of(optembed(train, _unlogged(context)))
    kept, count = found.kept_rows().tolist(), found.kept_parameters()
    widths = method.random_widths(kept, found.dim, count, seed=context.seed)
    return network(train, context, "optembed", widths=widths)


@task.entry("tables", paper="embedding-compression")
def embedding_compression_int8(train: Examples, context: Context) -> Any:
    """Rows rounded to bytes: a quarter of the memory."""
    return network(train, context, "quantized", bits=8)


@task.entry("tables", paper="embedding-compression")
def embedding_compression_robe_tenth(train: Examples, context: Context) -> Any:
    """Rows that overlap in one array (ROBE), a tenth of the memory."""
    return network(train, context, "robe", ratio=0.1)


@task.entry("tables", paper="embedding-compression")
def embedding_compression_dhe(train: Examples, context: Context) -> Any:
    """Vectors computed from hashes by a network (DHE), a tenth of the memory."""
    return network(train, context, "dhe", ratio=0.1, hashes=HASHES)


def _register(table: str, about: str, **options: Any) -> None:
    def fit(train: Examples, context: Context) -> Any:
        return network(train, context, table, **options)

    fit.__doc__ = about
    task.entry("tables", paper="embedding-compression", name=f"embedding-compression-{table}")(fit)


for _table, _options in OWN_SIZE.items():
    _register(_table, f"The study's table {_table}, of the size that it finds or its codes take.", **_options)
