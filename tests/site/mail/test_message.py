"""Addresses and mails: what a stranger types becomes neither a header nor a second recipient."""

import string
from email import message_from_bytes
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.errors import UserError
from workingpapers.site.mail.message import WIRE, clean_address, compose
from workingpapers.site.settings import Settings

SETTINGS = Settings(database="sqlite://", secret="x" * 32, sender="Working Papers <papers@example.org>")


def sent(message):
    """A mail as its reader's program parses it."""
    return message_from_bytes(message.as_bytes(policy=WIRE).replace(b"\r\n", b"\n"), policy=default)


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("ada@example.org", "ada@example.org"),
        (" Ada.Lovelace+papers@Example.ORG ", "ada.lovelace+papers@example.org"),
        ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        ("o'neil_x@sub.a-b.co", "o'neil_x@sub.a-b.co"),
        ("a" * 64 + "@example.org", "a" * 64 + "@example.org"),
    ],
)
def test_addresses_are_taken_in_lower_case(typed, address):
    assert clean_address(typed) == address


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "ada",
        "ada@",
        "@example.org",
        "ada@example",
        "ada@@example.org",
        "a@b@example.org",
        "ada@example..org",
        ".ada@example.org",
        "ada.@example.org",
        "a..b@example.org",
        "ada@-example.org",
        "ada@example.123",
        "ada@127.0.0.1",
        "ada@[127.0.0.1]",
        "ada lovelace@example.org",
        "Ada <ada@example.org>",
        "ada@example.org,bob@example.org",
        "ada@example.org\nBcc: bob@example.org",
        "ada@example.org\r",
        "ada\x00@example.org",
        "ada@exa\u00admple.org",
        "\u0430da@example.org",
        "a" * 65 + "@example.org",
        "a@" + "b" * 64 + ".org",
        "a@" + "b." * 130 + "org",
    ],
)
def test_what_is_no_address_is_named(typed):
    if typed.strip() == "ada@example.org":
        assert clean_address(typed) == "ada@example.org"  # spaces around are a slip, and go
        return
    with pytest.raises(UserError, match="is not an e-mail address"):
        clean_address(typed)


@given(st.text(alphabet=string.printable + "\u2028\x85é", max_size=300))
def test_any_subject_stays_one_header(subject):
    mail = sent(compose(SETTINGS, "ada@example.org", subject, "Hello."))
    assert sorted(mail.keys()) == sorted(
        ["From", "To", "Subject", "Auto-Submitted", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"]
    )
    assert "".join(mail["Subject"].split()) == "".join(c for c in subject if c.isprintable() and c != " ")
    assert mail.get_content() == "Hello.\n"


@pytest.mark.parametrize("name", ["to", "headers"])
def test_line_breaks_in_other_headers_are_refused(name):
    evil = "ada@example.org\r\nBcc: bob@example.org"
    given = {"to": evil} if name == "to" else {"to": "ada@example.org", "headers": {"List-Id": evil}}
    with pytest.raises(ValueError, match="linefeed or carriage return"):
        compose(SETTINGS, subject="Hello", text="Hello.", **given)


def test_text_and_html_stand_side_by_side_in_seven_bits():
    message = compose(SETTINGS, "ada@example.org", "Grüße", "Schrödinger\n" + "x" * 2000, "<p>Schrödinger</p>")
    raw = message.as_bytes(policy=WIRE)
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 78
    assert b"\n" not in raw.replace(b"\r\n", b"")
    mail = sent(message)
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]  # the best comes last
    assert mail.get_body(("plain",)).get_content() == "Schrödinger\n" + "x" * 2000 + "\n"
    assert mail.get_body(("html",)).get_content() == "<p>Schrödinger</p>\n"
    assert mail["Subject"] == "Grüße"


def test_a_long_link_in_a_header_stays_as_it_is():
    link = f"<https://papers.example.org/subscription/unsubscribe?token={'abc.-_' * 60}>"
    message = compose(SETTINGS, "ada@example.org", "Hello", "Hello.", headers={"List-Unsubscribe": link})
    assert f"\r\nList-Unsubscribe: {link}\r\n".encode() in message.as_bytes(policy=WIRE)


def test_a_long_address_stays_as_it_is():
    address = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.org"
    raw = compose(SETTINGS, address, "Hello", "Hello.").as_bytes(policy=WIRE)
    assert f"\r\nTo: {address}\r\n".encode() in raw
