"""Signing in, sessions, API tokens; what is out is all of it, what is deleted leaves nothing; no vote is lost."""

import email
import email.policy
import json
import re
import signal
import subprocess
import sys
import threading
from urllib.parse import unquote

import pytest
from papers_made import made
from sqlalchemy import event, func, insert, select

from workingpapers.errors import UserError
from workingpapers.site import marks, people, submissions
from workingpapers.site.database import open_database, writing
from workingpapers.site.schema import (
    deliveries,
    metadata,
    outbox,
    papers,
    picks,
    sessions,
    signals,
    subscriptions,
    trends,
    votes,
)
from workingpapers.site.settings import Settings

NOW = 1_795_608_000.0  # 2026-11-25, noon
SETTINGS = Settings(database="sqlite://", secret="s" * 32, curators=frozenset(["curator@b.example"]))


def mailed_token(connection, address):
    """The token of the last mail to an address."""
    found = select(outbox.c.message).where(outbox.c.email == address).order_by(outbox.c.id.desc()).limit(1)
    text = email.message_from_bytes(connection.execute(found).scalar_one(), policy=email.policy.default).get_content()
    return unquote(re.search(r"token=(\S+)", text)[1])


def signed_in(connection, address="a@b.example", now=NOW):
    people.send_link(connection, SETTINGS, address, "/me", now)
    return people.sign_in(connection, SETTINGS, mailed_token(connection, address), now)


def contents(connection):
    """Every row of every table."""
    return {name: sorted(map(repr, connection.execute(select(table)))) for name, table in metadata.tables.items()}


def test_a_link_signs_in_once_and_the_session_lasts_its_time(database):
    with writing(database) as connection:
        people.send_link(connection, SETTINGS, " A@B.example ", "/papers/x", NOW)
        token = mailed_token(connection, "a@b.example")
        assert people.read_link(SETTINGS, token, NOW) == ("a@b.example", "/papers/x")
        first = people.sign_in(connection, SETTINGS, token, NOW)
        assert (first.user.email, first.go_on) == ("a@b.example", "/papers/x")
        with pytest.raises(UserError, match="used already"):
            people.sign_in(connection, SETTINGS, token, NOW + 1)
        over = NOW + people.SESSION_AGE
        assert people.user_of_session(connection, first.secret, over - 1) == first.user
        assert people.user_of_session(connection, first.secret, over) is None
        assert people.user_of_session(connection, "guessed", NOW) is None
        again = signed_in(connection, now=NOW + 60)
        assert again.user == first.user
        assert again.secret != first.secret


def test_a_link_is_too_old_after_half_an_hour(sqlite_database):
    with writing(sqlite_database) as connection:
        people.send_link(connection, SETTINGS, "a@b.example", "/", NOW)
        with pytest.raises(UserError, match="expired"):
            people.sign_in(connection, SETTINGS, mailed_token(connection, "a@b.example"), NOW + 1800)


def test_asking_looks_nobody_up(database):
    """The same statements run for an address that is known and for one that is not, so the time is the same too."""
    statements = {}
    with writing(database) as connection:
        signed_in(connection, "known@b.example")
        for address in ("unknown@b.example", "known@b.example"):
            heard = []
            event.listen(connection, "before_cursor_execute", lambda *a, heard=heard: heard.append(a[2]))
            people.send_link(connection, SETTINGS, address, "/", NOW + 7200)
            statements[address] = list(heard)  # listeners stay
    unknown, known = statements["unknown@b.example"], statements["known@b.example"]
    assert len(known) > 0
    assert unknown == known
    assert "users" not in " ".join(known)


def test_only_digests_of_secrets_are_kept(database):
    with writing(database) as connection:
        secret = signed_in(connection).secret
        user = people.user_of_session(connection, secret, NOW)
        token = people.make_api_token(connection, user, "my script", NOW)
        assert people.user_of_api_token(connection, token) == user
        everything = repr({k: v for k, v in contents(connection).items() if k != "outbox"})
    assert secret not in everything
    assert token not in everything


def test_signing_out_ends_one_session_or_all(database):
    with writing(database) as connection:
        one, two, three = (signed_in(connection, now=NOW + n) for n in range(3))
        other = signed_in(connection, "other@b.example")

        def alive():
            return [people.user_of_session(connection, s.secret, NOW + 5) is not None for s in (one, two, three, other)]

        people.sign_out(connection, two.secret)
        assert alive() == [True, False, True, True]
        people.sign_out_everywhere(connection, one.user)
        assert alive() == [False, False, False, True]


def test_sessions_that_are_over_are_deleted(sqlite_database):
    with writing(sqlite_database) as connection:
        signed_in(connection)
        signed_in(connection, "other@b.example", now=NOW + people.SESSION_AGE)
        assert connection.execute(select(func.count()).select_from(sessions)).scalar_one() == 1


def test_api_tokens_are_named_listed_bounded_and_taken_back_by_their_owner(database):
    with writing(database) as connection:
        user, other = signed_in(connection).user, signed_in(connection, "other@b.example").user
        token = people.make_api_token(connection, user, "  my   script ", NOW)
        (listed,) = people.api_tokens_of(connection, user)
        assert (listed.name, listed.created) == ("my script", NOW)
        people.take_back_api_token(connection, other, listed.id)
        assert people.user_of_api_token(connection, token) == user
        people.take_back_api_token(connection, user, listed.id)
        assert people.user_of_api_token(connection, token) is None
        for number in range(people.MOST_TOKENS):
            people.make_api_token(connection, user, str(number), NOW)
        with pytest.raises(UserError, match="20 tokens already"):
            people.make_api_token(connection, user, "more", NOW)
        for name in ("", " ", "x" * 61, "a\0b"):
            with pytest.raises(UserError, match="1 to 60 characters"):
                people.make_api_token(connection, other, name, NOW)


def lived(connection, address):
    """Sign somebody in and have them do everything."""
    user = signed_in(connection, address).user
    ids = list(connection.execute(select(papers.c.id)).scalars())
    for paper in ids:
        marks.vote(connection, user.id, paper, NOW)
        marks.keep(connection, user.id, paper, NOW, read=paper == ids[0])
        marks.add_tag(connection, user.id, paper, "To Read")
    marks.save_search(connection, user.id, '"frozen features"', NOW, alert=True)
    people.make_api_token(connection, user, "script", NOW)
    submissions.submit(connection, user.id, f"2401.{user.id:05}", NOW)
    row = {"email": address, "frequency": "daily", "topics": ["x"], "queries": [], "state": "active", "created": NOW}
    number = connection.execute(insert(subscriptions).values(row).returning(subscriptions.c.id)).scalar_one()
    connection.execute(insert(deliveries).values(subscription_id=number, paper_id=ids[0], edition="2026-11-24"))
    return user


def test_all_own_data_comes_out_as_json_and_nobody_elses(database):
    with writing(database) as connection:
        made(connection, 2)
        user = lived(connection, "curator@b.example")
        people.pick(connection, SETTINGS, user, 1, NOW)
        lived(connection, "other@b.example")
        out = json.loads(json.dumps(people.export(connection, user)))
    assert out["email"] == "curator@b.example"
    assert [row["slug"] for row in out["votes"]] == ["paper-1", "paper-2"]
    assert [(row["slug"], row["tag"]) for row in out["tags"]] == [("paper-1", "to read"), ("paper-2", "to read")]
    assert [(row["slug"], row["read"]) for row in out["library"]] == [("paper-1", True), ("paper-2", False)]
    assert [(row["query"], row["alert"]) for row in out["searches"]] == [('"frozen features"', True)]
    assert [(row["slug"], row["day"]) for row in out["picks"]] == [("paper-1", "2026-11-25")]
    assert out["subscription"]["frequency"] == "daily"
    assert out["delivered"] == [{"slug": "paper-1", "edition": "2026-11-24"}]
    assert out["submissions"] == [f"2401.{user.id:05}"]
    assert [row["name"] for row in out["api_tokens"]] == ["script"]
    assert [row["kind"] for row in out["mails"]] == ["sign-in"]
    assert "other@" not in json.dumps(out)


def test_the_export_has_every_table_that_names_a_person(sqlite_database):
    """A table that is added later must be added there too."""
    named = {n for n, table in metadata.tables.items() if {"user_id", "email", "subscription_id"} & set(table.c.keys())}
    assert named == {
        *("users", "sessions", "api_tokens", "votes", "tags", "library", "searches", "picks"),
        *("subscriptions", "outbox", "deliveries"),
    }


def test_a_deleted_account_leaves_nothing(database):
    with writing(database) as connection:
        made(connection, 3)
        lived(connection, "other@b.example")
        before = contents(connection)
        user = lived(connection, "curator@b.example")
        people.pick(connection, SETTINGS, user, 1, NOW)
        people.delete_account(connection, user)
        after = contents(connection)
    assert "curator@" not in repr(after)
    different = {name for name in before if before[name] != after[name]}
    # The link stays used up, the pick stays without a name, and so does the paper that was asked for.
    assert different == {"used_tokens", "picks", "syncs"}
    with database.connect() as connection:
        assert connection.execute(select(picks.c.user_id)).scalars().all() == [None]
        assert len(submissions.waiting(connection)) == 2
        assert submissions.of_user(connection, user.id) == []


def test_only_curators_pick(database):
    with writing(database) as connection:
        ids = made(connection, 2)
        curator, reader = signed_in(connection, "curator@b.example").user, signed_in(connection).user
        with pytest.raises(UserError, match="Only curators"):
            people.pick(connection, SETTINGS, reader, ids[0], NOW)
        for paper in (*ids, ids[0]):
            people.pick(connection, SETTINGS, curator, paper, NOW)
        assert people.picked_on(connection, "2026-11-25") == ids
        people.pick(connection, SETTINGS, curator, ids[0], NOW, picked=False)
        assert people.picked_on(connection, "2026-11-25") == ids[1:]
        assert people.picked_on(connection, "2026-11-24") == []


def test_many_who_vote_at_once_are_all_counted(database):
    with writing(database) as connection:
        (paper,) = made(connection, 1)
        users = [signed_in(connection, f"user{n}@b.example").user for n in range(6)]

    def click(user):
        for n in range(7):  # ends with a vote
            with writing(database) as connection:
                if n % 2:
                    marks.withdraw_vote(connection, user.id, paper)
                else:
                    marks.vote(connection, user.id, paper, NOW)

    threads = [threading.Thread(target=click, args=[user]) for user in users * 2]  # each from two windows
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.connect() as connection:
        rows = connection.execute(select(func.count()).select_from(votes)).scalar_one()
        assert connection.execute(select(papers.c.votes)).scalar_one() == rows > 0
        assert connection.execute(select(signals.c.amount)).scalar_one() == rows
        day = select(trends.c.score).where(trends.c.period == "day")
        assert connection.execute(day).scalar_one() == rows * 10 * 64


VOTER = """
import sys
from workingpapers.site import marks
from workingpapers.site.database import open_database, writing
engine = open_database(sys.argv[1])
for paper in range(1, 100_000):
    with writing(engine) as connection:
        marks.vote(connection, 1, paper, 1_795_608_000.0)
    print(paper, flush=True)  # acknowledged
"""


def test_a_killed_voter_loses_no_acknowledged_vote(database):
    with writing(database) as connection:
        made(connection, 400)
        signed_in(connection)
    url = database.url.render_as_string(hide_password=False)
    acknowledged = 0
    with subprocess.Popen([sys.executable, "-c", VOTER, url], stdout=subprocess.PIPE, text=True) as voter:
        for _ in range(40):
            acknowledged = int(voter.stdout.readline())
        voter.send_signal(signal.SIGKILL)
        whole_lines = voter.stdout.read().split("\n")[:-1]
    acknowledged = int([acknowledged, *whole_lines][-1])
    engine = open_database(url)
    with engine.connect() as connection:
        kept = connection.execute(select(votes.c.paper_id).order_by(votes.c.paper_id)).scalars().all()
        counted = connection.execute(select(papers.c.id).where(papers.c.votes == 1)).scalars().all()
        moved = connection.execute(select(signals.c.paper_id).where(signals.c.amount == 1)).scalars().all()
    engine.dispose()
    assert len(kept) in (acknowledged, acknowledged + 1)  # one may be committed and not yet said
    assert kept == sorted(counted) == sorted(moved) == list(range(1, len(kept) + 1))
