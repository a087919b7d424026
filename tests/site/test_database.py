"""The page's database opens, migrates once, refuses what it can't read, and takes two writers."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy
from papers_made import made
from sqlalchemy import func, insert, inspect, select, text

from workingpapers.errors import UserError
from workingpapers.runs.store import Run, Store
from workingpapers.site.database import MIGRATIONS, among, insert_rows, open_database, reading, rows, writing
from workingpapers.site.schema import metadata, papers, signals, users


def test_an_empty_database_gets_every_table(database):
    assert set(metadata.tables) <= set(inspect(database).get_table_names())
    with database.connect() as connection:
        assert connection.execute(text("SELECT version FROM site_schema")).scalars().all() == [len(MIGRATIONS)]


def test_a_new_file_is_for_its_owner_alone(sqlite_database):
    assert Path(sqlite_database.url.database).stat().st_mode & 0o077 == 0


def indexes(engine):
    return {index["name"] for table in ("papers", "outbox") for index in inspect(engine).get_indexes(table)}


def test_a_database_of_the_first_version_is_brought_up_to_date(database):
    new = indexes(database)
    with writing(database) as connection:
        for name in ("ix_papers_source", "papers_changed", "outbox_due", "outbox_created", "papers_with_code"):
            connection.execute(text(f"DROP INDEX {name}"))
        connection.execute(text("CREATE INDEX ix_papers_year ON papers (year)"))
        connection.execute(text("CREATE INDEX ix_outbox_state ON outbox (state)"))
        connection.execute(text("UPDATE site_schema SET version = 1"))
        connection.execute(insert(users).values(email="a@b.c", created=0))
    again = open_database(database.url.render_as_string(hide_password=False))
    assert indexes(again) == new
    with again.connect() as connection:
        assert connection.execute(text("SELECT version FROM site_schema")).scalar_one() == len(MIGRATIONS)
        assert connection.execute(select(users.c.email)).scalars().all() == ["a@b.c"]
    again.dispose()


def test_papers_are_looked_up_and_counted_by_source_without_reading_them_all(sqlite_database):
    def plan(query):
        with sqlite_database.connect() as connection:
            return " ".join(row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {query}")))

    assert "COVERING INDEX ix_papers_source" in plan("SELECT source, count(*) FROM papers GROUP BY source")
    assert "SEARCH papers USING INDEX" in plan("SELECT * FROM papers WHERE slug = 'x'")


def test_opening_again_changes_nothing(database):
    with writing(database) as connection:
        connection.execute(insert(users).values(email="a@b.c", created=1.5))
    again = open_database(database.url.render_as_string(hide_password=False))
    with again.connect() as connection:
        assert connection.execute(select(users.c.email, users.c.created)).all() == [("a@b.c", 1.5)]
    again.dispose()


def test_rows_come_back_as_they_were_written(database):
    instants = [1795672522.1641772, 0.1 + 0.2, 0.0, -1e-300, 1e15 / 3]
    with writing(database) as connection:
        for number, instant in enumerate(instants):
            connection.execute(insert(users).values(email=f"{number}@b.c", created=instant))
    query = select(users.c.email, users.c.created).order_by(users.c.id)
    unconfirmed = select(func.nullif(users.c.created, users.c.created)).limit(1)
    with database.connect() as connection:
        found = [tuple(row) for row in rows(connection, query)]
        assert found == [(f"{number}@b.c", instant) for number, instant in enumerate(instants)]
        assert [tuple(row) for row in rows(connection, unconfirmed)] == [(None,)]


def test_many_rows_go_in_at_once_and_come_back_the_same(database):
    columns = [
        column for column in papers.c if column.name in {"slug", "title", "title_key", "authors", "year", "source"}
    ]
    columns += [papers.c.added, papers.c.has_method]
    columns += [it for it in papers.c if not it.nullable and it not in {papers.c.id, *columns}]
    blank = {
        it.name: [] if it.name == "keywords" else 0 if it.type.python_type in (int, float) else "" for it in columns
    }

    def row(number):
        own = {"slug": f"s{number}", "title": "'; \"%s ? — \U0001f600", "authors": ['Łukasz "K"', "%"]}
        own |= {"year": number if number % 2 else None, "added": number / 3, "has_method": number % 3 == 0}
        return [(blank | own)[it.name] for it in columns]

    given = [row(number) for number in range(3000)]  # more parameters than a statement holds
    with writing(database) as connection:
        found = insert_rows(connection, columns, given, "RETURNING id, slug")
        assert [slug for _, slug in found] == [f"s{number}" for number in range(3000)]
        assert insert_rows(connection, columns, []) == []
    with database.connect() as connection:
        assert [list(it) for it in connection.execute(select(*columns).order_by(papers.c.id))] == given


def test_many_rows_add_to_those_that_are_there(database):
    with writing(database) as connection:
        (paper,) = made(connection, 1)
        then = "ON CONFLICT (paper_id, kind, day) DO UPDATE SET amount = signals.amount + excluded.amount"
        for days in (("2026-01-01", "2026-01-02"), ("2026-01-02", "2026-01-03")):
            insert_rows(connection, list(signals.c), [(paper, "stars", day, 2.0**52) for day in days], then)
        kept = connection.execute(select(signals.c.day, signals.c.amount).order_by(signals.c.day)).all()
    assert kept == [("2026-01-01", 2.0**52), ("2026-01-02", 2.0**53), ("2026-01-03", 2.0**52)]


def test_two_writers_wait_for_each_other(database):
    def count_up():
        for _ in range(20):
            with writing(database) as connection:
                if database.dialect.name == "postgresql":
                    connection.execute(text("LOCK TABLE users"))
                number = connection.execute(select(users.c.created)).scalar_one()
                connection.execute(users.update().values(created=number + 1))

    with writing(database) as connection:
        connection.execute(insert(users).values(email="a@b.c", created=0))
    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.connect() as connection:
        assert connection.execute(select(users.c.created)).scalar_one() == 80


def test_a_connection_that_the_server_closed_is_replaced(postgres_database):
    engine = open_database(postgres_database())
    asked = text("SELECT pg_backend_pid()")
    with engine.connect() as one:
        with reading(engine) as two:
            number = two.execute(asked).scalar_one()
            assert not two.connection.driver_connection.info.transaction_status  # idle, as nothing was begun
        with engine.connect() as again:
            assert again.execute(asked).scalar_one() == number  # kept
        assert one.execute(text("SELECT pg_terminate_backend(:number, 5000)"), {"number": number}).scalar_one()
        with engine.connect() as other:
            assert other.execute(asked).scalar_one() != number
    engine.dispose()


def test_a_newer_database_is_refused_and_left_alone(database):
    with writing(database) as connection:
        connection.execute(text("UPDATE site_schema SET version = 99"))
    with pytest.raises(UserError, match="schema 99, made by a newer version"):
        open_database(database.url.render_as_string(hide_password=False))


def test_a_store_of_runs_is_not_the_page(tmp_path):
    run = Run(
        **dict.fromkeys(("key", "task", "setting", "data", "data_fingerprint", "model", "model_fingerprint"), "x"),
        budget="quick",
        entry="x",
        paper=None,
        seed=0,
        status="ok",
    )
    Store(str(tmp_path / "runs.sqlite")).save(run)
    with pytest.raises(UserError, match="but not the page's"):
        open_database(f"sqlite:///{tmp_path}/runs.sqlite")


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "sqlite:////dev/null/x.sqlite", "bogus://x"])
def test_what_cannot_be_opened_is_named(url):
    with pytest.raises(UserError):
        open_database(url)


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    (tmp_path / "site.sqlite").mkdir()  # which SQLite cannot open
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**30, free=0))
    with pytest.raises(UserError, match="cannot be opened: its disk is full"):
        open_database(f"sqlite:///{tmp_path}/site.sqlite")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "site.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be opened: file is not a database"):  # without the driver's class
        open_database(f"sqlite:///{tmp_path}/site.sqlite")


def test_commits_are_on_the_disk_and_foreign_keys_hold(sqlite_database):
    with sqlite_database.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    with pytest.raises(sqlalchemy.exc.IntegrityError), writing(sqlite_database) as connection:
        connection.execute(text("INSERT INTO votes (user_id, paper_id, at) VALUES (1, 1, 0)"))


def test_one_of_many_values(database):
    with writing(database) as connection:
        for number, email in enumerate(("a@b.c", "“ü”@b.c", "c@b.c")):
            connection.execute(insert(users).values(id=number + 1, email=email, created=0))

        def found(column, values):
            return connection.execute(select(users.c.id).where(among(connection, column, values))).scalars().all()

        assert sorted(found(users.c.email, {"“ü”@b.c", "c@b.c", "d@b.c"})) == [2, 3]
        assert sorted(found(users.c.id, (number for number in (1, 3, 9)))) == [1, 3]
        assert len(found(users.c.id, range(5000))) == 3
        assert found(users.c.email, ()) == []
