"""The store loses nothing, refuses what it can't read and leaves it as it was; SQLite and PostgreSQL alike."""

import dataclasses
import multiprocessing
import os
import shutil
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.runs.store import Run, Store, default_store


def make(key="k", **changes):
    fields = {
        "task": "probe",
        "setting": "standard",
        "data": "digits",
        "data_fingerprint": "d1",
        "model": "pixels",
        "model_fingerprint": "m1",
        "budget": "quick",
        "entry": "knn",
        "paper": None,
        "seed": 0,
        "status": "ok",
        "metrics": {"accuracy": 91.25},
        "measured": {"fit_seconds": 0.1},
        "curves": {"loss": [(1.0, 0.5), (2.0, 0.25)]},
        "settings": {"label": "label"},
        "versions": {"python": "3.11"},
        "hardware": {"cores": 2, "gpu": ""},
    }
    return Run(key=key, **fields | changes)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Where a store can be that isn't there yet."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "folder" / "runs.sqlite")
    return request.getfixturevalue("postgres_database")()


def test_what_was_saved_comes_back(url):
    run = make(error="naïve\n'quoted' \"twice\" :colon %s", hardware={"cores": 2, "gpu": "∞"})
    Store(url).save(run)
    assert Store(url).runs() == [run]


def test_a_store_that_is_not_there_is_empty(url):
    assert Store(url).runs() == []
    assert Store(url).runs(task="probe") == []


def test_a_run_replaces_the_one_with_its_key(url):
    store = Store(url)
    store.save(make(status="failed", error="no luck", metrics={}))
    store.save(make(seed=1, key="other"))
    store.save(make())
    assert [(run.key, run.status, run.error) for run in store.runs()] == [("other", "ok", ""), ("k", "ok", "")]


def test_what_finished_is_not_replaced_by_what_did_not(url):
    store = Store(url)
    store.save(make())
    store.save(make(status="timed out", error="did not finish in 1 s", metrics={}))
    assert [(run.status, run.metrics) for run in store.runs()] == [("ok", {"accuracy": 91.25})]
    store.save(make(metrics={"accuracy": 92.0}))
    assert [run.metrics for run in store.runs()] == [{"accuracy": 92.0}]


def test_runs_are_selected_and_come_in_the_order_in_which_they_finished(url):
    store = Store(url)
    for key, finished, task in (("a", "2026-03", "probe"), ("b", "2026-01", "anomaly"), ("c", "2026-02", "probe")):
        store.save(make(key, finished=finished, task=task, entry="it's"))
    assert [run.key for run in store.runs()] == ["b", "c", "a"]
    assert [run.key for run in store.runs(task="probe", entry="it's")] == ["c", "a"]
    assert store.runs(task="prob") == []
    with pytest.raises(TypeError, match="no field"):
        store.runs(colour="green")


def change(url, *statements):
    engine = sqlalchemy.create_engine(url if "://" in url else f"sqlite:///{url}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


@pytest.mark.parametrize(("version", "age"), [(99, "newer"), (0, "older")])
def test_another_schema_is_refused(url, version, age):
    Store(url).save(make())
    change(url, f"UPDATE workingpapers_schema SET version = {version}")
    with pytest.raises(UserError, match=f"schema {version}, made by a {age} version of workingpapers") as caught:
        Store(url)
    assert "secret" not in str(caught.value)
    change(url, "UPDATE workingpapers_schema SET version = 1")
    assert Store(url).runs() == [make(finished=Store(url).runs()[0].finished)]


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM workingpapers_schema", "UPDATE workingpapers_runs SET metrics = '{'"],
)
def test_a_store_with_unreadable_rows_is_refused(url, statement):
    Store(url).save(make())
    change(url, statement)
    with pytest.raises(UserError, match=r"is damaged .* It was left as it is") as caught:
        Store(url).runs()
    assert "secret" not in str(caught.value)


def test_a_store_is_shown_by_its_name_alone(url):
    assert "secret" not in repr(Store(url))
    assert repr(Store(url)) == f"Store({Store(url).shown!r})"


def write_many(url, writer, start, count):
    """Write runs as soon as the others are ready too; return what went wrong."""
    try:
        start.wait(60)
        store = Store(url)
        for number in range(count):
            store.save(make(f"{writer}-{number}"))
            store.runs(task="anomaly")
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)


def test_writers_of_other_processes_at_once_lose_nothing(url):
    """They all find no store, so making it collides, too."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    writers = [context.Process(target=write_many, args=(url, n, start, 10)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert {run.key for run in Store(url).runs()} == {f"{w}-{n}" for w in range(4) for n in range(10)}


def test_a_writer_waits_for_another_s_transaction(url):
    store = Store(url)
    store.save(make())
    begin = "BEGIN IMMEDIATE" if "://" not in url else "LOCK TABLE workingpapers_runs IN EXCLUSIVE MODE"
    engine = sqlalchemy.create_engine(url if "://" in url else f"sqlite:///{url}")
    with engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(sqlalchemy.text(begin))
        saved = pool.submit(Store(url).save, make("other"))
        time.sleep(0.5)
        assert not saved.done()
        assert [run.key for run in Store(url).runs()] == ["k"]  # readers don't wait
        connection.rollback()
        saved.result(timeout=30)
    engine.dispose()
    assert {run.key for run in Store(url).runs()} == {"k", "other"}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
floats = st.floats(allow_nan=False)


@given(error=texts, entry=texts, metrics=st.dictionaries(texts, floats), points=st.lists(st.tuples(floats, floats)))
@settings(max_examples=30, deadline=None)
def test_any_values_come_back(tmp_path_factory, error, entry, metrics, points):
    store = Store(str(tmp_path_factory.mktemp("any") / "runs.sqlite"))
    run = make(error=error, entry=entry, metrics=metrics, curves={"loss": points})
    store.save(run)
    assert store.runs() == [run]


def sqlite(tmp_path, runs=40):
    """A store whose runs are all in the one file."""
    path = tmp_path / "runs.sqlite"
    store = Store(str(path))
    for number in range(runs):
        store.save(make(f"k{number}", seed=number))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def refused(path, reason):
    before = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".sqlite-shm"}
    with pytest.raises(UserError) as caught:
        Store(str(path)).runs()
    assert reason in str(caught.value)
    after = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.stat().st_size}
    assert {name: after[name] for name in before if before[name]} == {n: b for n, b in before.items() if b}


def test_sqlite_writes_ahead(tmp_path):
    path = sqlite(tmp_path, runs=1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_url_of_sqlite_is_a_path(tmp_path):
    path = sqlite(tmp_path, runs=2)
    assert len(Store(f"sqlite:///{path}").runs()) == 2


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_not_the_default_store(name):
    with pytest.raises(UserError, match="store is empty"):
        Store(name)


def test_a_store_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = sqlite(tmp_path, runs=2)
    assert {file.name for file in path.parent.iterdir()} == {path.name}
    opened = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda at, **options: opened.append(at) or connect(at, **options))
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # root may write everywhere
    assert len(Store(str(path)).runs()) == 2
    assert all(uri.endswith("?mode=ro&immutable=1") for uri in opened)
    monkeypatch.undo()
    assert len(Store(str(path)).runs()) == 2


def test_a_store_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise sqlite3.OperationalError("unable to open database file")

    path = sqlite(tmp_path)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    with pytest.raises(UserError, match="cannot be read: unable to open database file"):
        Store(str(path))


def test_names_with_odd_characters(tmp_path):
    path = str(tmp_path / "50% of #runs? ü.sqlite")
    Store(path).save(make())
    assert len(Store(path).runs()) == 1
    assert os.path.exists(path)


def test_looking_makes_no_file(tmp_path):
    Store(str(tmp_path / "deep" / "runs.sqlite")).runs()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [50, 100, 4096, 5000, 0.5, 0.9])
def test_a_truncated_store_is_refused_and_left_alone(tmp_path, size):
    path = sqlite(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: size if isinstance(size, int) else int(size * len(content))])
    refused(path, "is damaged or not a store")


def test_a_store_with_overwritten_pages_is_refused_and_left_alone(tmp_path):
    path = sqlite(tmp_path)
    content = bytearray(path.read_bytes())
    content[4096:12288] = os.urandom(8192)
    path.write_bytes(content)
    refused(path, "is damaged or not a store")


def test_what_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Buy milk.\n" * 100)
    refused(path, "is damaged or not a store (file is not a database)")


def test_another_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "photos.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    refused(path, "is a database, but not a store of runs")
    with pytest.raises(UserError, match="not a store of runs"):
        Store(str(path)).save(make())


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file"):
        Store(str(tmp_path))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"runs.sqlite cannot be written: .*[Ff]ile exists|Not a directory"):
        Store(str(tmp_path / "file" / "runs.sqlite")).save(make())


def test_a_full_disk_is_named_where_sqlite_speaks_of_an_error(tmp_path, monkeypatch):
    def fail(connection):
        raise sqlite3.OperationalError("disk I/O error")

    store = Store(str(tmp_path / "runs.sqlite"))
    monkeypatch.setattr("workingpapers.runs.store._use_wal", fail)
    for total, free, said in (
        (2**40, 2**10, "its disk is full"),
        (2**40, 2**30, "disk I/O error"),
        (0, 0, "disk I/O error"),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, t=total, f=free: SimpleNamespace(total=t, free=f))
        with pytest.raises(UserError, match=rf"runs.sqlite cannot be written: {said}\. Name another --store\."):
            store.save(make())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_without_permission_to_write(tmp_path):
    path = sqlite(tmp_path, runs=1)
    path.chmod(0o444)
    with pytest.raises(UserError, match="cannot be written"):
        Store(str(path)).save(make())


def test_a_server_that_does_not_answer_is_named_without_the_password():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql+psycopg://tester:secret@127.0.0.1:{unused.getsockname()[1]}/runs?password=secret"
        with pytest.raises(UserError, match="cannot be opened") as caught:
            Store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["nosuchdatabase://host/name", "postgresql+psycopg://host:port/name", "http://host/x"])
def test_addresses_that_are_none_are_refused(url):
    with pytest.raises(UserError, match="cannot be opened"):
        Store(url)


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "mine.sqlite"))
    assert Store().url == default_store() == str(tmp_path / "mine.sqlite")
    monkeypatch.delenv("WORKINGPAPERS_STORE")
    assert default_store().endswith("runs.sqlite")


def test_a_run_is_made_with_the_time_in_utc():
    assert make().finished.endswith("+00:00")
    assert dataclasses.replace(make(), seed=1).key == "k"
