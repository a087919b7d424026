"""The outbox skips nobody and sends nothing twice, whoever is killed when; and it cannot be made to bomb an address."""

import contextlib
import itertools
import os
import random
import signal
import smtplib
import subprocess
import sys
import threading
import time
from collections import Counter
from email import message_from_bytes
from email.policy import default

import pytest
from sqlalchemy import event, insert, select, update
from sqlalchemy.exc import IntegrityError

from workingpapers.site.database import writing
from workingpapers.site.mail.message import compose
from workingpapers.site.mail.outbox import (
    FIRST_WAIT,
    KEPT,
    LEASE,
    LIMITS,
    LONGEST_WAIT,
    MOST_ATTEMPTS,
    Bounced,
    Refused,
    Unreachable,
    drain,
    enqueue,
)
from workingpapers.site.schema import outbox, subscriptions
from workingpapers.site.settings import Settings

NOW = 1_764_000_000.0
SETTINGS = Settings(database="sqlite://", secret="x" * 32, sender="Working Papers <papers@example.org>")


def put(engine, email, kind="digest", now=NOW, subscription=None, edition=None):
    with writing(engine) as connection:
        mail = compose(SETTINGS, email, f"Hello {email}", "Hello.")
        return enqueue(connection, kind, email, mail, now, subscription, edition)


def subscribe(engine, email, state="active"):
    row = {"email": email, "frequency": "daily", "state": state, "created": NOW, "confirmed": NOW}
    with writing(engine) as connection:
        return connection.execute(insert(subscriptions).values(row).returning(subscriptions.c.id)).scalar_one()


def rows(engine, *columns):
    with engine.connect() as connection:
        return connection.execute(select(*(outbox.c[name] for name in columns)).order_by(outbox.c.id)).all()


def failing(error):
    def send(message, email):
        raise error

    return send


def test_people_who_wait_come_first_and_mails_are_emptied(database):
    sent = []
    for number, kind in enumerate(("digest", "sign-in", "digest", "confirm")):
        put(database, f"{number}@example.org", kind, subscription=subscribe(database, f"{number}@example.org"))
    done = drain(database, lambda message, email: sent.append((email, message)), now=lambda: NOW)
    assert [email for email, _ in sent] == ["1@example.org", "3@example.org", "0@example.org", "2@example.org"]
    mail = message_from_bytes(sent[0][1], policy=default)
    assert mail["To"] == "1@example.org"
    assert mail["Date"].datetime.timestamp() == NOW
    assert mail["Message-ID"].endswith("@example.org>")
    assert done == {"sent": 4}
    assert rows(database, "state", "message", "attempts") == [("sent", b"", 1)] * 4
    assert not drain(database, lambda message, email: sent.append(email), now=lambda: NOW + KEPT / 2)


def test_a_mail_is_there_exactly_if_its_transaction_is(database):
    with database.connect() as connection, connection.begin() as transaction:
        enqueue(connection, "sign-in", "a@b.co", compose(SETTINGS, "a@b.co", "Hello", "Hello."), NOW)
        transaction.rollback()
    assert rows(database, "id") == []


def test_an_edition_is_written_once(database):
    number = subscribe(database, "a@b.co")
    put(database, "a@b.co", subscription=number, edition="2026-11-25")
    with pytest.raises(IntegrityError):
        put(database, "a@b.co", subscription=number, edition="2026-11-25")


def test_transient_failures_are_tried_again_ever_less_often_and_given_up(database):
    put(database, "a@b.co", "sign-in")
    cut = failing(smtplib.SMTPServerDisconnected("cut"))
    times = [NOW]
    while drain(database, cut, now=lambda: times[-1])["deferred"]:
        ((next_try, state, error),) = rows(database, "next_try", "state", "error")
        assert (state, error) == ("waiting", "SMTPServerDisconnected: cut")
        times.append(next_try - 0.01)
        assert not drain(database, failing(AssertionError("too early")), now=lambda: times[-1])
        times[-1] = next_try
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits == [min(FIRST_WAIT * 2**n, LONGEST_WAIT) for n in range(MOST_ATTEMPTS - 1)]
    assert 4 * 86_400 < times[-1] - NOW < 5 * 86_400
    assert rows(database, "state", "message", "attempts") == [("failed", b"", MOST_ATTEMPTS)]


def test_a_mail_that_failed_once_gets_through(database):
    sent = []
    put(database, "a@b.co", "sign-in")
    drain(database, failing(TimeoutError()), now=lambda: NOW)
    assert drain(database, lambda message, email: sent.append(email), now=lambda: NOW + FIRST_WAIT) == {"sent": 1}
    assert sent == ["a@b.co"]


@pytest.mark.parametrize(("error", "state"), [(Bounced("550 5.1.1"), "bounced"), (Refused("554 5.7.1"), "active")])
def test_only_a_bounce_ends_a_subscription(database, error, state):
    number = subscribe(database, "a@b.co")
    other = subscribe(database, "b@b.co")
    put(database, "a@b.co", subscription=number)
    assert drain(database, failing(error), now=lambda: NOW) == {"failed": 1}
    with database.connect() as connection:
        states = dict(connection.execute(select(subscriptions.c.id, subscriptions.c.state)).all())
    assert states == {number: state, other: "active"}
    assert rows(database, "state", "message") == [("failed", b"")]


def test_an_unreachable_server_is_asked_once_and_the_rest_stays_untried(database):
    for number in range(3):
        put(database, f"{number}@b.co", "sign-in")
    assert drain(database, failing(Unreachable("down")), now=lambda: NOW) == {"deferred": 1, "unreachable": 1}
    assert sorted(rows(database, "state", "attempts")) == [("waiting", 0), ("waiting", 0), ("waiting", 1)]


def test_no_digest_leaves_for_a_subscription_that_ended(database):
    put(database, "a@b.co", subscription=subscribe(database, "a@b.co", state="ended"))
    assert drain(database, failing(AssertionError("sent")), now=lambda: NOW) == {"failed": 1}


def test_strangers_cannot_bomb_an_address(database):
    (an_hour, hour), (a_day, day) = LIMITS
    taken = [put(database, f"ada+{n}@example.org" if n else "ada@example.org", "sign-in") for n in range(6)]
    assert taken == [True] * an_hour + [False] * (6 - an_hour)
    assert put(database, "ada@example.org", "confirm")  # each kind has its own share
    assert put(database, "adam@example.org", "sign-in")
    assert put(database, "ada@example.com", "sign-in")
    later = [put(database, "ada@example.org", "sign-in", now=NOW + hour * n / 2) for n in range(2, 47)]
    assert sum(later) == a_day - an_hour
    assert put(database, "ada@example.org", "sign-in", now=NOW + day + hour)
    assert put(database, "ada@example.org", "digest")


def test_requests_at_the_same_moment_share_the_limit(database):
    taken = []
    start = threading.Barrier(8)

    def ask():
        start.wait()
        taken.append(put(database, "ada@example.org", "sign-in"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == LIMITS[0][0]


def test_what_is_done_with_is_deleted_in_the_end(database):
    put(database, "a@b.co", "sign-in")
    put(database, "b@b.co", "sign-in", now=NOW + KEPT)
    put(database, "c@b.co", subscription=subscribe(database, "c@b.co"), edition="2026-11-25")
    with writing(database) as connection:  # as an edition without news is written down
        connection.execute(update(outbox).where(outbox.c.email == "c@b.co").values(state="empty"))
    drain(database, lambda message, email: None, now=lambda: NOW + KEPT)
    drain(database, lambda message, email: None, now=lambda: NOW + KEPT + 1)
    assert rows(database, "email") == [("b@b.co",)]


def test_no_mail_is_read_to_find_the_next_or_the_old_ones(sqlite_database):
    put(sqlite_database, "a@b.org")
    read = []

    def explain(connection, cursor, statement, values, *_):
        if statement.startswith(("DELETE", "UPDATE", "SELECT")):
            cursor = connection.connection.cursor()
            read.extend(
                row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values) if "outbox" in row[3]
            )

    event.listen(sqlite_database, "before_cursor_execute", explain)
    drain(sqlite_database, lambda message, email: None, now=lambda: NOW)
    assert not [step for step in read if "rowid=" not in step and "outbox_" not in step]
    assert {"outbox_due", "outbox_created"} <= {word for step in read for word in step.split()}


def test_a_mail_that_kills_its_drainers_is_given_up(database):
    put(database, "a@b.co", "sign-in")
    with writing(database) as connection:
        connection.execute(update(outbox).values(state="sending", attempts=MOST_ATTEMPTS))
    assert drain(database, failing(AssertionError("sent")), now=lambda: NOW) == {"failed": 1}


def test_a_drainer_that_comes_back_too_late_changes_nothing(database):
    """Its claim ran out and another has sent the mail: what the first one says about it no longer counts."""
    sent = []
    put(database, "a@b.co", "sign-in")

    def slow(message, email):
        drain(database, lambda message, email: sent.append(email), now=lambda: NOW + LEASE)
        raise TimeoutError

    drain(database, slow, now=lambda: NOW)
    assert sent == ["a@b.co"]
    assert rows(database, "state", "attempts") == [("sent", 2)]


# Each line on its input starts a drainer at that time; its process id is printed, then how it ended.
DRAINERS = """
import os, sys
from workingpapers.site.database import open_database
from workingpapers.site.mail import outbox, smtp
from workingpapers.site.settings import Settings

settings = Settings(database=sys.argv[1], secret="x" * 32, smtp=sys.argv[2])
for line in sys.stdin:
    now, number = line.split()
    started = []
    for _ in range(int(number)):
        if (process := os.fork()) == 0:
            with smtp.sender(settings) as send:
                outbox.drain(open_database(settings.database), send, now=lambda: float(now))
            os._exit(0)
        started.append(process)
    print(*started, flush=True)
    print(*(os.waitpid(process, 0)[1] for process in started), flush=True)
"""


@pytest.fixture
def drainers(database, server):
    """Start drainers at a time; return the first one's process, and a function that waits for the ends of all."""
    url = database.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", DRAINERS, url, server.settings().smtp]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mother:

        def start(now, number=1):
            mother.stdin.write(f"{now} {number}\n")
            mother.stdin.flush()
            process = int(mother.stdout.readline().split()[0])
            return process, lambda: mother.stdout.readline().split()

        yield start
        mother.stdin.close()


@pytest.mark.parametrize(
    ("moment", "answer"), [("rcpt", None), ("data", "451 try again"), ("data", None), ("accepted", None)]
)
def test_killed_while_it_sends(database, server, drainers, moment, answer):
    """Nobody is skipped. What the server did not accept is sent once in the end. What it accepted, though nobody was
    left to hear it, comes again under the same Message-ID."""
    everybody = [f"{n}@example.org" for n in range(4)]
    for email in everybody:
        put(database, email, "sign-in")
    victim, seen = [], Counter()

    def kill(at):
        seen[at] += 1
        if at == moment and seen[at] == 2:
            while not victim:
                time.sleep(0.001)
            os.kill(victim[0], signal.SIGKILL)
            return answer
        return None

    server.handler.on = kill
    process, wait = drainers(NOW)
    victim.append(process)
    assert wait() == [str(signal.SIGKILL.value)]
    assert Counter(state for (state,) in rows(database, "state")) == {"sent": 1, "sending": 1, "waiting": 2}
    _, wait = drainers(NOW + LEASE - 1)
    assert wait() == ["0"]
    assert rows(database, "state")[1] == ("sending",)  # it could be at work still, for all that others know
    _, wait = drainers(NOW + LEASE)
    assert wait() == ["0"]
    twice = {everybody[1]: 1} if moment != "rcpt" and answer is None else {}
    assert Counter(server.recipients) == Counter(everybody) + Counter(twice)
    assert len({mail["Message-ID"] for _, mail in server.handler.mails}) == len(everybody)
    assert rows(database, "state") == [("sent",)] * 4


@pytest.mark.slow
def test_killed_at_any_moment(database, server, drainers):
    everybody = [f"{n}@example.org" for n in range(60)]
    for email in everybody:
        put(database, email, "sign-in")
    busy = threading.Event()
    server.handler.on = lambda moment: busy.set()
    chance, kills, now = random.Random(0), 0, NOW
    while any(state != "sent" for (state,) in rows(database, "state")):
        busy.clear()
        process, wait = drainers(now)
        busy.wait(5)
        time.sleep(chance.uniform(0, 0.02))
        with contextlib.suppress(ProcessLookupError):  # it had sent the last mail
            os.kill(process, signal.SIGKILL)
        kills += wait() == [str(signal.SIGKILL.value)]
        now += LEASE
    assert kills >= 5
    assert set(server.recipients) == set(everybody)
    assert len(server.recipients) - len(everybody) <= kills  # at most the one mail at hand
    assert len({mail["Message-ID"] for _, mail in server.handler.mails}) == len(everybody)


def test_drainers_side_by_side_share_the_work(database, server, drainers):
    everybody = [f"{n}@example.org" for n in range(60)]
    for email in everybody:
        put(database, email, "sign-in")
    _, wait = drainers(NOW, 4)
    assert wait() == ["0"] * 4
    assert sorted(server.recipients) == sorted(everybody)
