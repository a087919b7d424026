"""What people do with papers: votes, tags, a library with read and unread, saved searches.

Every change is idempotent: doing it twice is doing it once. A vote, its count and what it does to the trend are one
transaction. What a person may keep is bounded, far above what a reader needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, delete, func, select, update

from workingpapers.errors import UserError
from workingpapers.site.database import inserting
from workingpapers.site.schema import library, papers, searches, tags, votes
from workingpapers.site.search.query import plain
from workingpapers.site.trending import Signal, day_of, record_all

MOST_TAGS_ON_A_PAPER, MOST_TAGGED, MOST_KEPT, MOST_SEARCHES = 20, 10_000, 10_000, 50
LONGEST_TAG, LONGEST_QUERY = 40, 200
_TAG = re.compile(r"(?=.*[^\W_])[\w.+#&'-]+( [\w.+#&'-]+)*")


@dataclass(frozen=True)
class Marks:
    """What one person has on one paper; read is None if it is not in the library."""

    voted: bool
    tags: tuple[str, ...]
    read: bool | None


@dataclass(frozen=True)
class SavedSearch:
    """A search that somebody keeps; with an alert, new papers that it finds come with the digest."""

    id: int
    query: str
    alert: bool


def vote(connection: Connection, user: int, paper: int, now: float) -> None:
    """Give a paper a person's vote, if they have not voted for it."""
    row = inserting(connection, votes).values(user_id=user, paper_id=paper, at=now).on_conflict_do_nothing()
    if connection.execute(row.returning(votes.c.paper_id)).one_or_none():
        _count_vote(connection, paper, 1, now)


def withdraw_vote(connection: Connection, user: int, paper: int) -> None:
    """Take a person's vote back, if they have voted; nothing of it stays in the count or the trend of its day."""
    gone = delete(votes).where(votes.c.user_id == user, votes.c.paper_id == paper).returning(votes.c.at)
    voted_at = connection.execute(gone).scalar_one_or_none()
    if voted_at is not None:
        _count_vote(connection, paper, -1, voted_at)


def voted(connection: Connection, user: int, page: int, size: int) -> tuple[list[int], int]:
    """Return a page of the papers that a person voted for, the last first, as ids and the number in all."""
    return _page(connection, votes.c.at, votes.c.user_id == user, page, size)


def clean_tag(text: str) -> str:
    """Return a tag in its normal form: lower case, composed, single spaces.

    Raises:
        UserError: it is too long, has no letter or digit, or characters other than these, spaces and . + # & ' - _.
    """
    tag = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    if len(tag) > LONGEST_TAG or not _TAG.fullmatch(tag):
        allowed = f"1 to {LONGEST_TAG} letters, digits, spaces or . + # & ' - _, at least one of the first two"
        raise UserError(f"A tag has {allowed}; got {text.strip()[:60]!r}.")
    return tag


def add_tag(connection: Connection, user: int, paper: int, text: str) -> str:
    """Put a tag on a paper, for this person alone, and return its normal form.

    Raises:
        UserError: it is no tag, or there are too many.
    """
    tag = clean_tag(text)
    mine = tags.c.user_id == user
    same = mine & (tags.c.paper_id == paper)
    if connection.execute(select(tags.c.tag).where(same, tags.c.tag == tag)).one_or_none():
        return tag
    _bound(connection, tags, same, MOST_TAGS_ON_A_PAPER, "tags on this paper")
    _bound(connection, tags, mine, MOST_TAGGED, "tags in all")
    row = inserting(connection, tags).values(user_id=user, paper_id=paper, tag=tag)
    connection.execute(row.on_conflict_do_nothing())
    return tag


def remove_tag(connection: Connection, user: int, paper: int, text: str) -> None:
    """Take a tag from a paper, if it is there."""
    tag = clean_tag(text)
    connection.execute(delete(tags).where(tags.c.user_id == user, tags.c.paper_id == paper, tags.c.tag == tag))


def tags_of(connection: Connection, user: int) -> dict[str, int]:
    """Return a person's tags with how many papers have each, in alphabetical order."""
    counted = select(tags.c.tag, func.count()).where(tags.c.user_id == user).group_by(tags.c.tag)
    return {row.tag: row[1] for row in sorted(connection.execute(counted))}


def keep(connection: Connection, user: int, paper: int, now: float, *, read: bool = False) -> None:
    """Put a paper into a person's library, or mark one that is there as read or unread.

    Raises:
        UserError: the library is full.
    """
    same = (library.c.user_id == user) & (library.c.paper_id == paper)
    if (
        connection.execute(update(library).where(same).values(read=read).returning(library.c.read)).one_or_none()
        is None
    ):
        _bound(connection, library, library.c.user_id == user, MOST_KEPT, "papers in your library")
        row = inserting(connection, library).values(user_id=user, paper_id=paper, read=read, at=now)
        connection.execute(row.on_conflict_do_update(index_elements=["user_id", "paper_id"], set_={"read": read}))


def drop(connection: Connection, user: int, paper: int) -> None:
    """Take a paper out of a person's library, if it is there."""
    connection.execute(delete(library).where(library.c.user_id == user, library.c.paper_id == paper))


def kept(connection: Connection, user: int, read: bool | None, page: int, size: int = 20) -> tuple[list[int], int]:
    """Return a page of a person's library, the last added first, as ids and the number of papers in all.

    Args:
        connection: to the page's database.
        user: their id.
        read: only what they have (True) or have not (False) read; None for both.
        page: from 1.
        size: papers on a page.
    """
    mine = library.c.user_id == user
    if read is not None:
        mine &= library.c.read == read
    return _page(connection, library.c.at, mine, page, size)


def tagged(connection: Connection, user: int, tag: str, page: int, size: int = 20) -> tuple[list[int], int]:
    """Return a page of the papers with a tag, the latest first, as ids and the number in all."""
    return _page(connection, tags.c.paper_id, (tags.c.user_id == user) & (tags.c.tag == tag), page, size)


def marks_on(connection: Connection, user: int, ids: Sequence[int]) -> dict[int, Marks]:
    """Return what a person has on each of these papers."""
    if not ids:
        return {}
    voted = select(votes.c.paper_id).where(votes.c.user_id == user, votes.c.paper_id.in_(ids))
    given = set(connection.execute(voted).scalars())
    stored = select(library.c.paper_id, library.c.read).where(library.c.user_id == user, library.c.paper_id.in_(ids))
    read = {row.paper_id: row.read for row in connection.execute(stored)}
    words: dict[int, list[str]] = {}
    named = select(tags.c.paper_id, tags.c.tag).where(tags.c.user_id == user, tags.c.paper_id.in_(ids))
    for paper, tag in connection.execute(named.order_by(tags.c.tag)):
        words.setdefault(paper, []).append(tag)
    return {paper: Marks(paper in given, tuple(words.get(paper, ())), read.get(paper)) for paper in ids}


def save_search(connection: Connection, user: int, query: str, now: float, *, alert: bool = False) -> None:
    """Keep a search, or turn the alert of one that is kept on or off.

    Raises:
        UserError: it is empty or too long, or there are too many.
    """
    query = plain(query)
    if not 0 < len(query) <= LONGEST_QUERY:
        raise UserError(f"A search to keep has 1 to {LONGEST_QUERY} characters; got {query[:40]!r}.")
    mine = searches.c.user_id == user
    if not connection.execute(select(searches.c.id).where(mine, searches.c.query == query)).one_or_none():
        _bound(connection, searches, mine, MOST_SEARCHES, "saved searches")
    row = inserting(connection, searches).values(user_id=user, query=query, alert=alert, created=now)
    connection.execute(row.on_conflict_do_update(index_elements=["user_id", "query"], set_={"alert": alert}))


def forget_search(connection: Connection, user: int, number: int) -> None:
    """Delete one of a person's searches, if it is theirs."""
    connection.execute(delete(searches).where(searches.c.id == number, searches.c.user_id == user))


def searches_of(connection: Connection, user: int) -> list[SavedSearch]:
    """Return a person's searches, the latest first."""
    columns = (searches.c.id, searches.c.query, searches.c.alert)
    found = select(*columns).where(searches.c.user_id == user).order_by(searches.c.id.desc())
    return [SavedSearch(*row) for row in connection.execute(found)]


def _count_vote(connection: Connection, paper: int, amount: int, at: float) -> None:
    connection.execute(update(papers).where(papers.c.id == paper).values(votes=papers.c.votes + amount))
    record_all(connection, [Signal(paper, "vote", amount, day_of(at).isoformat())])


def _bound(connection: Connection, table: Table, mine: ColumnElement[bool], most: int, what: str) -> None:
    number = connection.execute(select(func.count()).select_from(table).where(mine)).scalar_one()
    if number >= most:
        raise UserError(f"There can be {most:,} {what}; take something out first.")


def _page(
    connection: Connection, latest: Column[Any], mine: ColumnElement[bool], page: int, size: int
) -> tuple[list[int], int]:
    """Return a page of papers and their number in all, those with the largest value of a column first."""
    paper = latest.table.c.paper_id
    chosen = select(paper).where(mine).order_by(latest.desc(), paper.desc())
    ids = connection.execute(chosen.limit(size).offset((page - 1) * size)).scalars()
    return list(ids), connection.execute(select(func.count()).where(mine)).scalar_one()
