"""The digest: who is due when, what is news, and that neither kills nor races lose or repeat anything."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import insert, select, update

from workingpapers.errors import UserError
from workingpapers.site import trending
from workingpapers.site.database import writing
from workingpapers.site.mail.digest import MOST_TRENDING, due_day, editions, write
from workingpapers.site.papers import by_ids
from workingpapers.site.schema import deliveries, outbox, searches, subscriptions, users
from workingpapers.site.settings import Settings

SETTINGS = Settings(database="sqlite://", secret="x" * 32, address="https://papers.example.org")
WEDNESDAY = date(2026, 11, 25)


def at(day, hour=6):
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()


def subscribe(engine, email="ada@example.org", frequency="daily", topics=(), queries=(), since=date(2026, 1, 1)):
    row = {"email": email, "frequency": frequency, "topics": list(topics), "queries": list(queries)}
    row |= {"state": "active", "created": at(since), "confirmed": at(since)}
    with writing(engine) as connection:
        return connection.execute(insert(subscriptions).values(row).returning(subscriptions.c.id)).scalar_one()


def papers(engine, n, day=None, votes=(), **changes):
    """Make papers, of which those with votes trend on a day."""
    with writing(engine) as connection:
        ids = made(connection, n, **changes)
        for number, amount in zip(ids, votes or [1] * n, strict=True):
            if day:
                trending.record_all(connection, [trending.Signal(number, "vote", amount, day.isoformat())])
    return ids


def run(engine, day, finder=None):
    """Make the editions that are due on a day, and return the papers of each that has any."""
    got = {}
    for edition in editions(engine, at(day), finder):
        if write(engine, SETTINGS, edition, at(day)) and edition.sections:
            got[edition.subscription.email] = [pick.paper.id for pick in edition.picks]
    return got


class Found:
    """A search that finds what it is told to."""

    def __init__(self, engine, **found):
        self._engine, self._found, self.asked = engine, found, []

    def search(self, text, *, sort, size):
        self.asked.append((text, sort))
        if text not in self._found:
            raise UserError("This search cannot be read.")
        with self._engine.connect() as connection:
            hits = by_ids(connection, self._found[text][:: 1 if sort == "date" else -1])
        return SimpleNamespace(hits=[SimpleNamespace(paper=paper) for paper in hits])


@given(st.dates(date(2020, 1, 1), date(2030, 1, 1)))
def test_the_latest_due_day_is_what_a_calendar_says(today):
    back = [today - timedelta(days=n) for n in range(8)]
    assert due_day("daily", today) == today
    assert due_day("weekdays", today) == next(day for day in back if day.strftime("%a") not in ("Sat", "Sun"))
    assert due_day("weekly", today) == next(day for day in back if day.strftime("%a") == "Mon")


def test_each_gets_what_trended_in_their_days_once(database):
    for frequency in ("daily", "weekdays", "weekly"):
        subscribe(database, f"{frequency}@example.org", frequency)
    days = [date(2026, 11, 16) + timedelta(days=n) for n in range(15)]  # Monday to the Monday two weeks later
    trend = {day: papers(database, 1, day)[0] for day in days}
    got = {day: run(database, day) for day in days[7:]}
    name = dict(zip(days, itertools.cycle("Mo Tu We Th Fr Sa Su".split()), strict=False))

    def of(frequency, day):
        return sorted(got[day].get(f"{frequency}@example.org", ()))

    for day in days[8:]:
        assert of("daily", day) == [trend[day - timedelta(days=1)]]
    for day in days[7:]:
        weekend = 3 if name[day] == "Mo" else 1
        covered = [trend[day - timedelta(days=n)] for n in range(weekend, 0, -1)]
        assert of("weekdays", day) == ([] if name[day] in ("Sa", "Su") else covered)
        week = [trend[day - timedelta(days=n)] for n in range(7, 0, -1)]
        assert of("weekly", day) == (week if name[day] == "Mo" else [])


def test_topics_count_with_those_below_and_order_is_by_score(database):
    yesterday = WEDNESDAY - timedelta(days=1)
    inside = papers(database, 3, yesterday, votes=(1, 5, 3), topics=["distillation"])
    papers(database, 2, yesterday, votes=(9, 9), topics=["multimodal"])
    subscribe(database, topics=["compression"])
    assert run(database, WEDNESDAY) == {"ada@example.org": [inside[1], inside[2], inside[0]]}


def test_what_was_sent_is_not_news_and_no_news_is_no_mail(database):
    number = subscribe(database)
    (old,) = papers(database, 1, WEDNESDAY - timedelta(days=1))
    assert run(database, WEDNESDAY) == {"ada@example.org": [old]}
    with writing(database) as connection:
        trending.record_all(connection, [trending.Signal(old, "vote", 50, WEDNESDAY.isoformat())])
    assert run(database, WEDNESDAY + timedelta(days=1)) == {}
    with database.connect() as connection:
        rows = connection.execute(select(outbox.c.edition, outbox.c.state, outbox.c.subscription_id)).all()
    assert sorted(rows) == [("2026-11-25", "waiting", number), ("2026-11-26", "empty", number)]


def test_a_clock_that_was_ahead_for_once_stops_no_digest(database):
    subscribe(database)
    run(database, WEDNESDAY + timedelta(days=200))
    (here,) = papers(database, 1, WEDNESDAY - timedelta(days=1))
    assert run(database, WEDNESDAY) == {"ada@example.org": [here]}


def test_the_same_day_again_does_nothing_even_with_more_to_tell(database):
    subscribe(database)
    papers(database, 1, WEDNESDAY - timedelta(days=1))
    assert len(run(database, WEDNESDAY)) == 1
    papers(database, 1, WEDNESDAY - timedelta(days=1))
    assert run(database, WEDNESDAY) == {}


def test_after_days_off_an_edition_goes_back_further_but_a_week_at_most(database):
    subscribe(database)
    ids = {n: papers(database, 1, WEDNESDAY - timedelta(days=n))[0] for n in range(12, 0, -1)}
    assert run(database, WEDNESDAY - timedelta(days=11)) == {"ada@example.org": [ids[12]]}
    assert run(database, WEDNESDAY - timedelta(days=8)) == {"ada@example.org": [ids[9], ids[10], ids[11]]}
    assert run(database, WEDNESDAY) == {"ada@example.org": [ids[n] for n in range(1, 8)]}


def test_a_new_subscriber_gets_no_edition_of_before(database):
    subscribe(database, frequency="weekly", since=WEDNESDAY)
    papers(database, 1, WEDNESDAY - timedelta(days=5))
    assert run(database, WEDNESDAY) == {}
    papers(database, 1, WEDNESDAY)
    assert len(run(database, WEDNESDAY + timedelta(days=5))["ada@example.org"]) == 1


def test_searches_and_alerts_find_what_trended_or_was_added(database):
    yesterday = WEDNESDAY - timedelta(days=1)
    old, trended = papers(database, 2, None)
    with writing(database) as connection:
        trending.record_all(connection, [trending.Signal(trended, "vote", 1, yesterday.isoformat())])
        user = connection.execute(insert(users).values(email="ada@example.org", created=0).returning(users.c.id))
        number = user.scalar_one()
        alerts = [("alert", True), ("no-alert", False), ("unreadable", True)]
        connection.execute(
            insert(searches), [{"user_id": number, "query": q, "alert": a, "created": 0} for q, a in alerts]
        )
    (added,) = papers(database, 1, None, added=at(yesterday))
    (other,) = papers(database, 1, None, added=at(yesterday))
    finder = Found(database, probe=[old, added, trended], alert=[added, other], **{"no-alert": [old]})
    subscribe(database, queries=["probe"])
    subscribe(database, "bob@example.org", queries=["probe"])
    assert run(database, WEDNESDAY, finder) == {
        "ada@example.org": [trended, added, other],
        "bob@example.org": [trended, added],
    }
    assert [asked for asked in finder.asked if asked[0] == "probe"] == [("probe", "trending"), ("probe", "date")]


def test_an_edition_is_not_endless(database):
    subscribe(database)
    papers(database, MOST_TRENDING + 5, WEDNESDAY - timedelta(days=1))
    assert len(run(database, WEDNESDAY)["ada@example.org"]) == MOST_TRENDING


def test_only_active_subscriptions_count(database):
    papers(database, 1, WEDNESDAY - timedelta(days=1))
    number = subscribe(database)
    (edition,) = editions(database, at(WEDNESDAY), None)
    with writing(database) as connection:
        connection.execute(update(subscriptions).values(state="ended"))
    assert not write(database, SETTINGS, edition, at(WEDNESDAY))
    assert list(editions(database, at(WEDNESDAY), None)) == []
    with database.connect() as connection:
        assert connection.execute(select(deliveries)).all() == []
    assert number


def test_of_two_runs_at_once_one_writes(database):
    papers(database, 3, WEDNESDAY - timedelta(days=1))
    subscribe(database)
    (first,), (second,) = (list(editions(database, at(WEDNESDAY), None)) for _ in range(2))
    assert write(database, SETTINGS, first, at(WEDNESDAY))
    assert not write(database, SETTINGS, second, at(WEDNESDAY))


def test_a_mail_and_what_it_delivers_are_written_together(database, monkeypatch):
    papers(database, 3, WEDNESDAY - timedelta(days=1))
    subscribe(database)
    (edition,) = editions(database, at(WEDNESDAY), None)
    monkeypatch.setattr("workingpapers.site.mail.digest.deliveries", None)  # as if it broke between the two
    with pytest.raises(Exception, match="subject table"):
        write(database, SETTINGS, edition, at(WEDNESDAY))
    monkeypatch.undo()
    with database.connect() as connection:
        assert connection.execute(select(outbox)).all() == []
    assert len(run(database, WEDNESDAY)["ada@example.org"]) == 3


KILLED = """
import sys
from workingpapers.site.database import open_database
from workingpapers.site.mail import digest, letter, outbox, smtp
from workingpapers.site.settings import Settings

url, server, now = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings = Settings(database=url, secret="x" * 32, smtp=server)
engine = open_database(url)
print("begun", flush=True)
for edition in digest.editions(engine, now, None):
    digest.write(engine, settings, edition, now)
with smtp.sender(settings) as send:
    outbox.drain(engine, send, now=lambda: now)
"""


@pytest.mark.slow
def test_killed_anywhere_and_run_again(database, server):
    """However many runs are killed at whatever moment, each subscriber gets the edition, and each paper once."""
    ids = papers(database, 12, WEDNESDAY - timedelta(days=1))
    everybody = [f"{n}@example.org" for n in range(25)]
    for email in everybody:
        subscribe(database, email)
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", KILLED, url, server.settings().smtp]
    kills = 0
    for number in range(60):
        now = at(WEDNESDAY) + number * 1000  # a claim of one who was killed is over by then
        with subprocess.Popen([*command, str(now)], stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            if number < 6:
                time.sleep(0.03 + 0.12 * number)
                os.kill(process.pid, signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 2
    mails = {mail["Message-ID"]: (to, mail) for to, mail in server.handler.mails}
    assert Counter(to for to, _ in mails.values()) == Counter(everybody)
    assert len(server.handler.mails) - len(mails) <= kills
    with database.connect() as connection:
        told = connection.execute(select(deliveries.c.subscription_id, deliveries.c.paper_id)).all()
        assert connection.execute(select(outbox.c.state).distinct()).scalars().all() == ["sent"]
    assert len(told) == len(everybody) * MOST_TRENDING
    assert {paper for _, paper in told} == set(sorted(ids)[-MOST_TRENDING:])


def test_a_digest_can_be_ended_by_one_click(database):
    papers(database, 1, WEDNESDAY - timedelta(days=1))
    subscribe(database)
    run(database, WEDNESDAY)
    with database.connect() as connection:
        mail = message_from_bytes(connection.execute(select(outbox.c.message)).scalar_one(), policy=default)
    assert mail["List-Unsubscribe"].startswith("<https://papers.example.org/subscription/unsubscribe?token=")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
