"""Bringing papers in: from every source batch by batch, each written in one transaction with the place to go on from.

So a sync that is killed loses at most the batch it was writing, and the same command goes on after the last one that is
there. Running it again changes nothing that has not changed at the source.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from workingpapers.errors import UserError, unknown_name
from workingpapers.site.database import inserting, writing
from workingpapers.site.records import add, count
from workingpapers.site.schema import syncs
from workingpapers.site.search.fulltext import ensure
from workingpapers.site.sources.arxiv import CATEGORIES, Arxiv
from workingpapers.site.sources.batch import Batch, Cursor, Source
from workingpapers.site.sources.files import ENDINGS, File
from workingpapers.site.sources.github import GitHub
from workingpapers.site.sources.http import Client
from workingpapers.site.sources.huggingface import HuggingFace
from workingpapers.site.sources.semantic_scholar import SemanticScholar
from workingpapers.site.sources.submitted import Submitted

SOURCES = ("arxiv", "huggingface", "citations", "stars", "submitted")

_CACHE_KIB = 64 * 1024
_CHECKPOINT = 20_000  # pages of the write-ahead log, 80 MB; at the usual 1,000 each batch would be written twice
_KEPT_PROBLEMS = 20  # of each source; the rest is counted


@dataclass
class Outcome:
    """What one source brought, while it does and afterwards.

    Attributes:
        source: its name.
        new, updated, unchanged: papers; updated also counts papers with another count of citations or stars.
        malformed: records left out; problems: what was wrong with the first of them.
        done, total: as in `Batch`.
        error: why the source stopped early; empty if it did not.
    """

    source: str
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    malformed: int = 0
    problems: list[str] = field(default_factory=list)
    done: int = 0
    total: int | None = None
    error: str = ""


def sync(
    engine: Engine,
    sources: Sequence[Source],
    *,
    listen: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Bring in what sources have; one that fails does not keep the others from coming.

    Args:
        engine: the page's database.
        sources: in this order.
        listen: told when a source begins, and after every batch.
    """
    ensure(engine)
    return [_sync_one(engine, source, listen) for source in sources]


def _sync_one(engine: Engine, source: Source, listen: Callable[[Outcome], None]) -> Outcome:
    outcome = Outcome(source.name)
    with engine.connect() as connection:
        cursor = connection.execute(select(syncs.c.cursor).where(syncs.c.source == source.name)).scalar()
    batches = source.batches(cursor)
    listen(outcome)
    coming = _ahead(batches)
    while True:
        try:
            batch = coming.result()
        except UserError as error:
            outcome.error = str(error)
            return outcome
        if batch is None:
            return outcome
        coming = _ahead(batches)  # is read while this one is written
        with _uncollected(), writing(engine) as connection:
            if engine.dialect.name == "sqlite":  # room for the indexes, into which new papers go everywhere
                connection.exec_driver_sql(f"PRAGMA cache_size = -{_CACHE_KIB}")
                connection.exec_driver_sql(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT}")
            _take_in(connection, batch, outcome, time.time())
            _keep(connection, source.name, batch.cursor, time.time())
        listen(outcome)


def _ahead(batches: Iterator[Batch]) -> Future[Batch | None]:
    """Begin to read the next batch, None after the last, on a thread that nothing waits for once Ctrl-C was pressed."""
    coming: Future[Batch | None] = Future()

    def read() -> None:
        try:
            coming.set_result(next(batches, None))
        except BaseException as error:  # raised where the batch is asked for
            coming.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return coming


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the cyclic garbage collector from looking again and again through the many objects of a batch.

    None of them is garbage before the batch is written, and none is part of a cycle; it took a seventh of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _take_in(connection: Connection, batch: Batch, outcome: Outcome, now: float) -> None:
    added = add(connection, batch.records, now)
    outcome.new += added.new
    outcome.updated += added.updated
    outcome.unchanged += added.unchanged
    for kind, totals in batch.counts.items():
        changed = count(connection, kind, totals, now)
        outcome.updated += changed
        outcome.unchanged += len(totals) - changed
    outcome.malformed += len(batch.problems)
    outcome.problems += batch.problems[: _KEPT_PROBLEMS - len(outcome.problems)]
    outcome.done, outcome.total = batch.done, batch.total


def _keep(connection: Connection, source: str, cursor: Cursor, now: float) -> None:
    values = {"cursor": cursor, "updated": now}
    row = inserting(connection, syncs).values(source=source, **values)
    connection.execute(row.on_conflict_do_update(index_elements=["source"], set_=values))


def named(words: Sequence[str], engine: Engine, client: Client, since: str | None, today: date) -> list[Source]:
    """Return the sources that words on the command line stand for.

    Args:
        words: "arxiv" (its usual categories), "arxiv:cs.LG,cs.CL", "huggingface", "citations", "stars",
            "submitted", or a file.
        engine: the page's database.
        client: asks the services.
        since: first day for the sources that go by days, ISO; None goes on where the last sync ended.
        today: their last day.

    Raises:
        UserError: a word stands for nothing, or `since` is no day up to today.
    """
    if since is not None:
        try:
            if not date(1991, 1, 1) <= date.fromisoformat(since) <= today:
                raise ValueError
        except ValueError:
            raise UserError(f"--since must be a day from 1991-01-01 to {today}; got {since!r}.") from None
    return [source for word in words for source in _named(word, engine, client, since, today)]


def _named(word: str, engine: Engine, client: Client, since: str | None, today: date) -> Iterator[Source]:
    kind, colon, rest = word.partition(":")
    if word.endswith(ENDINGS) or "/" in word:
        yield File(Path(word))
    elif kind == "arxiv":
        for category in rest.split(",") if colon else CATEGORIES:
            yield Arxiv(category.strip(), client, since, today)
    elif word == "huggingface":
        yield HuggingFace(client, since, today)
    elif word == "citations":
        yield SemanticScholar(engine, client)
    elif word == "stars":
        yield GitHub(engine, client)
    elif word == "submitted":
        yield Submitted(engine, client)
    else:
        raise unknown_name("source", word, SOURCES, f"A file ends in {' or '.join(ENDINGS)}.")
