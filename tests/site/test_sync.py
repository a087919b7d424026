"""Syncs bring everything in once, go on after a kill, and take failures of one source for what they are."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import date

import pyarrow
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sqlalchemy import select, text

from workingpapers.errors import UserError
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.site.commands.sync import sync as command
from workingpapers.site.database import open_database
from workingpapers.site.records import checked
from workingpapers.site.schema import metadata, papers, syncs
from workingpapers.site.sources.arxiv import CATEGORIES
from workingpapers.site.sources.batch import Batch, Walk
from workingpapers.site.sources.files import File
from workingpapers.site.sources.http import Client, SourceError
from workingpapers.site.sync import Outcome, named, sync

TODAY = date(2026, 11, 25)


@dataclass
class Scripted:
    """A source of numbered papers, which may fail after some of them."""

    number: int
    fails_after: int | None = None
    name: str = "scripted"
    begun: list = field(default_factory=list)

    def batches(self, cursor):
        self.begun.append(cursor)
        for at in range(cursor["at"] if cursor else 0, self.number):
            if at == self.fails_after:
                raise SourceError("it broke")
            record = checked(self.name, {"title": f"Paper {at}"})
            yield Batch(cursor={"at": at + 1}, records=[record], problems=["one"], done=at + 1, total=self.number)


def content(engine):
    """Everything that a sync may write, but for when."""
    tables = [metadata.tables[name] for name in ("papers", "paper_topics", "signals", "trends", "syncs")]
    with engine.connect() as connection:
        return {
            table.name: sorted(
                repr({k: v for k, v in row.items() if k not in ("added", "updated")})
                for row in connection.execute(select(table)).mappings()
            )
            for table in tables
        }


def test_what_came_is_counted(database):
    heard = []
    (outcome,) = sync(database, [Scripted(3)], listen=lambda it: heard.append((it.done, it.total)))
    assert outcome == Outcome("scripted", new=3, malformed=3, problems=["one"] * 3, done=3, total=3)
    assert heard == [(0, None), (1, 3), (2, 3), (3, 3)]
    with database.connect() as connection:
        assert connection.execute(select(syncs.c.source, syncs.c.cursor)).all() == [("scripted", {"at": 3})]


def test_a_source_that_fails_keeps_what_came_and_the_others(sqlite_database):
    first, second = sync(sqlite_database, [Scripted(5, fails_after=2), Scripted(2, name="other")])
    assert (first.new, first.error) == (2, "it broke")
    assert (second.unchanged, second.error) == (2, "")  # the same papers
    whole = Scripted(5)
    assert sync(sqlite_database, [whole])[0].new == 3
    assert whole.begun == [{"at": 2}]


def test_many_problems_are_counted_and_some_kept(sqlite_database):
    (outcome,) = sync(sqlite_database, [Scripted(30)])
    assert (outcome.malformed, len(outcome.problems)) == (30, 20)


def test_ctrl_c_waits_for_no_answer(sqlite_database):
    answered = threading.Event()

    class Slow(Scripted):
        def batches(self, cursor):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            answered.wait(10)
            yield from super().batches(cursor)

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sync(sqlite_database, [Slow(1)])
    assert time.monotonic() - begin < 5
    answered.set()


def corpus(folder, number=3000):
    rows = [
        {
            "title": f"Paper {n % (number - 50)} on things",
            "authors": [f"Ada A{n % 7}"],
            "year": 2000 + n % 3,
            "citations": n,
        }
        for n in range(number)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "corpus.parquet")
    return folder / "corpus.parquet"


def test_a_second_sync_changes_nothing(database, tmp_path):
    file = File(corpus(tmp_path, 300), size=100)
    first = sync(database, [file])[0]
    before = content(database)
    second = sync(database, [file])[0]
    assert (first.new + first.updated + first.unchanged, second.unchanged) == (300, 300)
    assert (second.new, second.updated) == (0, 0)
    assert content(database) == before


SLOWLY = """
import sys, time
from pathlib import Path
from workingpapers.site.database import open_database
from workingpapers.site.sources.files import File
from workingpapers.site.sync import sync
listen = lambda it: it.done and print("batch", flush=True)
sync(open_database(sys.argv[1]), [File(Path(sys.argv[2]), size=20)], listen=listen)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path):
    """Killed again and again with SIGKILL, a little later each time; then the database equals that of one sync."""
    file = corpus(tmp_path)
    whole = open_database(f"sqlite:///{tmp_path}/whole.sqlite")
    sync(whole, [File(file, size=500)])
    url = f"sqlite:///{tmp_path}/killed.sqlite"
    kills = 0
    for batches in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, url, str(file)], stdout=subprocess.PIPE)
        for _ in range(batches):
            assert process.stdout.readline() == b"batch\n"
        time.sleep(0.003 * batches)  # so that it dies within a transaction, too
        os.kill(process.pid, signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills == 3
    killed = open_database(url)
    with killed.connect() as connection:
        there = connection.execute(text("SELECT count(*) FROM papers")).scalar_one()
        row = connection.execute(select(syncs.c.cursor)).scalar_one()["row"]
    assert 200 <= row < 3000  # ten batches at least, not all
    assert 0 < there <= row
    (outcome,) = sync(killed, [File(file, size=500)])
    assert outcome.new + outcome.updated + outcome.unchanged == 3000 - row
    assert content(killed) == content(whole)


@given(
    st.dates(date(2026, 10, 1), TODAY),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=6),
)
@settings(deadline=None)
def test_no_day_is_missed_however_often_it_stops(first, stops):
    """Each sync gets through some pages and stops; in the end every page of every day has been asked."""
    pages = 2
    asked, cursor, today = set(), None, first
    for later, budget in [*stops, (0, 10**6)]:
        today = min(date.fromordinal(today.toordinal() + later), TODAY)
        walk = Walk(first.isoformat(), today, overlap=3)
        start, page = walk.start(cursor)
        before = cursor
        for day in walk.days(start):
            while page is not None and budget:
                budget -= 1
                asked.add((day, page))
                following = page + 1 if page + 1 < pages else None
                cursor = walk.after(before, start, day, following)
                page = following
            page = 0
            if not budget:
                break
    days = range(first.toordinal(), today.toordinal() + 1)
    assert asked >= {(date.fromordinal(day), page) for day in days for page in range(pages)}
    assert cursor["done"]


def test_words_for_sources(sqlite_database, tmp_path):
    file = corpus(tmp_path, 60)
    words = ["arxiv", "arxiv:cs.LG,hep-th", "huggingface", "citations", "stars", "submitted", str(file)]
    names = [source.name for source in named(words, sqlite_database, Client(), "2026-11-01", TODAY)]
    usual = [f"arxiv:{category}" for category in CATEGORIES]
    plain = ["huggingface", "citations", "stars", "submitted"]
    assert names == [*usual, "arxiv:cs.LG", "arxiv:hep-th", *plain, "file:corpus"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("arxv", "Unknown source 'arxv'. Did you mean 'arxiv'"),
        ("hugging-face", "Did you mean 'huggingface'"),
        ("./nothing.parquet", "There is no file nothing.parquet"),
        ("./papers.csv", "end in .parquet or .jsonl"),
        ("arxiv:nonsense!", "written like cs.LG"),
        ("arxiv:", "written like cs.LG or hep-th; got ''"),
    ],
)
def test_words_that_stand_for_nothing(sqlite_database, word, says):
    with pytest.raises(UserError) as caught:
        named([word], sqlite_database, Client(), None, TODAY)
    assert says in str(caught.value)


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "2026-11-26", "1850-01-01"])
def test_days_to_begin_with(sqlite_database, since):
    with pytest.raises(UserError, match=r"--since must be a day from 1991-01-01 to 2026-11-25; got"):
        named(["arxiv"], sqlite_database, Client(), since, TODAY)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))
    monkeypatch.setenv("WORKINGPAPERS_SECRET", "x" * 40)
    lines = [{"title": "A paper", "year": 2020}, {"title": ""}, {"title": "Another paper"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = [str(tmp_path / "mine.jsonl"), "--database", str(tmp_path / "site.sqlite"), "--no-embeddings"]
    first, second = (CliRunner().invoke(command, arguments) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert first.stdout.split()[-5:] == ["file:mine", "2", "0", "0", "1"]
    assert second.stdout.split()[-5:] == ["file:mine", "0", "0", "2", "1"]
    assert "Left out: mine.jsonl, row 2: title: must have 1 to 1000 characters" in first.stderr
    engine = open_database(f"sqlite:///{tmp_path}/site.sqlite")
    with engine.connect() as connection:
        found = connection.execute(select(papers.c.card, papers.c.title)).all()
    assert {card for card, _ in found} == {*load_catalogue(), None}
    assert {title for card, title in found if card is None} == {"A paper", "Another paper"}
