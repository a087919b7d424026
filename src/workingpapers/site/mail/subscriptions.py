"""Subscriptions to the digest: asked for in a form, confirmed by mail, changed and ended by links that are signed.

A wish that is not confirmed leaves no trace: it travels in the link of the confirmation mail, signed. So nobody can
subscribe somebody else or change what they get, addresses that strangers typed are not kept, and asking does the same
whether or not an address is known. What is confirmed is a row with a state:

- "active": gets digests.
- "ended": its reader said so. "bounced": the server knows no such address. Confirming again makes either active.

Links in digests open the settings of one subscription; they prove that their holder reads its mail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Connection, RowMapping, select, update

from workingpapers.errors import UserError, unknown_name
from workingpapers.papers.topics import load_topics
from workingpapers.papers.topics import topic as check_topic
from workingpapers.site import tokens
from workingpapers.site.database import inserting
from workingpapers.site.mail.message import clean_address, compose
from workingpapers.site.mail.outbox import enqueue
from workingpapers.site.schema import outbox, subscriptions
from workingpapers.site.search.query import plain
from workingpapers.site.settings import Settings

FREQUENCIES = {"daily": "every day", "weekdays": "Monday to Friday", "weekly": "every Monday"}
MOST_TOPICS, MOST_QUERIES, LONGEST_QUERY = 20, 5, 200  # so that a link with a wish in it stays a link
CONFIRM_WITHIN = 3 * 86_400  # seconds: over a weekend
LINK_AGE = 2 * 365 * 86_400  # seconds that a digest's links work; laws ask for a month, an old mail may be found later
STOP_PATH, MANAGE_PATH, CONFIRM_PATH = "/subscription/unsubscribe", "/subscription", "/subscription/confirm"


@dataclass(frozen=True)
class Wish:
    """What somebody wants to get.

    Attributes:
        frequency: a key of `FREQUENCIES`.
        topics: ids; papers of these topics and of those below them.
        queries: searches. Without topics and queries, whatever trends.
    """

    frequency: str
    topics: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()

    def as_words(self) -> str:
        """Return the wish as a sentence's end."""
        tree = load_topics()  # which may have lost a topic since it was chosen
        wanted = [tree[name].title for name in self.topics if name in tree] + [f"“{query}”" for query in self.queries]
        what = f"what trends in {', '.join(wanted)}" if wanted else "whatever trends"
        return f"{what}, {FREQUENCIES[self.frequency]}"


@dataclass(frozen=True)
class Subscription:
    """A subscription as it stands in the database."""

    id: int
    email: str
    state: str
    wish: Wish
    confirmed: float


def read_wish(frequency: str, topics: Iterable[str] = (), queries: Iterable[str] = ()) -> Wish:
    """Return what a form asks for.

    Raises:
        UserError: an unknown frequency or topic, too much of something, or a search that is none.
    """
    if frequency not in FREQUENCIES:
        raise unknown_name("frequency", frequency, FREQUENCIES)
    chosen = tuple(dict.fromkeys(check_topic(name).id for name in topics))
    kept = tuple(dict.fromkeys(filter(None, map(plain, queries))))
    if len(chosen) > MOST_TOPICS:
        raise UserError(f"A subscription may have {MOST_TOPICS} topics at most; choose one above them instead.")
    if len(kept) > MOST_QUERIES:
        raise UserError(f"A subscription may have {MOST_QUERIES} searches at most; got {len(kept)}.")
    for query in kept:
        if len(query) > LONGEST_QUERY:
            raise UserError(f"A search may have {LONGEST_QUERY} characters at most; got {query[:40]!r}...")
    return Wish(frequency, chosen, kept)


def ask(connection: Connection, settings: Settings, email: str, wish: Wish, now: float) -> None:
    """Send a mail that asks to confirm a wish. What the person who asked may know does not depend on the address.

    Raises:
        UserError: `email` is no address.
    """
    address = clean_address(email)
    token = tokens.sign(settings, "subscribe", [address, wish.frequency, wish.topics, wish.queries], now)
    link = f"{settings.address}{CONFIRM_PATH}?{urlencode({'token': token})}"
    text = (
        f"Somebody, probably you, asked {settings.address} to send this address {wish.as_words()}.\n\n"
        f"To get it, open this link within three days and press the button there:\n\n{link}\n\n"
        "If it was not you, do nothing: no more mail will come, and the address is not kept.\n"
    )
    enqueue(connection, "confirm", address, compose(settings, address, "Confirm your subscription", text), now)


def read_confirmation(settings: Settings, token: str, now: float) -> tuple[str, Wish]:
    """Return the address and the wish of a confirmation link.

    Raises:
        UserError: it is not one of ours, or too old.
    """
    address, frequency, topics, queries = tokens.read(settings, "subscribe", token, CONFIRM_WITHIN, now)
    return address, read_wish(frequency, topics, queries)


def confirm(connection: Connection, settings: Settings, token: str, now: float) -> Subscription:
    """Make a wish a subscription; one that the address has already is changed to it. A link works once.

    Raises:
        UserError: it is not one of ours, too old, or was used.
    """
    address, wish = read_confirmation(settings, token, now)
    tokens.use_once(connection, token, now)
    values = _columns(wish) | {"state": "active", "confirmed": now}
    made = inserting(connection, subscriptions).values(email=address, created=now, **values)
    number = connection.execute(
        made.on_conflict_do_update(index_elements=["email"], set_=values).returning(subscriptions.c.id)
    ).scalar_one()
    found = by_id(connection, number)
    assert found
    return found


def by_id(connection: Connection, number: int) -> Subscription | None:
    """Return a subscription, or None if it is not there (any more)."""
    row = connection.execute(select(subscriptions).where(subscriptions.c.id == number)).mappings().one_or_none()
    return read_row(row) if row else None


def read_row(row: RowMapping) -> Subscription:
    """Return a row of the table as a subscription."""
    wish = Wish(row["frequency"], tuple(row["topics"]), tuple(row["queries"]))
    return Subscription(row["id"], row["email"], row["state"], wish, row["confirmed"] or row["created"])


def link_token(settings: Settings, subscription: Subscription, now: float) -> str:
    """Return the token of the links in a subscription's digests."""
    return tokens.sign(settings, "subscription", [subscription.id, _digest(subscription.email)], now)


def by_token(connection: Connection, settings: Settings, token: str, now: float) -> Subscription:
    """Return the subscription whose link it is.

    Raises:
        UserError: the link is not one of ours, too old, or of a subscription that was deleted.
    """
    number, digest = tokens.read(settings, "subscription", token, LINK_AGE, now)
    found = by_id(connection, number)
    if found is None or _digest(found.email) != digest:  # numbers of deleted rows are given again
        raise UserError("This subscription was deleted. No mail is sent to it.")
    return found


def change(connection: Connection, subscription: Subscription, wish: Wish) -> None:
    """Give a subscription another wish, and make it active if its reader had ended it."""
    mine = (subscriptions.c.id == subscription.id) & subscriptions.c.state.in_(("active", "ended"))
    connection.execute(update(subscriptions).where(mine).values(state="active", **_columns(wish)))


def end(connection: Connection, subscription: Subscription) -> None:
    """End a subscription: no digest leaves from now on. To end it again changes nothing."""
    mine = (subscriptions.c.id == subscription.id) & (subscriptions.c.state == "active")
    connection.execute(update(subscriptions).where(mine).values(state="ended"))
    waiting = (outbox.c.subscription_id == subscription.id) & (outbox.c.state == "waiting")
    connection.execute(update(outbox).where(waiting).values(state="failed", message=b"", error="unsubscribed"))


def _columns(wish: Wish) -> dict[str, Any]:
    return {"frequency": wish.frequency, "topics": list(wish.topics), "queries": list(wish.queries)}


def _digest(email: str) -> str:
    return hashlib.sha256(email.encode()).hexdigest()[:16]
