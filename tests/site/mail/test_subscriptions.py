"""Nobody is subscribed, changed or ended but by who reads the mail; and asking tells nothing about an address."""

import re
from email import message_from_bytes
from email.policy import default
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import delete, select, update

from workingpapers.errors import UserError
from workingpapers.site import tokens
from workingpapers.site.database import writing
from workingpapers.site.mail.outbox import drain
from workingpapers.site.mail.subscriptions import (
    CONFIRM_WITHIN,
    LINK_AGE,
    MOST_QUERIES,
    Wish,
    ask,
    by_token,
    change,
    confirm,
    end,
    link_token,
    read_confirmation,
    read_wish,
)
from workingpapers.site.schema import outbox, subscriptions
from workingpapers.site.settings import Settings

NOW = 1_764_000_000.0
SETTINGS = Settings(database="sqlite://", secret="x" * 32, address="https://papers.example.org")
DAILY, WEEKLY = Wish("daily"), Wish("weekly", ("compression", "multimodal"), ("linear probe",))


def asked(engine, wish=DAILY, email="ada@example.org", now=NOW):
    """Ask, and return the token in the mail that comes."""
    with writing(engine) as connection:
        ask(connection, SETTINGS, email, wish, now)
    mails = []
    drain(engine, lambda message, to: mails.append(message_from_bytes(message, policy=default)), now=lambda: now)
    (link,) = re.findall(r"https://\S+/confirm\S+", mails[0].get_body(("plain",)).get_content())
    return parse_qs(urlsplit(link).query)["token"][0]


def confirmed(engine, token, now=NOW):
    with writing(engine) as connection:
        return confirm(connection, SETTINGS, token, now)


def kept(engine):
    with engine.connect() as connection:
        return connection.execute(select(subscriptions)).mappings().all()


def test_a_subscription_begins_with_its_confirmation(database):
    token = asked(database, WEEKLY, " Ada@Example.org")
    assert kept(database) == []
    assert read_confirmation(SETTINGS, token, NOW) == ("ada@example.org", WEEKLY)
    made = confirmed(database, token, NOW + 60)
    assert (made.email, made.state, made.wish, made.confirmed) == ("ada@example.org", "active", WEEKLY, NOW + 60)
    with database.connect() as connection:
        assert by_token(connection, SETTINGS, link_token(SETTINGS, made, NOW), NOW + LINK_AGE - 1) == made


def test_one_that_exists_is_changed_only_when_confirmed(database):
    first = confirmed(database, asked(database, DAILY))
    token = asked(database, WEEKLY)
    assert kept(database)[0]["frequency"] == "daily"
    assert confirmed(database, token, NOW + 5) == type(first)(first.id, first.email, "active", WEEKLY, NOW + 5)
    assert len(kept(database)) == 1


def test_asking_does_the_same_for_known_and_unknown_addresses(database):
    confirmed(database, asked(database, email="ada@example.org"))
    before = kept(database)
    for email in ("ada@example.org", "bob@example.org"):
        with writing(database) as connection:
            assert ask(connection, SETTINGS, email, DAILY, NOW) is None
    with database.connect() as connection:
        rows = connection.execute(select(outbox.c.kind, outbox.c.message).where(outbox.c.state == "waiting")).all()
    texts = [message_from_bytes(row.message, policy=default).get_content() for row in rows]
    assert re.sub(r"token=\S+", "", texts[0]) == re.sub(r"token=\S+", "", texts[1])
    assert kept(database) == before


def test_a_confirmation_works_once_and_for_three_days(database):
    token = asked(database)
    with pytest.raises(UserError, match="expired"):
        confirmed(database, token, NOW + CONFIRM_WITHIN)
    made = confirmed(database, token)
    with writing(database) as connection:
        end(connection, made)
    with pytest.raises(UserError, match="used already"):
        confirmed(database, token)
    assert kept(database)[0]["state"] == "ended"


def test_tokens_of_other_purposes_and_secrets_are_refused(database):
    made = confirmed(database, asked(database))
    manage = link_token(SETTINGS, made, NOW)
    other = Settings(database="sqlite://", secret="y" * 32)
    with database.connect() as connection:
        for token in (asked(database), tokens.sign(other, "subscription", [made.id, "x"], NOW), manage[:-9], "", "é\0"):
            with pytest.raises(UserError):
                by_token(connection, SETTINGS, token, NOW)
        with pytest.raises(UserError):
            read_confirmation(SETTINGS, manage, NOW)
        with pytest.raises(UserError, match="expired"):
            by_token(connection, SETTINGS, manage, NOW + LINK_AGE)


def test_a_link_never_opens_somebody_elses_subscription(database):
    """SQLite gives numbers of deleted rows again."""
    old = link_token(SETTINGS, confirmed(database, asked(database)), NOW)
    with writing(database) as connection:
        connection.execute(delete(subscriptions))
    confirmed(database, asked(database, email="bob@example.org"))
    with database.connect() as connection, pytest.raises(UserError, match="was deleted"):
        by_token(connection, SETTINGS, old, NOW)


@pytest.mark.parametrize("state", ["ended", "bounced"])
def test_confirming_again_brings_it_back(database, state):
    confirmed(database, asked(database))
    with writing(database) as connection:
        connection.execute(update(subscriptions).values(state=state))
    assert confirmed(database, asked(database, WEEKLY)).state == "active"


def test_its_reader_changes_and_ends_it(database):
    made = confirmed(database, asked(database))
    for deed, state, wish in (
        (lambda c: change(c, made, WEEKLY), "active", WEEKLY),
        (lambda c: end(c, made), "ended", WEEKLY),
        (lambda c: end(c, made), "ended", WEEKLY),
        (lambda c: change(c, made, DAILY), "active", DAILY),
    ):
        with writing(database) as connection:
            deed(connection)
            found = by_token(connection, SETTINGS, link_token(SETTINGS, made, NOW), NOW)
        assert (found.state, found.wish) == (state, wish)


def test_a_bounced_address_stays_so_until_it_is_confirmed(database):
    made = confirmed(database, asked(database))
    with writing(database) as connection:
        connection.execute(update(subscriptions).values(state="bounced"))
        change(connection, made, WEEKLY)
        end(connection, made)
    assert kept(database)[0]["state"] == "bounced"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frequency": "dayly"}, "Did you mean 'daily'"),
        ({"frequency": "daily", "topics": ["compresion"]}, "Did you mean 'compression'"),
        ({"frequency": "daily", "queries": ["x"] * 2 + list("abcdef")}, f"{MOST_QUERIES} searches at most"),
        ({"frequency": "daily", "queries": ["x" * 201]}, "200 characters"),
    ],
)
def test_wishes_that_cannot_be_are_named(given, said):
    with pytest.raises(UserError, match=said):
        read_wish(**given)


def test_wishes_are_tidied():
    assert read_wish("daily", ["pruning", "pruning"], [" a  b ", "", "a\u200cb\x1b", "\u202e"]) == Wish(
        "daily", ("pruning",), ("a b",)
    )
    assert Wish("daily", ("no longer there",)).as_words() == "whatever trends, every day"
    assert WEEKLY.as_words() == "what trends in Model compression, Multimodal, “linear probe”, every Monday"


def test_an_address_is_checked_before_anything_else(database):
    with writing(database) as connection, pytest.raises(UserError, match="not an e-mail address"):
        ask(connection, SETTINGS, "ada@example.org\nBcc: bob@example.org", DAILY, NOW)
