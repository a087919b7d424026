"""What every source gives: batches, each with the place from which the source goes on after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, Protocol

from workingpapers.site.records import Record

Cursor = dict[str, Any]  # as JSON

FIRST_DAYS = 7  # that a source of days goes back at its first sync, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What is written in one transaction, together with the cursor.

    Attributes:
        cursor: from where `Source.batches` goes on once this batch is written.
        records: papers that were seen.
        counts: by kind ("citations", "stars"), then by paper: counts of papers that are there.
        problems: what was malformed and left out, one line each.
        done, total: how far the source is, in its own steps; total is None where it cannot know.
    """

    cursor: Cursor
    records: Sequence[Record] = ()
    counts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    done: int = 0
    total: int | None = None


class Source(Protocol):
    """One place that papers or counts come from."""

    @property
    def name(self) -> str:
        """What its cursor is kept under: "arxiv:cs.LG"."""

    def batches(self, cursor: Cursor | None) -> Iterator[Batch]:
        """Yield what there is from a cursor on; None starts at the beginning.

        Raises:
            UserError: the source cannot be read any further; batches that came before stand.
        """


@dataclass(frozen=True)
class Walk:
    """The days that a sync goes through, and how its cursor is kept.

    A sync that was stopped goes on at the page where it stopped. One that had finished goes back `overlap` days from
    where it ended, because sources add to their last days later.

    Args:
        since: the first day wanted, ISO; None goes on, at first with the last `FIRST_DAYS`.
        today: the last day.
        overlap: days that a source may still add to.
    """

    since: str | None
    today: date
    overlap: int

    def start(self, cursor: Cursor | None) -> tuple[date, int]:
        """Return the first day and its first page."""
        since = date.fromisoformat(self.since) if self.since else None
        if cursor is None or (since and since < date.fromisoformat(cursor["since"])):
            return since or self.today - timedelta(days=FIRST_DAYS), 0
        day = date.fromisoformat(cursor["day"])
        if not cursor["done"]:
            return day, cursor["page"]
        again = max(day - timedelta(days=self.overlap), date.fromisoformat(cursor["since"]))
        return max(again, since or again), 0

    def days(self, first: date) -> Iterator[date]:
        """Yield the days from the first to the last."""
        for number in range((self.today - first).days + 1):
            yield first + timedelta(days=number)

    def after(self, cursor: Cursor | None, first: date, day: date, page: int | None) -> Cursor:
        """Return the cursor after a batch; `page` is the day's next one, None where the day is finished."""
        earlier = [cursor["since"]] if cursor else []
        at = {"since": min([*earlier, first.isoformat()]), "done": False}
        if page is not None:
            return at | {"day": day.isoformat(), "page": page}
        if day >= self.today:
            return at | {"day": day.isoformat(), "page": 0, "done": True}
        return at | {"day": (day + timedelta(days=1)).isoformat(), "page": 0}
