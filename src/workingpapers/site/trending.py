"""What trends: a score of recent velocity, kept up to date signal by signal.

A signal is something that happened to a paper on a day: a vote, stars, citations, runs, its publication. Each counts
towards the day, the ISO week, the month and all time that it falls into, and there it weighs more the later it comes:

    score(paper, period) = sum over its signals of  amount * weight(kind) * 2^(days since start / half-life(period))

This is exponential decay without ageing anything. Seen from day T, a signal of day t has decayed to
weight * 2^((t - T) / half-life): the term above times 2^((start - T) / half-life), one factor for all papers of the
period. So the stored sums rank as the decayed ones do at every T, a new signal is one addition, and nothing is ever
recomputed. Only what is shown is divided by that factor.

The sums are exact. A term is amount * unit(kind, period, day), both whole, and doubles add whole numbers without error
up to 2^53: so the order of the signals makes no difference, a withdrawn vote leaves no trace, and the score always
equals what the table of signals gives. What keeps all time below 2^53 is that its days count from `EPOCH` and are cut
off at `HORIZON`: a factor of at most 2^25. There is no logarithm of counts for the same reason: it would not add up.

Days are days in UTC.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, func, select

from workingpapers.errors import UserError, unknown_name
from workingpapers.site.database import insert_rows
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import signals, trends

PERIODS = ("day", "week", "month", "all")

# In stars of the linked code, which come by the hundred. Citations come by the dozen; one costs its author more than a
# star. A vote is given by a reader, here and for this paper, one per head. A run is one seed of one entry, so that a
# finished check brings tens of them. Being published is enough to be listed on a quiet day, and less than one vote.
WEIGHTS: Mapping[str, int] = {"vote": 10, "stars": 1, "citations": 2, "runs": 2, "published": 5}

# In days. Signals are kept by day, so within a day nothing decays. In a week Sunday weighs eight times Monday, in a
# month the last week twice the week before: long enough to climb over days, short enough that last week's paper leaves.
# All time forgets slowly: ten years ago weighs about a sixth, so that classics stay and can be overtaken.
HALF_LIVES: Mapping[str, float | None] = {"day": None, "week": 2.0, "month": 7.0, "all": 1461.0}

EPOCH, HORIZON = date(2000, 1, 1), date(2099, 12, 31)
LAST_PAGE = 50  # deeper pages would walk ever more of the index, for nobody
_SCALE = 64  # stored units in a star: rounding a unit to a whole number then errs by less than 1 %
_WORDS = {"vote": ("vote", "votes"), "stars": ("star", "stars"), "citations": ("citation", "citations")}
_WORDS |= {"runs": ("run", "runs")}


class Signal(NamedTuple):
    """Something that happened to a paper.

    Attributes:
        paper_id: of the paper; kind: a key of `WEIGHTS`.
        amount: how many, whole; negative to take back what was recorded for the same day.
        day: "2026-11-25"; or "2026" where only the year is known, and then it counts towards all time alone, as from
            the middle of that year. Counts with which a paper first arrives are such signals: nobody knows their days.
    """

    paper_id: int
    kind: str
    amount: int
    day: str


@dataclass(frozen=True)
class Period:
    """A day, an ISO week (from Monday), a month, or all time.

    Attributes:
        name: one of `PERIODS`.
        start: its first day; `EPOCH` for all time.
        end: its last day; for all time the day from which it is seen.
    """

    name: str
    start: date
    end: date

    @property
    def label(self) -> str:
        """The period in words: "Wednesday 25 November 2026", "Week 48, 23 to 29 November 2026", ..."""
        first, last = self.start, self.end
        if self.name == "day":
            return f"{first:%A} {span(first, last)}"
        if self.name == "week":
            return f"Week {first.isocalendar().week}, {span(first, last)}"
        return f"{first:%B %Y}" if self.name == "month" else "All time"

    @property
    def key(self) -> str:
        """The period in addresses: "2026-11-25", "2026-W48", "2026-11", and "" for all time."""
        if self.name == "week":
            year, week, _ = self.start.isocalendar()
            return f"{year}-W{week:02}"
        return {"day": self.start.isoformat(), "month": self.start.isoformat()[:7]}.get(self.name, "")


@dataclass(frozen=True)
class Trend:
    """One paper in its place.

    Attributes:
        paper: the paper.
        score: its decayed score at the end of the period, in stars of that day.
        why: the period's signals in words: "3 votes, 41 stars, published".
        counts: the same by kind.
        is_new: whether it was published within the period; where only a year is known, whether it was added within the
            period in that year. Never so for all time.
    """

    paper: Paper
    score: float
    why: str
    counts: Mapping[str, int]
    is_new: bool


@dataclass(frozen=True)
class Trending:
    """A page of what trends in a period; previous and next are the nearest periods in which anything did."""

    period: Period
    rows: Sequence[Trend]
    page: int
    more: bool
    previous: Period | None
    next: Period | None


def span(first: date, last: date) -> str:
    """Return days in words: "24 November 2026" or "16 to 22 November 2026"."""
    end = f"{last.day} {last:%B %Y}"
    if first == last:
        return end
    start = str(first.day)
    if first.month != last.month:
        start += f" {first:%B}"
    if first.year != last.year:
        start += f" {first.year}"
    return f"{start} to {end}"


def day_of(now: float) -> date:
    """Return the day (UTC) of an instant in seconds since 1970."""
    return datetime.fromtimestamp(now, UTC).date()


@functools.lru_cache(maxsize=4096)
def period_of(name: str, day: date) -> Period:
    """Return the period of that name that a day falls into.

    Raises:
        UserError: no such period.
    """
    if name not in PERIODS:
        raise unknown_name("period", name, PERIODS)
    if name == "day":
        return Period(name, day, day)
    if name == "week":
        monday = day - timedelta(days=day.weekday())
        return Period(name, monday, monday + timedelta(days=6))
    if name == "month":
        first = day.replace(day=1)
        return Period(name, first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1))
    return Period(name, EPOCH, day)


def read_period(name: str, when: str | None, today: date) -> Period:
    """Return the period that an address names.

    Args:
        name: one of `PERIODS`.
        when: a day ("2026-11-25"), an ISO week ("2026-W48") or a month ("2026-11"); None or "" stands for `today`.
            Any of them names the period that holds its first day.
        today: what the present period is.

    Raises:
        UserError: no such period, or `when` is no date between `EPOCH` and `HORIZON`.
    """
    if not when:
        return period_of(name, today)
    try:
        if week := re.fullmatch(r"(\d{4})-W(\d{2})", when, re.ASCII):
            day = date.fromisocalendar(int(week[1]), int(week[2]), 1)
        else:
            day = date.fromisoformat(f"{when}-01" if re.fullmatch(r"\d{4}-\d{2}", when, re.ASCII) else when)
        if not EPOCH <= day <= HORIZON:
            raise ValueError
    except ValueError:
        raise UserError(
            f"No date {when!r}: write a day like 2026-11-25, a week like 2026-W48 or a month like 2026-11, "
            f"from {EPOCH.year} to {HORIZON.year}."
        ) from None
    return period_of(name, day)


def record_all(connection: Connection, happened: Iterable[Signal]) -> None:
    """Record signals. Call it in the transaction that changes what they count.

    Raises:
        ValueError: a kind that is not in `WEIGHTS`, an amount that is not whole, or a day that is none.
    """
    amounts: Counter[tuple[int, str, str]] = Counter()
    scores: Counter[tuple[str, str, int]] = Counter()
    for signal in happened:
        if signal.kind not in WEIGHTS:
            raise ValueError(f"no kind of signal {signal.kind!r}; there are {', '.join(WEIGHTS)}")
        if signal.amount != int(signal.amount):
            raise ValueError(f"amounts of signals are whole numbers; got {signal.amount!r}")
        amounts[signal.paper_id, signal.kind, signal.day] += int(signal.amount)
        for name, start, unit in _units(signal.kind, signal.day):
            scores[name, start, signal.paper_id] += int(signal.amount) * unit
    _add(connection, signals, "amount", ("paper_id", "kind", "day"), amounts)
    _add(connection, trends, "score", ("period", "start", "paper_id"), scores)


@functools.lru_cache(maxsize=16384)
def _units(kind: str, day: str) -> tuple[tuple[str, str, int], ...]:
    """Return (period, its start, what a signal of amount 1 adds to the score there) for each period of a signal."""
    only_year = re.fullmatch(r"\d{4}", day, re.ASCII)
    when = date.fromisoformat(f"{day}-07-01" if only_year else day)
    if not only_year and day != when.isoformat():
        raise ValueError(f"days are written like 2026-11-25; got {day!r}")
    held = [period_of(name, when) for name in (("all",) if only_year else PERIODS)]
    weight = _SCALE * WEIGHTS[kind]
    return tuple((it.name, it.start.isoformat(), round(weight * _growth(it.name, it.start, when))) for it in held)


def _growth(name: str, start: date, day: date) -> float:
    """Return how much more a signal of `day` weighs than one of the period's first day."""
    half_life = HALF_LIVES[name]
    if half_life is None:
        return 1.0
    days = (min(max(day, EPOCH), HORIZON) - start).days if name == "all" else (day - start).days
    return float(2.0 ** (days / half_life))


def _add(connection: Connection, table: Table, column: str, keys: tuple[str, ...], amounts: Counter[Any]) -> None:
    """Add to the rows of a table, made where they are not there; in the order of their keys, so that two who add to the
    same rows wait for each other instead of blocking one another."""
    columns = [table.c[name] for name in (*keys, column)]
    adding = f"{column} = {table.name}.{column} + excluded.{column}"
    values = [(*key, amount) for key, amount in sorted(amounts.items())]
    insert_rows(connection, columns, values, f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {adding}")


def trending(connection: Connection, period: str, day: date, page: int = 1, size: int = 20) -> Trending:
    """Return a page of what trends in a period.

    Args:
        connection: to the page's database.
        period: one of `PERIODS`.
        day: any day of it.
        page: from 1 to `LAST_PAGE`.
        size: papers on a page, 1 to 100.

    Raises:
        UserError: no such period, or page or size out of range.
    """
    asked = period_of(period, day)
    if not 1 <= page <= LAST_PAGE:
        raise UserError(f"There are pages 1 to {LAST_PAGE}; got {page}.")
    if not 1 <= size <= 100:
        raise UserError(f"A page holds 1 to 100 papers; got {size}.")
    here = (trends.c.period == period) & (trends.c.start == asked.start.isoformat()) & (trends.c.score > 0)
    order = (trends.c.score.desc(), trends.c.paper_id.desc())
    ranked = select(trends.c.paper_id, trends.c.score).where(here).order_by(*order)
    found = connection.execute(ranked.limit(size + 1).offset((page - 1) * size)).all()
    scores = {row.paper_id: float(row.score) for row in found[:size]}
    counts = _counts(connection, asked, list(scores))
    unit = _SCALE * _growth(period, asked.start, asked.end)
    rows = [
        Trend(paper, scores[paper.id] / unit, _why(counts[paper.id]), counts[paper.id], _is_new(paper, asked))
        for paper in by_ids(connection, list(scores))
    ]
    before, after = (_neighbour(connection, asked, forward) for forward in (False, True))
    return Trending(asked, rows, page, len(found) > size and page < LAST_PAGE, before, after)


def _counts(connection: Connection, period: Period, ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Return what the period's signals amount to, by paper and kind, in the order of `WEIGHTS`."""
    by = (signals.c.paper_id, signals.c.kind)
    summed = select(*by, func.sum(signals.c.amount)).where(signals.c.paper_id.in_(ids)).group_by(*by)
    if period.name != "all":
        summed = summed.where(signals.c.day.between(period.start.isoformat(), period.end.isoformat()))
    found = {(number, kind): int(amount) for number, kind, amount in connection.execute(summed)}
    return {
        number: {kind: found[number, kind] for kind in WEIGHTS if found.get((number, kind), 0) > 0} for number in ids
    }


def _why(counts: Mapping[str, int]) -> str:
    parts = [f"{amount:,} {_WORDS[kind][amount != 1]}" for kind, amount in counts.items() if kind in _WORDS]
    return ", ".join([*parts, *(["published"] if "published" in counts else [])])


def _is_new(paper: Paper, period: Period) -> bool:
    if period.name == "all":
        return False
    day = date.fromisoformat(paper.published) if paper.published else day_of(paper.added)
    return period.start <= day <= period.end and (paper.published is not None or paper.year in (None, day.year))


def _neighbour(connection: Connection, period: Period, forward: bool) -> Period | None:
    if period.name == "all":
        return None
    start, here = trends.c.start, period.start.isoformat()
    where = (trends.c.period == period.name) & (trends.c.score > 0) & (start > here if forward else start < here)
    found = connection.execute(
        select(start).where(where).order_by(start if forward else start.desc()).limit(1)
    ).scalar()
    return period_of(period.name, date.fromisoformat(found)) if found else None
