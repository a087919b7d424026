"""Tokens say what was signed, for one purpose, for a time, and are used up once."""

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from workingpapers.errors import UserError
from workingpapers.site.database import writing
from workingpapers.site.schema import used_tokens
from workingpapers.site.settings import Settings
from workingpapers.site.tokens import REMEMBERED, read, sign, use_once

SETTINGS = Settings(database="sqlite://", secret="s" * 32)
OTHER = Settings(database="sqlite://", secret="t" * 32)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
AT = 1_800_000_000.5


def test_a_token_says_what_was_signed_until_it_is_too_old():
    token = sign(SETTINGS, "sign-in", {"email": "ä@b.c", "n": [1, None]}, now=AT)
    assert read(SETTINGS, "sign-in", token, 60, now=AT + 59.9) == {"email": "ä@b.c", "n": [1, None]}
    with pytest.raises(UserError, match="expired"):
        read(SETTINGS, "sign-in", token, 60, now=AT + 60)


def test_without_a_time_the_clock_counts():
    assert read(SETTINGS, "sign-in", sign(SETTINGS, "sign-in", 7), 60) == 7
    with pytest.raises(UserError, match="expired"):
        read(SETTINGS, "sign-in", sign(SETTINGS, "sign-in", 7, now=time.time() - 61), 60)


def test_a_token_is_good_for_one_purpose_and_one_page():
    token = sign(SETTINGS, "confirm", 1, now=AT)
    for settings, purpose in ((SETTINGS, "sign-in"), (OTHER, "confirm")):
        with pytest.raises(UserError, match="not valid"):
            read(settings, purpose, token, 60, now=AT)


@given(st.data())
def test_no_changed_token_says_anything_else(data):
    token = sign(SETTINGS, "sign-in", "a@b.example", now=AT)
    place = data.draw(st.integers(0, len(token) - 1))
    changed = token[:place] + data.draw(st.characters() | st.sampled_from(ALPHABET)) + token[place + 1 :]
    try:
        assert read(SETTINGS, "sign-in", changed, 60, now=AT) == "a@b.example"
    except UserError as error:
        assert "not valid" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert changed[:-1] == token[:-1]  # only the last character has bits that mean nothing


@given(st.text() | st.text(alphabet=ALPHABET + ".", max_size=60))
def test_what_was_never_signed_is_refused_politely(text):
    with pytest.raises(UserError, match="not valid"):
        read(SETTINGS, "sign-in", text, 60, now=AT)


def test_what_is_too_long_is_not_even_read():
    token = sign(SETTINGS, "sign-in", random.Random(0).randbytes(8192).hex(), now=AT)  # no shorter when compressed
    assert len(token) > 8192
    with pytest.raises(UserError, match="not valid"):
        read(SETTINGS, "sign-in", token, 60, now=AT)


def test_other_spellings_of_a_used_token_are_used_too(database):
    token = sign(SETTINGS, "sign-in", 1, now=AT)
    valid = []
    for spelling in {token[:-1] + last for last in ALPHABET}:
        try:
            read(SETTINGS, "sign-in", spelling, 60, now=AT)
        except UserError:
            continue
        valid.append(spelling)
    assert len(valid) > 1  # the trap is there
    with writing(database) as connection:
        use_once(connection, valid[0], now=AT)
    for other in valid:
        with pytest.raises(UserError, match="used already"), writing(database) as connection:
            use_once(connection, other, now=AT)


def test_two_tokens_of_one_moment_are_two(database):
    with writing(database) as connection:
        for _ in range(2):
            use_once(connection, sign(SETTINGS, "sign-in", 1, now=AT), now=AT)


def test_of_many_who_try_one_succeeds(database):
    token = sign(SETTINGS, "sign-in", 1, now=AT)
    outcomes = []

    def attempt():
        try:
            with writing(database) as connection:
                use_once(connection, token, now=AT)
        except UserError:
            outcomes.append("refused")
        else:
            outcomes.append("used")

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["used"]


def test_used_tokens_are_forgotten_when_none_of_them_could_be_good(sqlite_database):
    for now in (AT, AT + 1, AT + REMEMBERED):
        with writing(sqlite_database) as connection:
            use_once(connection, sign(SETTINGS, "sign-in", 1, now=now), now=now)
    with sqlite_database.connect() as connection:
        kept = connection.execute(select(used_tokens.c.expires)).scalars().all()
    assert sorted(kept) == [AT + 1 + REMEMBERED, AT + 2 * REMEMBERED]
