"""The run store: every finished run is one durable row.

SQLite by default, spoken to through the standard library so that reading it costs a command no start-up time; any other
SQLAlchemy URL (PostgreSQL is the one tested) through SQLAlchemy. The SQL is the same text for both.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from workingpapers.errors import UserError, first_line, has_no_room

SCHEMA_VERSION = 1
Budget = Literal["quick", "full"]

_FIELDS = {
    "key": "TEXT PRIMARY KEY",
    "task": "TEXT NOT NULL",
    "setting": "TEXT NOT NULL",
    "data": "TEXT NOT NULL",
    "data_fingerprint": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "model_fingerprint": "TEXT NOT NULL",
    "budget": "TEXT NOT NULL",
    "entry": "TEXT NOT NULL",
    "paper": "TEXT",
    "seed": "INTEGER NOT NULL",
    "status": "TEXT NOT NULL",
    "error": "TEXT NOT NULL",
    "metrics": "TEXT NOT NULL",
    "measured": "TEXT NOT NULL",
    "curves": "TEXT NOT NULL",
    "settings": "TEXT NOT NULL",
    "versions": "TEXT NOT NULL",
    "hardware": "TEXT NOT NULL",
    "finished": "TEXT NOT NULL",
}
_SCHEMA: list[tuple[str, dict[str, Any]]] = [
    (f"CREATE TABLE IF NOT EXISTS workingpapers_runs ({', '.join(f'{n} {kind}' for n, kind in _FIELDS.items())})", {}),
    ("CREATE TABLE IF NOT EXISTS workingpapers_schema (id INTEGER PRIMARY KEY, version INTEGER)", {}),
    (
        "INSERT INTO workingpapers_schema (id, version) VALUES (1, :version) ON CONFLICT (id) DO NOTHING",
        {"version": SCHEMA_VERSION},
    ),
]
_WAIT = 60.0  # seconds that a writer waits for its turn
_JSON = ("metrics", "measured", "curves", "settings", "versions", "hardware")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One entry, one data set, one seed.

    Attributes:
        key: digest of everything that decides the result; the same key is the same run.
        task, setting, data, model, budget: the conditions, by name.
        data_fingerprint, model_fingerprint: of what those names stood for.
        entry: the entry's name; paper: the slug it stands for, None for a baseline.
        seed: of everything random in it.
        status: "ok", "failed", "timed out" or "out of memory"; error: the reason, empty if ok.
        metrics: by name; empty unless ok.
        measured: what the runner measured: fit_seconds, predict_seconds, cpu_seconds, peak_memory_mb, peak_gpu_mb,
            parameters.
        curves: learning curves that the entry logged: name to (x, y) pairs.
        settings: label column, threads, the budget in full, remarks (what the run said of itself, `UserRemark`), and
            code, a digest of the source that ran; empty unless ok.
        versions: of Python and the libraries; hardware: of the machine.
        finished: UTC time, ISO 8601.
    """

    key: str
    task: str
    setting: str
    data: str
    data_fingerprint: str
    model: str
    model_fingerprint: str
    budget: Budget
    entry: str
    paper: str | None
    seed: int
    status: str
    error: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, list[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finished: str = dataclasses.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))


def default_store() -> str:
    """Return where runs are kept unless the user says otherwise: $WORKINGPAPERS_STORE or the user's data folder."""
    import platformdirs

    named = os.environ.get("WORKINGPAPERS_STORE")
    return named or str(Path(platformdirs.user_data_dir("workingpapers")) / "runs.sqlite")


class Store:
    """Runs in a database.

    Args:
        url: a file for SQLite ("sqlite:///file" too), or a SQLAlchemy URL such as "postgresql+psycopg://user@host/name".
            None takes `default_store()`.

    Attributes:
        shown: the URL without user and password.

    Raises:
        UserError: an empty name, the file is not a store, is damaged, was made by a newer version, or the database
            doesn't answer. A file that is refused is left as it was.
    """

    def __init__(self, url: str | os.PathLike[str] | None = None) -> None:
        self.url = default_store() if url is None else os.fspath(url)
        if not self.url.strip():  # as an unset variable of the shell's is
            raise UserError("store is empty. Name one, or leave it out for the default.")
        self.shown = _hidden(self.url)
        self._lock = threading.Lock()
        path = self.url.removeprefix("sqlite:///")
        self._database: _Database = _Server(self.url) if "://" in path else _File(Path(path))
        self._migrate()

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    def _migrate(self) -> None:
        tables = self._database.tables()
        if not tables:
            return  # made by `create`, so that looking at a store never creates one
        if "workingpapers_schema" not in tables:
            raise UserError(f"{self.shown} is a database, but not a store of runs. Name another with --store.")
        found = self._database.query("SELECT version FROM workingpapers_schema", {})
        if not found:
            raise self._damaged("it does not say which version made it")
        version = int(found[0]["version"])
        if version != SCHEMA_VERSION:
            age = "newer" if version > SCHEMA_VERSION else "older"
            raise UserError(
                f"The store {self.shown} has schema {version}, made by a {age} version of workingpapers; this one "
                f"reads and writes schema {SCHEMA_VERSION}. It was left as it is: use that version, or name another "
                "--store."
            )

    def create(self) -> None:
        """Make the tables if they aren't there, so that a store that cannot be written is refused before any work.

        Raises:
            UserError: the store cannot be written.
        """
        with self._lock:
            self._database.execute(_SCHEMA)

    def save(self, run: Run) -> None:
        """Write a run, in place of an earlier one with the same key; it is on disk when this returns.

        One that finished is never replaced by one that did not: results outlive a repetition that runs out of time.

        Raises:
            UserError: the store cannot be written.
        """
        row = dataclasses.asdict(run) | {name: json.dumps(getattr(run, name)) for name in _JSON}
        updates = ", ".join(f"{name} = excluded.{name}" for name in _FIELDS if name != "key")
        insert = (
            f"INSERT INTO workingpapers_runs ({', '.join(_FIELDS)}) VALUES ({', '.join(':' + n for n in _FIELDS)}) "
            f"ON CONFLICT (key) DO UPDATE SET {updates} "
            "WHERE excluded.status = 'ok' OR workingpapers_runs.status <> 'ok'"
        )
        with self._lock:
            self._database.execute([*_SCHEMA, (insert, row)])

    def runs(self, **equal: str) -> list[Run]:
        """Return the runs whose fields equal what is given, in the order in which they finished."""
        unknown = set(equal) - set(_FIELDS)
        if unknown:
            raise TypeError(f"a run has no field {sorted(unknown)}")
        if "workingpapers_runs" not in self._database.tables():
            return []
        where = " AND ".join(f"{name} = :{name}" for name in equal) or "1 = 1"
        query = f"SELECT {', '.join(_FIELDS)} FROM workingpapers_runs WHERE {where} ORDER BY finished, key"
        with self._lock:
            rows = self._database.query(query, equal)
        try:
            return [_run(row) for row in rows]
        except ValueError as error:
            raise self._damaged(first_line(error)) from error

    def _damaged(self, reason: str) -> UserError:
        return UserError(f"The store {self.shown} is damaged ({reason}). It was left as it is; name another --store.")


def _run(row: dict[str, Any]) -> Run:
    found = row | {name: json.loads(row[name]) for name in _JSON}
    found["curves"] = {name: [(x, y) for x, y in points] for name, points in found["curves"].items()}
    return Run(**found)


class _Database(Protocol):
    def tables(self) -> set[str]: ...
    def query(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]: ...
    def execute(self, statements: Iterable[tuple[str, Mapping[str, Any]]]) -> None: ...


class _File:
    """A SQLite file, opened for each use: safe across threads, processes and forks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.is_dir():
            raise UserError(f"The store {path} is a folder; name a file.")
        if path.exists() and path.stat().st_size:
            self._check()

    def _check(self) -> None:
        try:
            with closing(self._open("ro")) as connection:
                verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise UserError(f"The store {self._path} cannot be read: {error}. It was left as it is.") from error
        except sqlite3.DatabaseError as error:
            verdict = str(error)
        if verdict != "ok":
            raise UserError(f"The store {self._path} is damaged or not a store ({verdict}). It was left as it is.")

    def _open(self, mode: str) -> sqlite3.Connection:
        from urllib.parse import quote

        frozen = "&immutable=1" if mode == "ro" and self._is_frozen() else ""
        uri = f"file:{quote(str(self._path.absolute()))}?mode={mode}{frozen}"
        connection = sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _is_frozen(self) -> bool:
        """Tell whether the folder cannot be written and no log waits in it; SQLite makes one even to look."""
        return not os.access(self._path.absolute().parent, os.W_OK) and not Path(f"{self._path}-wal").exists()

    def tables(self) -> set[str]:
        if not self._path.exists():
            return set()
        return {row["name"] for row in self.query("SELECT name FROM sqlite_master WHERE type = 'table'", {})}

    def query(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            with closing(self._open("ro")) as connection:
                return [dict(row) for row in connection.execute(sql, dict(values))]
        except sqlite3.DatabaseError as error:
            raise UserError(f"The store {self._path} cannot be read: {error}. It was left as it is.") from error

    def execute(self, statements: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open("rwc")) as connection:
                _use_wal(connection)
                connection.execute("PRAGMA synchronous = FULL")  # a run that was reported survives a power cut
                connection.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    connection.execute(sql, dict(values))
                connection.execute("COMMIT")
        except (sqlite3.DatabaseError, OSError) as error:
            reason = "its disk is full" if has_no_room(self._path.parent) else error
            raise UserError(f"The store {self._path} cannot be written: {reason}. Name another --store.") from error


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a file to write-ahead logging; SQLite does not wait for other connections there, so this does."""
    last = time.monotonic() + _WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > last:
                raise
            time.sleep(0.02)


class _Server:
    """A database behind a SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        import sqlalchemy

        self._sql = sqlalchemy
        self._shown = _hidden(url)
        try:
            self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
            self.tables()
        except (sqlalchemy.exc.SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            raise UserError(f"The store {self._shown} cannot be opened: {first_line(error)}") from error

    def tables(self) -> set[str]:
        return {name for name in self._sql.inspect(self._engine).get_table_names() if name.startswith("workingpapers_")}

    def query(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(self._sql.text(sql), dict(values)).mappings()]
        except self._sql.exc.SQLAlchemyError as error:
            raise UserError(f"The store {self._shown} cannot be read: {first_line(error)}") from error

    def execute(self, statements: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        try:
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    # CREATE TABLE IF NOT EXISTS of two sessions at once can still collide there.
                    connection.execute(self._sql.text("SELECT pg_advisory_xact_lock(20230711)"))
                for sql, values in statements:
                    connection.execute(self._sql.text(sql), dict(values))
        except self._sql.exc.SQLAlchemyError as error:
            raise UserError(f"The store {self._shown} cannot be written: {first_line(error)}") from error


def _hidden(url: str) -> str:
    """Return a URL without user, password and options, which may hold them too; a path as it is."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2] if separator else url
