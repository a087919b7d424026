"""The catalogue's papers are on the page, with what the runs say."""

import dataclasses

import pytest
from sqlalchemy import select, update

from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs.claims import findings
from workingpapers.runs.store import Run, Store
from workingpapers.site.catalogue import STANDINGS, add_catalogue, best_standing, is_missing, listed
from workingpapers.site.database import writing
from workingpapers.site.papers import by_slug
from workingpapers.site.records import add, checked
from workingpapers.site.schema import papers, signals

NOW = 1_795_000_000.0
SLUG = "moment-probing"
RUN = Run(
    **dict.fromkeys(("key", "setting", "data", "data_fingerprint", "model", "model_fingerprint", "entry"), "x"),
    task="probe",
    budget="quick",
    paper=SLUG,
    seed=0,
    status="ok",
    finished="2026-11-24T23:30:00.000+00:00",
)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs.sqlite"))


def bring(database, store):
    with writing(database) as connection:
        return add_catalogue(connection, store, NOW)


def recorded(database):
    with database.connect() as connection:
        found = select(papers.c.slug, signals.c.day, signals.c.amount).join_from(signals, papers)
        return {tuple(row) for row in connection.execute(found.where(signals.c.kind == "runs"))}


def test_every_card_becomes_a_paper_once(database, store):
    first, second = bring(database, store), bring(database, store)
    cards = load_catalogue()
    assert (first.new, second.new, second.updated, second.unchanged) == (len(cards), 0, 0, len(cards))
    with database.connect() as connection:
        for slug, card in cards.items():
            paper = by_slug(connection, slug)
            assert (paper.card, paper.title, paper.arxiv, paper.source) == (slug, card.title, card.arxiv, "catalogue")
            assert (paper.venue, paper.year, paper.code) == (card.venue, card.year, card.code or "")
            assert (paper.task, paper.has_method) == (card.task, card.method is not None)
            assert (paper.summary, set(paper.topics)) == (" ".join(card.summary.split()), set(card.topics))


def test_a_card_that_is_gone_does_not_stand_for_one_that_is_missing(database, store):
    bring(database, store)
    with writing(database) as connection:
        assert {paper.card for paper in listed(connection)} == set(load_catalogue())
        assert not is_missing(connection)
        connection.execute(update(papers).where(papers.c.card == SLUG).values(card="of-the-past"))
        assert is_missing(connection)
        assert len(listed(connection)) == len(load_catalogue()) - 1


def test_the_best_standing_counts(store, monkeypatch):
    card = load_catalogue()[SLUG]
    (first, *_) = findings(card, [])
    for number, standing in enumerate(STANDINGS):
        found = [dataclasses.replace(first, standing=other) for other in reversed(STANDINGS[number:])]
        monkeypatch.setattr("workingpapers.site.catalogue.findings", lambda *_, found=found: found)
        assert best_standing(card, []) == standing
    monkeypatch.setattr("workingpapers.site.catalogue.findings", lambda *_: [])
    assert best_standing(card, []) is None


def test_runs_are_recorded_once_by_their_day(database, store):
    for number in range(3):
        store.save(dataclasses.replace(RUN, key=str(number), status="failed" if number == 2 else "ok"))
    bring(database, store)
    bring(database, store)
    assert recorded(database) == {(SLUG, "2026-11-24", 2.0)}
    store.save(dataclasses.replace(RUN, key="4"))
    store.save(dataclasses.replace(RUN, key="5", finished="2026-11-25T00:10:00.000+01:00"))  # still the 24th, in UTC
    store.save(dataclasses.replace(RUN, key="6", finished="2026-11-25T08:00:00.000+00:00"))
    store.save(dataclasses.replace(RUN, key="7", paper=None))
    bring(database, store)
    assert recorded(database) == {(SLUG, "2026-11-24", 4.0), (SLUG, "2026-11-25", 1.0)}


def test_a_paper_that_is_there_joins_the_catalogue_and_keeps_its_address(database, store):
    card = load_catalogue()[SLUG]
    given = {"title": "As arXiv had it", "abstract": "Abstract.", "arxiv": card.arxiv, "published": "2023-01-02"}
    with writing(database) as connection:
        add(connection, [checked("arxiv", given)], NOW)
    added = bring(database, store)
    assert (added.new, added.updated) == (len(load_catalogue()) - 1, 1)
    with database.connect() as connection:
        paper = by_slug(connection, card.arxiv)
    assert (paper.card, paper.title, paper.abstract, paper.published) == (SLUG, card.title, "Abstract.", "2023-01-02")


@pytest.mark.parametrize("known_by", ["arxiv", "title"])
def test_a_source_names_the_authors_of_a_paper_of_the_catalogue_and_they_stay(database, store, known_by):
    bring(database, store)
    card = load_catalogue()[SLUG]
    given = (
        {"title": "As the file has it", "arxiv": card.arxiv} if known_by == "arxiv" else {"title": card.title.upper()}
    )
    given |= {"authors": ["Grace Hopper", "Ada Lovelace"], "year": card.year}
    with writing(database) as connection:
        added = add(connection, [checked("file:papers", given)], NOW)
    assert (added.new, added.updated) == (0, 1)
    bring(database, store)
    with database.connect() as connection:
        paper = by_slug(connection, SLUG)
    assert (paper.authors, paper.title, paper.source) == (("Grace Hopper", "Ada Lovelace"), card.title, "catalogue")
