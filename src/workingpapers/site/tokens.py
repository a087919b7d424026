"""Signed tokens for links in mails: who holds one may do one thing, for a time, and where asked only once.

A token is itsdangerous' URL-safe signature (HMAC-SHA256 with the page's secret) over a value, its time and a random
mark. The purpose is the salt of the key, so that a token for one thing is worthless for another. Single use is kept by
what was signed, not by the whole text: the last character of a signature has bits that mean nothing, so that several
texts are valid.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import Connection, delete

from workingpapers.errors import UserError
from workingpapers.site.database import inserting
from workingpapers.site.schema import used_tokens
from workingpapers.site.settings import Settings

REMEMBERED = 30 * 86_400.0  # seconds that a used token is remembered; none that works once may be good for longer
_LONGEST = 8192  # characters; what is longer isn't ours
_NOT_OURS = "This link is not valid. The mail program may have cut it off: copy all of it, or ask for a new one."


def sign(settings: Settings, purpose: str, value: Any, now: float | None = None) -> str:
    """Return a token.

    Args:
        settings: with the secret.
        purpose: what it is for, such as "sign-in".
        value: what it says; anything that JSON can hold (tuples come back as lists). Whoever has the token can read it.
        now: seconds since 1970; None for the clock's.
    """
    at = time.time() if now is None else now
    return str(_serializer(settings, purpose).dumps([value, at, secrets.token_urlsafe(9)]))


def read(settings: Settings, purpose: str, token: str, max_age: float, now: float | None = None) -> Any:
    """Return what a token says.

    Args:
        settings: with the secret.
        purpose: what it must be for.
        token: as it came.
        max_age: seconds for which it is good.
        now: seconds since 1970; None for the clock's.

    Raises:
        UserError: it was not signed here and for this, or is too old.
    """
    try:
        if len(token) > _LONGEST:
            raise BadData("too long")
        value, at, _ = _serializer(settings, purpose).loads(token)
    except (BadData, UnicodeError) as error:
        raise UserError(_NOT_OURS) from error
    if (time.time() if now is None else now) >= at + max_age:
        raise UserError("This link has expired. Ask for a new one.")
    return value


def use_once(connection: Connection, token: str, now: float) -> None:
    """Use a token up, within the transaction that does what it is for: of any number who try, one succeeds.

    Args:
        connection: of a transaction that writes.
        token: one that `read` accepted, with a `max_age` of `REMEMBERED` or less.
        now: seconds since 1970.

    Raises:
        UserError: it was used already.
    """
    digest = hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()
    row = inserting(connection, used_tokens).values(digest=digest, expires=now + REMEMBERED).on_conflict_do_nothing()
    if connection.execute(row.returning(used_tokens.c.digest)).one_or_none() is None:
        raise UserError("This link was used already, and did what it is for. To do it again, ask for a new one.")
    connection.execute(delete(used_tokens).where(used_tokens.c.expires <= now))


def _serializer(settings: Settings, purpose: str) -> URLSafeSerializer:
    signed = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
    return URLSafeSerializer(settings.secret, salt=f"workingpapers {purpose}", signer_kwargs=signed)
