"""The page's database: opening it, and bringing its schema up to date."""

from __future__ import annotations

import functools
import itertools
import json
import select as descriptors
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Float,
    Select,
    Table,
    case,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, NoSuchModuleError, SQLAlchemyError

from workingpapers.errors import UserError, first_line, has_no_room
from workingpapers.site.schema import metadata

_WAIT_MS = 30_000  # that a writer waits for its turn
_POOL = 10  # connections that are kept: a search takes two, and what is beyond is opened anew each time
_MOST_PARAMETERS = 32_766  # of a statement; SQLite's limit, PostgreSQL's is twice that


def _index_papers(connection: Connection) -> None:
    """How many papers came from where, and which have changed, is known without reading them all.

    The years alone are in the index for the order by date, too.
    """
    connection.execute(text("DROP INDEX IF EXISTS ix_papers_year"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS ix_papers_source ON papers (source)"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS papers_changed ON papers (updated, id)"))


def _index_outbox(connection: Connection) -> None:
    """Which mail is next, and what is old or new, is known without reading any mail."""
    connection.execute(text("DROP INDEX IF EXISTS ix_outbox_state"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS outbox_due ON outbox (state, next_try, kind)"))
    connection.execute(text("CREATE INDEX IF NOT EXISTS outbox_created ON outbox (created)"))


def _index_code(connection: Connection) -> None:
    """The latest papers with code, and how many there are, are known without reading all (see `search.filters`)."""
    connection.execute(
        text("CREATE INDEX IF NOT EXISTS papers_with_code ON papers (year, published, id) WHERE code <> ''")
    )


# One function per version, from an empty database on; what has been released is never changed, only added to. The first
# makes the schema as it is today, so that a later one may find its work done.
MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    metadata.create_all,
    _index_papers,
    _index_outbox,
    _index_code,
)


def open_database(url: str) -> Engine:
    """Return an engine on the page's database, made or brought up to date where needed.

    SQLite runs with write-ahead logging, foreign keys, and every commit on the disk before it is acknowledged. A
    transaction there begins when it first reads; one that will write should begin with `BEGIN IMMEDIATE`, as `writing`
    does.

    Args:
        url: SQLAlchemy URL; SQLite and PostgreSQL are served.

    Raises:
        UserError: the database cannot be opened, is something else, or was made by a newer version.
    """
    shown = url.rpartition("@")[2]
    try:
        place = make_url(url)
        if place.get_backend_name() not in ("sqlite", "postgresql"):
            raise UserError(f"The page keeps its data in SQLite or PostgreSQL; got {shown}.")
        if place.get_backend_name() == "sqlite" and place.database and place.database != ":memory:":
            _make_private(Path(place.database))
        engine = sqlalchemy.create_engine(
            place,
            pool_size=_POOL,
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            event.listen(engine, "checkout", _drop_if_closed)
        _migrate(engine, shown)
    except (SQLAlchemyError, ArgumentError, NoSuchModuleError, ModuleNotFoundError, OSError) as error:
        reason = first_line(getattr(error, "orig", None) or error)  # the driver's own words
        if shown.startswith("sqlite:///") and has_no_room(Path(shown.removeprefix("sqlite:///")).parent):
            reason = "its disk is full"
        raise UserError(f"The page's database {shown} cannot be opened: {reason}") from error
    return engine


def _make_private(file: Path) -> None:
    """Make a file that is not there, for its owner alone: the page's holds addresses, and links that sign people in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.touch(mode=0o600)


def writing(engine: Engine) -> Any:
    """Return a transaction that will write: `with writing(engine) as connection`. It is durable when the block ends.

    On SQLite it takes the writer's place at once, so that it cannot fail half-way because another writer came first.
    """
    return engine.execution_options(writes=True).begin()


def reading(engine: Engine) -> Connection:
    """Return a connection for reading what is asked for often: `with reading(engine) as connection`.

    On PostgreSQL no transaction is begun and ended, each of which the server would be asked for: every statement there
    has a view of its own anyway.
    """
    connection = engine.connect()
    return connection if engine.dialect.name == "sqlite" else connection.execution_options(isolation_level="AUTOCOMMIT")


def rows(
    connection: Connection, query: Select[Any], values: Mapping[str, Any] | None = None
) -> Sequence[Sequence[Any]]:
    """Return all rows of a query, for those that have many.

    SQLite's driver gives up the interpreter's lock at each row and waits for it again, for milliseconds while another
    thread computes; so it is asked for a single row that holds all of them, as JSON.
    """
    if connection.dialect.name != "sqlite":
        return list(connection.execute(query, values or {}).all())
    whole = connection.execute(_as_json(query), values or {}).scalar_one()
    return msgspec.json.decode(whole, type=list[list[Any]])


@functools.lru_cache(maxsize=64)  # building a statement takes longer than running it; modules keep theirs
def _as_json(query: Select[Any]) -> Select[str]:
    return select(func.json_group_array(func.json_array(*map(_in_json, query.subquery().c))))


def among(connection: Connection, column: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that a column is one of many values.

    SQLite gets them as one JSON text: to write thousands of parameters into a statement takes longer than to look them
    up.
    """
    if connection.dialect.name != "sqlite":
        return column.in_(list(values))
    return column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value").c.value))


def inserting(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insertion that can be told what to do about rows that are there (ON CONFLICT)."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def insert_rows(
    connection: Connection, columns: Sequence[Column[Any]], values: Sequence[Sequence[Any]], then: str = ""
) -> Sequence[Sequence[Any]]:
    """Insert many rows and return what the statement does.

    Thousands of rows go straight to the driver: SQLAlchemy takes a quarter as long to prepare them as SQLite to put
    them in.

    Args:
        connection: that may write.
        columns: of one table.
        values: rows, in the order of `columns`.
        then: how the statement ends: ON CONFLICT, RETURNING.
    """
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    row = f"({', '.join([mark] * len(columns))})"
    start = f"INSERT INTO {columns[0].table.name} ({', '.join(it.name for it in columns)}) VALUES "
    in_json = [place for place, column in enumerate(columns) if isinstance(column.type, JSON)]
    at_once = _MOST_PARAMETERS // len(columns)
    found: list[Sequence[Any]] = []
    for first in range(0, len(values), at_once):
        given = [list(it) for it in values[first : first + at_once]]
        for one, place in itertools.product(given, in_json):
            one[place] = msgspec.json.encode(one[place]).decode()
        statement = f"{start}{', '.join([row] * len(given))} {then}"
        result = connection.exec_driver_sql(statement, tuple(itertools.chain.from_iterable(given)))
        found += result.all() if result.returns_rows else ()
    return found


def _in_json(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column as an element of a JSON array, a float with all its digits: SQLite would write fifteen."""
    if isinstance(column.type, Float):
        return case((column.is_not(None), func.json(func.printf("%!.17g", column))))
    return func.json(column) if isinstance(column.type, JSON) else column


def _drop_if_closed(connection: Any, *_: object) -> None:
    """Have a connection replaced that PostgreSQL has closed, as when it restarts.

    It then has something to say while nothing was asked; to be told so by a question would cost one for each use.
    """
    waiting = descriptors.poll()
    waiting.register(connection.fileno(), descriptors.POLLIN)
    if waiting.poll(0):
        raise DisconnectionError("PostgreSQL has closed the connection")


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, not where the driver guesses
    for pragma in (f"busy_timeout = {_WAIT_MS}", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine, shown: str) -> None:
    """Apply the migrations that a database has not seen.

    Raises:
        UserError: it was made by a newer version, or is not the page's.
    """
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(20230712)"))  # one process migrates, others wait
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        if "site_schema" not in tables:
            if "papers" in tables or ("workingpapers_runs" in tables and engine.dialect.name == "sqlite"):
                raise UserError(f"{shown} is a database, but not the page's. Name another with --database.")
            connection.execute(text("CREATE TABLE site_schema (version INTEGER NOT NULL)"))
            connection.execute(text("INSERT INTO site_schema (version) VALUES (0)"))
        version = connection.execute(text("SELECT version FROM site_schema")).scalar_one()
        if version > len(MIGRATIONS):
            raise UserError(
                f"The page's database {shown} has schema {version}, made by a newer version of workingpapers; this one "
                f"knows schemas up to {len(MIGRATIONS)}. It was left as it is."
            )
        for migrate in MIGRATIONS[version:]:
            migrate(connection)
        connection.execute(text("UPDATE site_schema SET version = :version"), {"version": len(MIGRATIONS)})
