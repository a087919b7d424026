"""The digest: who is due, and which papers are news to them.

An edition has the day that it is due on (UTC) as its name and covers the days since the one before, up to yesterday: a
daily one yesterday, Monday's of "weekdays" three days, a weekly one the ISO week that ended. If none was made in time,
because nothing ran, the next one goes back further, a week at most. Its papers are

- what trended in those days, in the subscriber's topics if there are any;
- for each search, the subscription's and those that the account with the same address has set an alert for: papers
  found that trended in those days or that were added in them;

but none that the subscriber was ever sent. That an edition was made, its mail and which papers it delivers are written
in one transaction, and no two rows of the outbox have the same subscription and edition: however often this is killed
and run again, side by side too, each edition is made once and has each paper once; `outbox` says how it then travels.
An edition without news is written down as such, and no mail is sent.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, func, insert, select
from sqlalchemy.exc import IntegrityError

from workingpapers.errors import UserError
from workingpapers.papers.topics import load_topics, topic, walk
from workingpapers.site.database import writing
from workingpapers.site.mail.outbox import enqueue
from workingpapers.site.mail.subscriptions import Subscription, read_row
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import deliveries, outbox, papers, searches, subscriptions, users
from workingpapers.site.settings import Settings
from workingpapers.site.trending import Trend, day_of, trending

MOST_TRENDING, MOST_FOUND = 10, 5  # papers of a section: what somebody may read over a coffee
LONGEST = timedelta(days=7)  # that an edition goes back
_DEEPEST = 10  # pages of a hundred papers in which topics and searches look for theirs
_HITS = 100  # of a search that are looked at
_BATCH = 200  # subscriptions read at a time
_REMEMBERED = 1_000  # searches whose papers are kept, for other subscribers who have the same

_log = logging.getLogger(__name__)


class Finder(Protocol):
    """What searches, as `site.search` does."""

    def search(self, text: str, *, sort: str, size: int) -> Any:
        """Return results whose hits have a `paper`, the best first."""


@dataclass(frozen=True)
class Pick:
    """A paper in an edition, why it is there, and whether it is new in its days."""

    paper: Paper
    why: str
    is_new: bool


@dataclass(frozen=True)
class Section:
    """A part of an edition; query is the search it comes from, if it does."""

    title: str
    query: str | None
    picks: Sequence[Pick]


@dataclass(frozen=True)
class Edition:
    """What one subscriber gets: due on `day`, covering `first` to `last`. Without sections there is no news."""

    subscription: Subscription
    day: date
    first: date
    last: date
    sections: Sequence[Section]

    @property
    def picks(self) -> list[Pick]:
        """Every paper in it."""
        return [pick for section in self.sections for pick in section.picks]


def due_day(frequency: str, today: date) -> date:
    """Return the latest day, today included, on which an edition of that frequency is due."""
    if frequency == "weekly":
        return today - timedelta(days=today.weekday())
    if frequency == "weekdays":
        return today - timedelta(days=max(0, today.weekday() - 4))
    return today


def editions(engine: Engine, now: float, finder: Finder | None) -> Iterator[Edition]:
    """Yield the edition of each subscriber who is due; nothing is written.

    Args:
        engine: of the page's database.
        now: seconds since 1970.
        finder: searches; None leaves sections of searches out.
    """
    trends: dict[tuple[date, date], list[Trend]] = {}
    search = functools.lru_cache(_REMEMBERED)(functools.partial(_search, finder)) if finder else None
    after = 0
    while True:
        with engine.connect() as connection:
            batch = _due(connection, after, day_of(now))
            if batch is None:
                return
            after, due = batch
            for subscription, day, first in due:
                last = day - timedelta(days=1)
                if (first, last) not in trends:
                    trends[first, last] = _trends(connection, first, last)
                chosen = _Chooser(connection, subscription, first, trends[first, last], search).sections()
                yield Edition(subscription, day, first, last, chosen)


def write(engine: Engine, settings: Settings, edition: Edition, now: float) -> bool:
    """Write an edition down: its mail, if it has any news, and what it delivers, all or nothing.

    Returns:
        Whether it was written; False if that was done already, or the subscription ended meanwhile.
    """
    from workingpapers.site.mail.letter import letter

    subscription, day = edition.subscription, edition.day.isoformat()
    try:
        with writing(engine) as connection:
            still = select(subscriptions.c.state).where(subscriptions.c.id == subscription.id).with_for_update()
            if connection.execute(still).scalar() != "active":
                return False
            if not edition.sections:
                marked = {"kind": "digest", "email": subscription.email, "subscription_id": subscription.id}
                marked |= {"edition": day, "message": b"", "state": "empty", "next_try": now, "created": now}
                connection.execute(insert(outbox).values(marked))
                return True
            mail = letter(settings, edition, now)
            enqueue(connection, "digest", subscription.email, mail, now, subscription.id, day)
            rows = [
                {"subscription_id": subscription.id, "paper_id": pick.paper.id, "edition": day}
                for pick in edition.picks
            ]
            connection.execute(insert(deliveries), rows)
    except IntegrityError:  # another run was faster, or a paper was deleted: the next run sees what there is
        _log.info("edition %s of subscription %s was not written", day, subscription.id)
        return False
    return True


def _due(connection: Connection, after: int, today: date) -> tuple[int, list[tuple[Subscription, date, date]]] | None:
    """Return the last id of the next batch of subscriptions, and those due with their day and the first day covered."""
    active = (subscriptions.c.state == "active") & (subscriptions.c.id > after)
    batch = select(subscriptions).where(active).order_by(subscriptions.c.id).limit(_BATCH)
    found = [read_row(row) for row in connection.execute(batch).mappings()]
    if not found:
        return None
    ids = [subscription.id for subscription in found]
    latest = (
        select(outbox.c.subscription_id, func.max(outbox.c.edition))
        .where(outbox.c.subscription_id.in_(ids), outbox.c.edition <= today.isoformat())  # a clock may have been wrong
        .group_by(outbox.c.subscription_id)
    )
    made = dict(connection.execute(latest).all())
    due = []
    for subscription in found:
        frequency = subscription.wish.frequency
        day = due_day(frequency, today)
        last = made.get(subscription.id)
        if (last is None or date.fromisoformat(last) < day) and day_of(subscription.confirmed) <= day:
            usual = due_day(frequency, day - timedelta(days=1))
            first = min(usual, date.fromisoformat(last)) if last else usual
            due.append((subscription, day, max(first, day - LONGEST)))
    return ids[-1], due


def _trends(connection: Connection, first: date, last: date) -> list[Trend]:
    """Return what trended in some days, best first: a week's own ranking, or that of each paper's best day."""
    if first.weekday() == 0 and last - first == timedelta(days=6):
        return _ranked(connection, "week", first)
    best: dict[int, Trend] = {}
    for back in range((last - first).days + 1):
        for trend in _ranked(connection, "day", last - timedelta(days=back)):
            if trend.paper.id not in best or trend.score > best[trend.paper.id].score:
                best[trend.paper.id] = trend
    return sorted(best.values(), key=lambda trend: (-trend.score, -trend.paper.id))


def _ranked(connection: Connection, period: str, day: date) -> list[Trend]:
    found: list[Trend] = []
    for page in range(1, _DEEPEST + 1):
        part = trending(connection, period, day, page, 100)
        found += part.rows
        if not part.more:
            break
    return found


def _search(finder: Finder, query: str) -> list[int]:
    """Return the papers that a search finds, each once; not by relevance, which also brings what only resembles it."""
    hits = [hit for sort in ("trending", "date") for hit in finder.search(query, sort=sort, size=_HITS).hits]
    return list(dict.fromkeys(hit.paper.id for hit in hits))


class _Chooser:
    """Chooses a subscriber's papers, each for one section."""

    def __init__(
        self,
        connection: Connection,
        subscription: Subscription,
        first: date,
        trends: Sequence[Trend],
        search: Callable[[str], list[int]] | None,
    ) -> None:
        self._connection = connection
        self._subscription = subscription
        self._since = datetime(first.year, first.month, first.day, tzinfo=UTC).timestamp()
        self._trends = trends
        self._search = search
        sent = select(deliveries.c.paper_id).where(deliveries.c.subscription_id == subscription.id)
        self._known = set(connection.execute(sent).scalars())

    def sections(self) -> list[Section]:
        """Return the sections that have papers."""
        wish = self._subscription.wish
        made = []
        if wish.topics or not wish.queries:
            known = [name for name in wish.topics if name in load_topics()]
            wanted = {below for name in known for below in walk(name)}
            here = [t for t in self._trends if not wish.topics or wanted.intersection(t.paper.topics)]
            title = ", ".join(topic(name).title for name in known[:3]) + (", ..." if len(known) > 3 else "")
            made.append(Section(title or "Trending", None, self._take(here, MOST_TRENDING)))
        if self._search:
            for query in self._queries():
                found = self._take(self._found(self._search, query), MOST_FOUND)
                made.append(Section(f"Found for “{query}”", query, found))
        return [section for section in made if section.picks]

    def _queries(self) -> list[str]:
        """Return the subscription's searches, and those of the account with the same address that have an alert."""
        of = searches.join(users, users.c.id == searches.c.user_id)
        mine = (users.c.email == self._subscription.email) & searches.c.alert
        alerts = self._connection.execute(select(searches.c.query).select_from(of).where(mine).order_by(searches.c.id))
        return list(dict.fromkeys((*self._subscription.wish.queries, *alerts.scalars())))

    def _found(self, search: Callable[[str], list[int]], query: str) -> list[Trend]:
        """Return what a search finds among the papers that trended, best first, and then among those just added."""
        try:
            found = search(query)
        except UserError as error:
            _log.warning("a search of subscription %s fails: %s", self._subscription.id, error)
            return []
        trended = [trend for trend in self._trends if trend.paper.id in found]
        rest = set(found).difference(trend.paper.id for trend in trended)
        fresh = select(papers.c.id).where(papers.c.id.in_(rest), papers.c.added >= self._since)
        new = set(self._connection.execute(fresh).scalars())
        added = by_ids(self._connection, [number for number in found if number in new])
        return trended + [Trend(paper, 0.0, "added", {}, is_new=True) for paper in added]

    def _take(self, trends: Sequence[Trend], most: int) -> list[Pick]:
        """Return the first papers that are news, and note them."""
        taken = [trend for trend in trends if trend.paper.id not in self._known][:most]
        self._known |= {trend.paper.id for trend in taken}
        return [Pick(trend.paper, trend.why, trend.is_new) for trend in taken]
