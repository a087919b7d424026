"""Quality against bytes in `ctr`: one network on tables that are given a half, three tenths and a tenth of the memory.

An entry is tuned anew at each budget. Budgets are what a table serves from, with indices, codes and masks, as a share
of a full table of width 20; one out of a method's reach is left out of its curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.ctr.settings import BUDGETS, task
from workingpapers.tasks.ctr.tables import DIM, HASHES, network, table_of
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from workingpapers.tasks.ctr.examples import Clicker, Examples, Problem

# The study's tables that keep to a budget. The others are in `tables`, with MGQE, whose codebooks take their time.
STUDIED = "hash qr robe dhe adaptive tt mixed-dim dpq deeplight autosrh quantized alpt".split()


@dataclass(frozen=True)
class Curve:
    """What an entry returns: a model for each budget, in percent, that its table can keep to."""

    models: Mapping[int, Clicker]


def curve_metrics(problem: Problem, curve: Curve, context: Context) -> dict[str, float]:
    """Return the AUC at each budget.

    Raises:
        ValueError: a table that does not keep to its budget.
    """
    from workingpapers.tasks.ctr.examples import click_metrics

    found = {}
    for percent, model in sorted(curve.models.items()):
        table = table_of(model)
        allowed = percent * 4 * table.num_ids * DIM // 100
        if table.serving_bytes() > allowed:
            raise ValueError(f"the table takes {table.serving_bytes()} bytes; {percent} % of a full one are {allowed}")
        found[f"auc-{percent}"] = click_metrics(problem, model)["auc"]
        context.log("AUC by memory (% of the full table)", percent, found[f"auc-{percent}"])
    return found


def sizes_of(train: Examples) -> list[int]:
    """Return how many ids each field of the network's table has."""
    from workingpapers.methods.recommenders.schema import Schema

    schema = Schema.fit([train.table], kinds=train.kinds)
    return [f.size for f in schema.of_kind("categorical", "multi", "sequence") if not f.shares]


def _curve(train: Examples, context: Context, table: str, options: Callable[[float], dict[str, Any]]) -> Curve:
    """Return the network, tuned, at each budget for which a table has options."""
    models = {}
    for percent in BUDGETS:
        try:
            chosen = options(percent / 100)
            # A table may only tell when it is made that a budget is out of its reach.
            models[percent] = network(train, context, table, **chosen)
        except ValueError as error:
            if "cannot keep to ratio" not in str(error):
                raise
    return Curve(models)


@task.entry("table-budgets")
def narrower_tables(train: Examples, context: Context) -> Curve:
    """Vectors of fewer numbers: what every other way has to beat."""
    return _curve(train, context, "full", lambda ratio: {"dim": int(ratio * DIM)})


@task.entry("table-budgets")
def most_frequent_values(train: Examples, context: Context) -> Curve:
    """The most frequent values alone, and an index of them."""
    sizes = sizes_of(train)
    index = 4 * sum(sizes) + 8 * len(sizes)

    def options(ratio: float) -> dict[str, Any]:
        return {"share": max(0.0, int(ratio * 4 * sum(sizes) * DIM - index) // (4 * DIM) / sum(sizes))}

    return _curve(train, context, "cut-off", options)


@task.entry("table-budgets")
def hashed_by_field(train: Examples, context: Context) -> Curve:
    """A hashed table for each field."""
    return _curve(train, context, "hashed", lambda ratio: {"ratio": ratio - _index(train)})


@task.entry("table-budgets", paper="unified-embedding")
def unified_by_budget(train: Examples, context: Context) -> Curve:
    """One hashed table for all fields."""
    return _curve(train, context, "unified", lambda ratio: {"ratio": ratio - _index(train)})


def _index(train: Examples) -> float:
    """Return the share of a full table that four numbers of 8 bytes for each field and a row, for rounding, take."""
    sizes = sizes_of(train)
    return (4 * 8 * len(sizes) + 4 * DIM) / (4 * sum(sizes) * DIM)


def _register(table: str) -> None:
    def fit(train: Examples, context: Context) -> Curve:
        from workingpapers.methods.tables.compressed import options_at

        sizes, own = sizes_of(train), {"hashes": HASHES} if table == "dhe" else {}
        return _curve(train, context, table, lambda ratio: options_at(table, sizes, DIM, ratio) | own)

    fit.__doc__ = f"The study's table {table}."
    task.entry("table-budgets", paper="embedding-compression", name=f"compression-{table}")(fit)


for _table in STUDIED:
    _register(_table)
