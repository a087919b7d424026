"""The catalogue's papers on the page, with what the runs say about their claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, select

from workingpapers.papers.card import Card
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs.claims import Standing, findings
from workingpapers.runs.store import Run, Store
from workingpapers.site.merge import CATALOGUE
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.records import Added, Record, add
from workingpapers.site.schema import papers, signals
from workingpapers.site.trending import Signal, day_of, record_all

STANDINGS: tuple[Standing, ...] = (
    "reproduced",
    "not reproduced",
    "needs more seeds",
    "not run",
    "no entry yet",
    "not testable",
)  # best first: a verdict says more than none, a measurement that is possible more than one that is not


def add_catalogue(connection: Connection, store: Store, now: float) -> Added:
    """Bring in every paper of the catalogue, with its standing and what was run for it since.

    Args:
        connection: that may write.
        store: whose runs count.
        now: seconds since 1970.
    """
    runs = store.runs()
    added = add(connection, [_record(card, runs) for card in load_catalogue().values()], now)
    _record_runs(connection, runs)
    return added


def is_missing(connection: Connection) -> bool:
    """Return whether any paper of the catalogue is not in the database yet."""
    there = select(func.count()).where(papers.c.card.in_(load_catalogue()))
    return connection.execute(there).scalar_one() < len(load_catalogue())


def listed(connection: Connection) -> list[Paper]:
    """Return the papers of the catalogue by title."""
    chosen = select(papers.c.id).where(papers.c.card.in_(load_catalogue())).order_by(papers.c.title)
    return by_ids(connection, list(connection.execute(chosen).scalars()))


def best_standing(card: Card, runs: Sequence[Run]) -> Standing | None:
    """Return the best that became of a paper's claims; None for one that claims nothing."""
    found = {finding.standing for finding in findings(card, runs)}
    return next((standing for standing in STANDINGS if standing in found), None)


def _record(card: Card, runs: Sequence[Run]) -> Record:
    return Record(
        source=CATALOGUE,
        title=card.title,
        venue=card.venue,
        year=card.year,
        arxiv=card.arxiv,
        url=f"https://arxiv.org/abs/{card.arxiv}",
        pdf=f"https://arxiv.org/pdf/{card.arxiv}",
        code=card.code or "",
        card=card.slug,
        summary=" ".join(card.summary.split()),
        topics=card.topics,
        task=card.task,
        has_method=card.method is not None,
        standing=best_standing(card, runs),
    )


def _record_runs(connection: Connection, runs: Sequence[Run]) -> None:
    """Record the finished runs of each paper and day that are not recorded yet."""
    known = select(papers.c.card, papers.c.id).where(papers.c.card.in_(load_catalogue()))
    ids = {row.card: row.id for row in connection.execute(known)}
    finished: Counter[tuple[int, str]] = Counter(
        (ids[run.paper], day_of(datetime.fromisoformat(run.finished).timestamp()).isoformat())
        for run in runs
        if run.status == "ok" and run.paper in ids
    )
    recorded = select(signals.c.paper_id, signals.c.day, signals.c.amount).where(signals.c.kind == "runs")
    before = {(paper, day): int(amount) for paper, day, amount in connection.execute(recorded)}
    missing = {key: number - before.get(key, 0) for key, number in finished.items()}
    record_all(
        connection, (Signal(paper, "runs", number, day) for (paper, day), number in missing.items() if number > 0)
    )
