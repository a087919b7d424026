"""People: signing in by a link in a mail, sessions, API tokens, and all their data out again or gone.

There are no passwords, and signing up is signing in: whoever asks for a link gets the same mail, whether or not the
address is known, because asking looks nobody up. The person is made when the link's button is pressed. Of sessions and
API tokens only digests are kept. What people do with papers is in `site.marks`.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Connection, delete, func, insert, select

from workingpapers.errors import UserError
from workingpapers.site import marks, submissions, tokens
from workingpapers.site.database import inserting
from workingpapers.site.mail.message import clean_address, compose
from workingpapers.site.mail.outbox import enqueue
from workingpapers.site.schema import (
    api_tokens,
    deliveries,
    library,
    outbox,
    papers,
    picks,
    searches,
    sessions,
    subscriptions,
    tags,
    users,
    votes,
)
from workingpapers.site.settings import Settings
from workingpapers.site.trending import day_of

CONFIRM_PATH = "/sign-in/confirm"
LINK_AGE = 30 * 60.0  # seconds: long enough for slow mail, short enough for a mailbox that others see later
SESSION_AGE = 60 * 86_400.0  # seconds
MOST_TOKENS = 20  # API tokens of a person
_LONGEST_NAME = 60


@dataclass(frozen=True)
class User:
    """A person who is signed in."""

    id: int
    email: str


@dataclass(frozen=True)
class SignedIn:
    """What pressing the link's button gives: the person, the session's secret for the cookie, and where they were."""

    user: User
    secret: str
    go_on: str


@dataclass(frozen=True)
class ApiToken:
    """An API token as its owner sees it later: all but the token."""

    id: int
    name: str
    created: float


def send_link(connection: Connection, settings: Settings, email: str, go_on: str, now: float) -> None:
    """Send a mail with a link that signs in. What is done does not depend on whether the address is known.

    Args:
        connection: of a transaction that writes.
        settings: of the page.
        email: as typed.
        go_on: a path of this page to go on to.
        now: seconds since 1970.

    Raises:
        UserError: `email` is no address.
    """
    address = clean_address(email)
    token = tokens.sign(settings, "sign-in", [address, go_on], now)
    link = f"{settings.address}{CONFIRM_PATH}?{urlencode({'token': token})}"
    text = (
        f"Somebody, probably you, asked to sign in to {settings.address} with this address.\n\n"
        f"Open this link within {LINK_AGE / 60:.0f} minutes and press the button there. It works once:\n\n{link}\n\n"
        "If it was not you, do nothing: without the link nobody can sign in as you.\n"
    )
    enqueue(connection, "sign-in", address, compose(settings, address, "Sign in to Working Papers", text), now)


def read_link(settings: Settings, token: str, now: float) -> tuple[str, str]:
    """Return the address and the path to go on to that a link holds, without using it up.

    Raises:
        UserError: it is none of ours, or too old.
    """
    address, go_on = tokens.read(settings, "sign-in", token, LINK_AGE, now)
    return str(address), str(go_on)


def sign_in(connection: Connection, settings: Settings, token: str, now: float) -> SignedIn:
    """Use a link up and begin a session; the person is made if the address is new.

    Raises:
        UserError: the link is none of ours, too old, or was used.
    """
    address, go_on = read_link(settings, token, now)
    tokens.use_once(connection, token, now)
    connection.execute(delete(sessions).where(sessions.c.expires <= now))
    connection.execute(inserting(connection, users).values(email=address, created=now).on_conflict_do_nothing())
    number = connection.execute(select(users.c.id).where(users.c.email == address)).scalar_one()
    secret = secrets.token_urlsafe(32)
    session = {"digest": _digest(secret), "user_id": number, "expires": now + SESSION_AGE}
    connection.execute(insert(sessions).values(session))
    return SignedIn(User(number, address), secret, go_on)


def user_of_session(connection: Connection, secret: str, now: float) -> User | None:
    """Return whose session it is; None if it is none, or over."""
    mine = (sessions.c.digest == _digest(secret)) & (sessions.c.expires > now)
    row = connection.execute(select(users.c.id, users.c.email).join(sessions).where(mine)).one_or_none()
    return User(*row) if row else None


def sign_out(connection: Connection, secret: str) -> None:
    """End a session."""
    connection.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def sign_out_everywhere(connection: Connection, user: User) -> None:
    """End all of a person's sessions. API tokens stay: they are taken back one by one."""
    connection.execute(delete(sessions).where(sessions.c.user_id == user.id))


def make_api_token(connection: Connection, user: User, name: str, now: float) -> str:
    """Return a new API token, which is never shown again.

    Raises:
        UserError: a name that is empty or too long, or too many tokens.
    """
    name = " ".join(name.split())
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        raise UserError(f"Give the token a name of 1 to {_LONGEST_NAME} characters, such as what will use it.")
    owned = select(func.count()).select_from(api_tokens).where(api_tokens.c.user_id == user.id)
    if connection.execute(owned).scalar_one() >= MOST_TOKENS:
        raise UserError(f"You have {MOST_TOKENS} tokens already. Take one back first.")
    token = f"wp_{secrets.token_urlsafe(32)}"
    row = {"digest": _digest(token), "user_id": user.id, "name": name, "created": now}
    connection.execute(insert(api_tokens).values(row))
    return token


def api_tokens_of(connection: Connection, user: User) -> list[ApiToken]:
    """Return a person's API tokens, the latest first."""
    columns = (api_tokens.c.id, api_tokens.c.name, api_tokens.c.created)
    found = select(*columns).where(api_tokens.c.user_id == user.id).order_by(api_tokens.c.id.desc())
    return [ApiToken(*row) for row in connection.execute(found)]


def take_back_api_token(connection: Connection, user: User, number: int) -> None:
    """Make one of a person's API tokens worthless; what is not theirs, or gone, stays as it is."""
    connection.execute(delete(api_tokens).where(api_tokens.c.id == number, api_tokens.c.user_id == user.id))


def user_of_api_token(connection: Connection, token: str) -> User | None:
    """Return whose API token it is; None if it is none, or was taken back."""
    found = select(users.c.id, users.c.email).join(api_tokens).where(api_tokens.c.digest == _digest(token))
    row = connection.execute(found).one_or_none()
    return User(*row) if row else None


def export(connection: Connection, user: User) -> dict[str, Any]:
    """Return all that is kept about a person, as JSON can hold it: secrets are digests here too, and left out."""

    def rows(table: Any, *names: str) -> list[dict[str, Any]]:
        found = select(*(table.c[name] for name in names)).where(table.c.user_id == user.id).order_by(table.c[names[0]])
        return [dict(row) for row in connection.execute(found).mappings()]

    def marked(table: Any, *names: str) -> list[dict[str, Any]]:
        paper = [papers.c[name].label(name) for name in ("slug", "title", "arxiv", "doi")]
        found = select(*paper, *(table.c[name] for name in names)).join(papers).where(table.c.user_id == user.id)
        return [dict(row) for row in connection.execute(found.order_by(papers.c.id, *names)).mappings()]

    mine = subscriptions.c.email == user.email
    subscription = connection.execute(select(subscriptions).where(mine)).mappings().one_or_none()
    both = deliveries.join(subscriptions).join(papers)
    sent = select(papers.c.slug, deliveries.c.edition).select_from(both).where(mine)
    mails = select(outbox.c.kind, outbox.c.created, outbox.c.state).where(outbox.c.email == user.email)
    return {
        "email": user.email,
        "created": connection.execute(select(users.c.created).where(users.c.id == user.id)).scalar_one(),
        "votes": marked(votes, "at"),
        "tags": marked(tags, "tag"),
        "library": marked(library, "read", "at"),
        "searches": rows(searches, "query", "alert", "created"),
        "picks": marked(picks, "day"),
        "submissions": submissions.of_user(connection, user.id),
        "subscription": {name: subscription[name] for name in subscription if name != "id"} if subscription else None,
        "delivered": [dict(row) for row in connection.execute(sent.order_by(deliveries.c.edition)).mappings()],
        "sessions": rows(sessions, "expires"),
        "api_tokens": rows(api_tokens, "name", "created"),
        "mails": [dict(row) for row in connection.execute(mails.order_by(outbox.c.id)).mappings()],
    }


def delete_account(connection: Connection, user: User) -> None:
    """Delete a person and all that is kept about them, their subscription and their mails too.

    Their votes are withdrawn first, so that counts and trends are as if they had never voted. A paper that they picked
    stays picked, by nobody.
    """
    connection.execute(select(users.c.id).where(users.c.id == user.id).with_for_update())  # no vote comes in between
    voted = select(votes.c.paper_id).where(votes.c.user_id == user.id).order_by(votes.c.paper_id)
    for paper in connection.execute(voted).scalars().all():
        marks.withdraw_vote(connection, user.id, paper)
    submissions.forget_user(connection, user.id)
    connection.execute(delete(subscriptions).where(subscriptions.c.email == user.email))
    connection.execute(delete(outbox).where(outbox.c.email == user.email))
    connection.execute(delete(users).where(users.c.id == user.id))


def is_curator(settings: Settings, user: User) -> bool:
    """Whether a person may pick the day's papers."""
    return user.email in settings.curators


def pick(
    connection: Connection, settings: Settings, user: User, paper: int, now: float, *, picked: bool = True
) -> None:
    """Put a paper among today's picks, or take it out again.

    Raises:
        UserError: the person is no curator.
    """
    if not is_curator(settings, user):
        raise UserError("Only curators pick papers; who they are is set by whoever runs this page.")
    day = day_of(now).isoformat()
    if picked:
        row = inserting(connection, picks).values(day=day, paper_id=paper, user_id=user.id)
        connection.execute(row.on_conflict_do_nothing())
    else:
        connection.execute(delete(picks).where(picks.c.day == day, picks.c.paper_id == paper))


def picked_on(connection: Connection, day: str) -> list[int]:
    """Return the papers that curators picked on a day, by id."""
    found = select(picks.c.paper_id).where(picks.c.day == day).order_by(picks.c.paper_id)
    return list(connection.execute(found).scalars())


def _digest(secret: str) -> str:
    """Return what is kept of a secret. It is random and long, so that a plain hash cannot be searched backwards."""
    return hashlib.sha256(secret.encode()).hexdigest()
