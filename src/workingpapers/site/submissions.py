"""Papers that people submit by arXiv identifier: a queue that the next sync of arXiv takes from.

Nothing is fetched while somebody waits, and what a person types is never an address that this machine asks. The queue
is one row of the table of syncs, "submissions", which holds identifiers and who asked for each. `sources.submitted`
fetches them; whichever sync brings a paper, it waits no longer.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, select, update

from workingpapers.errors import UserError
from workingpapers.site.database import inserting
from workingpapers.site.normal import arxiv_id
from workingpapers.site.schema import papers, syncs

MOST_WAITING, MOST_OF_ONE = 1000, 20
_QUEUE = "submissions"


def submit(connection: Connection, user: int, text: str, now: float) -> str | None:
    """Ask for a paper.

    Args:
        connection: of a transaction that writes.
        user: who asks.
        text: an arXiv identifier or the address of one's page there.
        now: seconds since 1970.

    Returns:
        The slug of the paper if it is here already; None if it was put into the queue (or was there).

    Raises:
        UserError: it is no identifier, or too many wait already.
    """
    try:
        name = arxiv_id(re.sub(r"[?#].*", "", text.strip()))
    except ValueError as error:
        raise UserError(
            f"{text.strip()[:80]!r} is no arXiv identifier. It must be like 1706.03762, cs/0112017 or "
            "https://arxiv.org/abs/1706.03762."
        ) from error
    if slug := connection.execute(select(papers.c.slug).where(papers.c.arxiv == name)).scalar():
        return str(slug)
    queue = _locked(connection, now)
    if name in queue:
        return None
    if list(queue.values()).count(user) >= MOST_OF_ONE:
        raise UserError(f"{MOST_OF_ONE} of your papers wait for the next sync already. Submit more after it.")
    if len(queue) >= MOST_WAITING:
        raise UserError("Very many papers wait for the next sync already. Submit this one after it.")
    _store(connection, queue | {name: user}, now)
    return None


def waiting(connection: Connection) -> list[str]:
    """Return the arXiv identifiers in the queue, the first submitted first. Once its paper is here, none waits."""
    return list(_queue(connection))


def set_aside(connection: Connection, name: str, now: float, *, again: bool) -> None:
    """Take an identifier that could not be fetched out of the queue, or put it at its end to be tried again."""
    queue = _locked(connection, now)
    if name in queue:
        user = queue.pop(name)
        _store(connection, queue | ({name: user} if again else {}), now)


def of_user(connection: Connection, user: int) -> list[str]:
    """Return the identifiers that somebody submitted and that still wait."""
    return [name for name, who in _queue(connection).items() if who == user]


def forget_user(connection: Connection, user: int) -> None:
    """Keep what somebody submitted in the queue, but not who it was."""
    queue = _queue(connection, lock=True)
    if user in queue.values():
        queue = {name: None if who == user else who for name, who in queue.items()}
        connection.execute(update(syncs).where(syncs.c.source == _QUEUE).values(cursor=list(queue.items())))


def _queue(connection: Connection, *, lock: bool = False) -> dict[str, int | None]:
    found = select(syncs.c.cursor).where(syncs.c.source == _QUEUE)
    queue = dict(connection.execute(found.with_for_update() if lock else found).scalar() or ())
    here = set(connection.execute(select(papers.c.arxiv).where(papers.c.arxiv.in_(queue))).scalars())
    return {name: user for name, user in queue.items() if name not in here}


def _locked(connection: Connection, now: float) -> dict[str, int | None]:
    """Return the queue, which nobody else changes until this transaction ends."""
    row = inserting(connection, syncs).values(source=_QUEUE, cursor=[], updated=now)
    connection.execute(row.on_conflict_do_nothing())
    return _queue(connection, lock=True)


def _store(connection: Connection, queue: dict[str, int | None], now: float) -> None:
    values = {"cursor": list(queue.items()), "updated": now}
    connection.execute(update(syncs).where(syncs.c.source == _QUEUE).values(values))
