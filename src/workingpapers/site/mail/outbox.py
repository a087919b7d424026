"""The outbox: every mail is written to the database first, and leaves from there.

`enqueue` belongs to the caller's transaction: a mail is on its way exactly if what caused it is committed. `drain`
takes one row after another, hands its mail to a server, and marks it:

    waiting --claim--> sending --accepted--> sent
       ^                  |------- refused for good, or tried too often --> failed
       '---- deferred ----'

What is guaranteed, whenever drainers or the machine are killed:

- No mail is skipped. A row found in "sending" whose claim is older than `LEASE` belongs to a drainer that died, and is
  taken again.
- Two drainers never send the same mail: a claim is one atomic statement, committed before anything is sent, and it
  outlasts the longest time that `site.mail.smtp` may take.
- A mail is sent twice only if its drainer dies, or is cut off, after it has sent the end of the message and before the
  server's answer to that is committed. A server that has the whole message accepts it even if nobody waits for the
  answer, and SMTP has no way to ask later (RFC 1047). The mail is sent again, as RFC 5321 (4.5.4.1, 6.1) has it: rather
  twice than never. Both copies carry the same Message-ID, by which servers and readers can know one from a new mail.
  This concerns the one mail at hand, and the time that the server takes to answer.

A mail is emptied when it has left or failed: no link that signs somebody in stays in the database. Rows that are done
with are deleted after `KEPT`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate, make_msgid, parseaddr
from typing import Literal, NamedTuple

from sqlalchemy import Connection, Engine, case, delete, func, insert, or_, select, text, update

from workingpapers.site.database import writing
from workingpapers.site.mail.message import WIRE
from workingpapers.site.schema import outbox, subscriptions

Kind = Literal["digest", "confirm", "sign-in"]
Send = Callable[[bytes, str], None]  # of a message and its recipient; raises what is below, or any error to try again

# Whoever fills in a form with somebody else's address makes us write to them: so many mails of a kind to one address
# in so many seconds. Three an hour are enough for a person whose mail is slow; ten a day bound what a script can do.
LIMITS = ((3, 3600.0), (10, 86_400.0))
# A server that is down is asked again after 1, 2, 4, ... minutes and then every six hours; after four and a half days a
# mail is given up, as RFC 5321 (4.5.4.1) advises.
FIRST_WAIT, LONGEST_WAIT, MOST_ATTEMPTS = 60.0, 6 * 3600.0, 27
LEASE = 900.0  # seconds a claim holds; sending waits at most a minute for each of some eleven answers
KEPT = 30 * 86_400.0  # seconds
_OPEN = ("waiting", "sending")

_log = logging.getLogger(__name__)


class Refused(Exception):
    """The server will never take this mail; trying again is of no use."""


class Bounced(Refused):
    """The server knows no such recipient."""


class Unreachable(Exception):
    """No mail can be sent now, to anybody."""


class _Claim(NamedTuple):
    """A row that is ours until `LEASE` is over."""

    id: int
    kind: str
    email: str
    subscription_id: int | None
    message: bytes
    attempts: int


def enqueue(
    connection: Connection,
    kind: Kind,
    email: str,
    message: EmailMessage,
    now: float,
    subscription_id: int | None = None,
    edition: str | None = None,
) -> bool:
    """Put a mail into the outbox, within the caller's transaction.

    Args:
        connection: of a transaction that writes.
        kind: "confirm" and "sign-in", which strangers can cause, are limited by address (`LIMITS`); "digest" is not.
        email: the recipient, as `clean_address` returns it.
        message: with From, To and Subject; Date and Message-ID are added where missing.
        now: seconds since 1970.
        subscription_id, edition: of a digest; no two rows have the same pair.

    Returns:
        Whether it was taken. False if the address has had its share: say nothing of it to the person who asked, who
        may be somebody else.
    """
    if kind != "digest" and _too_many(connection, kind, email, now):
        _log.warning("%s mail not sent: the address had its share for now", kind)
        return False
    if "Date" not in message:
        message["Date"] = formatdate(now)
    if "Message-ID" not in message:
        message["Message-ID"] = make_msgid(domain=parseaddr(str(message["From"]))[1].rpartition("@")[2] or "localhost")
    row = {
        "kind": kind,
        "email": email,
        "subscription_id": subscription_id,
        "edition": edition,
        "message": message.as_bytes(policy=WIRE),
        "state": "waiting",
        "next_try": now,
        "created": now,
    }
    connection.execute(insert(outbox).values(row))
    return True


def drain(
    engine: Engine,
    send: Send,
    now: Callable[[], float] = time.time,
    stopped: Callable[[], bool] = lambda: False,
) -> Counter[str]:
    """Send what waits, one mail after another, until nothing is due.

    Mails that people wait for (sign-in, confirmation) go before digests.

    Args:
        engine: of the page's database.
        send: takes the message and its recipient; raises `Bounced` or `Refused` for good, `Unreachable` if no mail can
            be sent now (the rest waits for the next call), and anything else to have this one tried again later.
        now: the clock, seconds since 1970.
        stopped: asked before each mail; True ends the work.

    Returns:
        How many were "sent", "deferred" and "failed"; "unreachable" is 1 if that is why it ended.
    """
    done: Counter[str] = Counter()
    with writing(engine) as connection:
        done_with = outbox.c.state.not_in(_OPEN)  # of many, so that the few old ones are looked for by their age
        connection.execute(delete(outbox).where(done_with, outbox.c.created < now() - KEPT))
    while not stopped() and (claim := _claim(engine, now())):
        try:
            if claim.attempts > MOST_ATTEMPTS:  # whoever takes it dies
                raise Refused("Tried too often.")
            if claim.kind == "digest" and not _active(engine, claim):
                raise Refused("The subscription has ended.")
            send(claim.message, claim.email)
        except Refused as error:
            _finish(engine, claim, "failed", error)
            done["failed"] += 1
        except Exception as error:  # whatever went wrong, the mail is kept and tried again
            done[_defer(engine, claim, now(), error)] += 1
            if isinstance(error, Unreachable):
                done["unreachable"] += 1
                break
        else:
            _finish(engine, claim, "sent")
            done["sent"] += 1
    return done


def _claim(engine: Engine, now: float) -> _Claim | None:
    """Take the next row that is due, counting the attempt; None if there is none."""
    due = outbox.c.state.in_(_OPEN) & (outbox.c.next_try <= now)
    first = (
        select(outbox.c.id)
        .where(due)
        .order_by(case((outbox.c.kind == "digest", 1), else_=0), outbox.c.next_try, outbox.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer at a time anyway
    )
    taken = (
        update(outbox)
        .where(outbox.c.id == first.scalar_subquery(), due)
        .values(state="sending", attempts=outbox.c.attempts + 1, next_try=now + LEASE)
        .returning(*(outbox.c[name] for name in _Claim._fields))
    )
    with writing(engine) as connection:
        row = connection.execute(taken).one_or_none()
    return _Claim(*row) if row else None


def _active(engine: Engine, claim: _Claim) -> bool:
    with engine.connect() as connection:
        wanted = select(subscriptions.c.state).where(subscriptions.c.id == claim.subscription_id)
        return connection.execute(wanted).scalar() == "active"


def _finish(engine: Engine, claim: _Claim, state: Literal["sent", "failed"], error: Exception | None = None) -> None:
    """Mark a claimed row as done with, and empty it; an address that bounced gets no more digests."""
    with writing(engine) as connection:
        _mark(connection, claim, state=state, message=b"", error=_line(error))
        if isinstance(error, Bounced):
            theirs = (subscriptions.c.email == claim.email) & (subscriptions.c.state == "active")
            connection.execute(update(subscriptions).where(theirs).values(state="bounced"))
    if error:
        _log.warning("mail %s (%s) failed: %s", claim.id, claim.kind, _line(error))


def _defer(engine: Engine, claim: _Claim, now: float, error: Exception) -> Literal["deferred", "failed"]:
    """Have a claimed row tried again later, unless it was tried too often."""
    if claim.attempts >= MOST_ATTEMPTS:
        _finish(engine, claim, "failed", error)
        return "failed"
    wait = min(FIRST_WAIT * 2 ** (claim.attempts - 1), LONGEST_WAIT)
    with writing(engine) as connection:
        _mark(connection, claim, state="waiting", next_try=now + wait, error=_line(error))
    _log.info("mail %s (%s) deferred by %.0f s: %s", claim.id, claim.kind, wait, _line(error))
    return "deferred"


def _mark(connection: Connection, claim: _Claim, **values: object) -> None:
    """Change a row, if the claim is still ours."""
    ours = (outbox.c.id == claim.id) & (outbox.c.state == "sending") & (outbox.c.attempts == claim.attempts)
    connection.execute(update(outbox).where(ours).values(values))


def _too_many(connection: Connection, kind: str, email: str, now: float) -> bool:
    """Whether an address, under whatever +suffix, had as many mails of a kind as it may have."""
    name, _, domain = email.partition("@")
    name = name.partition("+")[0]
    if connection.dialect.name == "postgresql":  # two requests must not both count before either inserts
        number = int.from_bytes(hashlib.sha256(f"{name}@{domain}".encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
    suffixed = outbox.c.email.startswith(f"{name}+", autoescape=True) & outbox.c.email.endswith(
        f"@{domain}", autoescape=True
    )
    theirs = (outbox.c.kind == kind) & or_(outbox.c.email == f"{name}@{domain}", suffixed)
    for most, seconds in LIMITS:
        recent = select(func.count()).select_from(outbox).where(theirs, outbox.c.created > now - seconds)
        if connection.execute(recent).scalar_one() >= most:
            return True
    return False


def _line(error: Exception | None) -> str:
    """Return an error in one line that a log and a column can take."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] if error else ""
