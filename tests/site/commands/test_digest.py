"""`papers digest`: sends, says what it did, shows without doing, and stays when asked to."""

import time

import click
import pytest
from click.testing import CliRunner
from papers_made import made
from sqlalchemy import insert, select

from workingpapers.site import trending
from workingpapers.site.commands.digest import digest
from workingpapers.site.database import open_database, writing
from workingpapers.site.schema import deliveries, outbox, subscriptions

DAY = 86_400.0


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A database with two subscribers and three papers that trended yesterday; mails are shown."""
    url = f"sqlite:///{tmp_path}/site.sqlite"
    monkeypatch.setenv("WORKINGPAPERS_SITE", url)
    monkeypatch.setenv("WORKINGPAPERS_SECRET", "s" * 32)
    monkeypatch.setenv("WORKINGPAPERS_EMBEDDINGS", "0")
    monkeypatch.delenv("WORKINGPAPERS_SMTP", raising=False)
    engine = open_database(url)
    now = time.time()
    with writing(engine) as connection:
        for number in made(connection, 3):
            trending.record_all(
                connection, [trending.Signal(number, "vote", number, trending.day_of(now - DAY).isoformat())]
            )
        row = {"frequency": "daily", "state": "active", "created": 0.0, "confirmed": now - 2 * DAY}
        rows = [
            {"email": "ada@example.org", "topics": [], "queries": []},
            {"email": "bob@example.org", "topics": ["pruning"], "queries": []},
        ]
        connection.execute(insert(subscriptions), [row | own for own in rows])
    yield engine
    engine.dispose()


def run(*words):
    result = CliRunner().invoke(digest, words)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_it_sends_and_says_so_and_again_does_nothing(page):
    said = run()
    assert "1 digest written, 1 without news, 1 mail sent" in said
    assert "To: ada@example.org" in said
    assert "Paper 3 on frozen features" in said
    assert "Nobody is due, and no mail waits." in run()


def test_a_dry_run_changes_nothing(page):
    said = run("--dry-run")
    assert "ada@example.org" in said
    assert "3 papers" in said
    assert "2 due; nothing was written or sent" in said
    with page.connect() as connection:
        assert connection.execute(select(outbox)).all() == connection.execute(select(deliveries)).all() == []
    assert "1 digest written" in run()


def test_a_server_that_is_down_is_said(page, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_SMTP", "smtp://127.0.0.1:1")
    said = run()
    assert "1 digest written, 1 without news, 1 mail deferred" in said
    assert "cannot be reached" in said


def test_with_every_it_stays_and_looks_again(page, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = CliRunner().invoke(digest, ["--every", "10"])
    assert isinstance(result.exception, (KeyboardInterrupt, click.Abort, SystemExit))
    assert slept == [600, 600]
    assert "1 mail sent" in result.output
    assert "Nobody is due" in result.output


def test_with_every_it_outlives_a_database_that_is_away(page, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        outbox.create(page)
        if len(slept) == 2:
            raise KeyboardInterrupt

    outbox.drop(page)
    monkeypatch.setattr(time, "sleep", sleep)
    result = CliRunner().invoke(digest, ["--every", "10"])
    assert "The page's database cannot be used: no such table: outbox. It is looked at again." in result.output
