"""Search finds what is there, narrows as told, says what it did, and takes anything that is typed."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import insert, update

from workingpapers.errors import UserError
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.site.database import writing
from workingpapers.site.schema import papers, trends
from workingpapers.site.search import engine as engine_module
from workingpapers.site.search import fulltext, plan
from workingpapers.site.search.embed import embed_missing
from workingpapers.site.search.engine import Searcher
from workingpapers.site.search.filters import Filters


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(database, settings_for, shelf):
    """A searcher by words alone and the ids of the papers."""
    ids = shelf(database)
    searcher = Searcher(database, settings_for(database))
    searcher.refresh()
    return searcher, ids


@pytest.fixture
def both(database, settings_for, shelf, word_encoder, monkeypatch):
    """A searcher by words and meaning and the ids of the papers."""
    ids = shelf(database)
    embed_missing(database, word_encoder)
    monkeypatch.setattr(engine_module, "load_encoder", lambda: word_encoder)
    searcher = Searcher(database, settings_for(database, embeddings=True))
    searcher.refresh()
    return searcher, ids


def found(searcher, *args, **options):
    return [hit.paper.id for hit in searcher.search(*args, **options).hits]


def test_words_by_stem_and_marks(words):
    searcher, ids = words
    results = searcher.search("attentions costing")
    (hit,) = results.hits
    assert hit.paper.id == ids["attention"]
    assert hit.title == "Sparse <mark>attention</mark> for long context"
    assert hit.snippet == "<mark>Attention</mark> &lt;b&gt;<mark>costs</mark>&lt;/b&gt; less."
    assert (results.total, results.page, results.pages, results.exact) == (1, 1, 1, True)
    assert results.seconds > 0


def test_operators(words):
    searcher, ids = words
    assert found(searcher, '"long context"') == [ids["attention"]]
    assert found(searcher, '"context long"') == []
    assert found(searcher, "networks image -graph") == [ids["image"]]
    assert found(searcher, "author:turing walk") == [ids["robots"]]
    assert found(searcher, "author:shannon walk") == []
    assert found(searcher, "year:2022.. walk image graph", sort="date") == []  # in this order all words are needed
    assert set(found(searcher, "year:2022.. walk image graph")) == {ids["robots"], ids["image"]}
    assert found(searcher, "venue:icml year:<2021") == [ids["attention"]]
    assert found(searcher, "-graph year:2020..2022") == [ids["image"], ids["attention"]]


def test_typos_are_corrected_and_said(words):
    searcher, ids = words
    results = searcher.search("segmetnation")
    assert [hit.paper.id for hit in results.hits] == [ids["image"]]
    assert any(note == "No paper has “segmetnation”; searched for “segmentation”." for note in results.notes)
    assert found(searcher, "sparse-atention")[0] == ids["attention"]


def test_a_word_that_is_much_rarer_than_its_neighbour_is_asked_about(words, database, monkeypatch):
    searcher, _ = words
    monkeypatch.setattr(plan, "_MUCH_RARER", 5)
    with writing(database) as connection:
        made(connection, 6, title="Transformers {}")
        (odd,) = made(connection, 1, title="Transfromers")
    searcher.refresh()
    results = searcher.search("transfromers")
    assert results.did_you_mean == "transformers"
    assert results.hits[0].paper.id == odd
    assert results.total == 7


def test_words_alone_say_so(words, database, settings_for):
    assert "switched off" in words[0].search("x").notes[-1]
    searcher = Searcher(database, settings_for(database, embeddings=True))
    searcher.refresh()
    assert (
        "words alone: no paper has been embedded yet (any `papers sync SOURCE`"
        in searcher.search("attention").notes[-1]
    )
    assert found(searcher, "attention") == found(words[0], "attention")


def test_meaning_finds_what_words_do_not(both, words):
    searcher, _ = both
    assert found(words[0], "pictures") == []
    results = searcher.search("pictures")
    assert results.hits[0].paper.title == "Image segmentation"
    assert not any("alone" in note for note in results.notes)


def test_operators_hold_for_what_meaning_finds(both):
    searcher, ids = both
    assert ids["image"] not in found(searcher, "pictures year:2023")
    assert ids["image"] not in found(searcher, "pictures -labels")
    assert found(searcher, 'pictures "few labels"') == [ids["image"]]


def test_similar_papers(both, words, database):
    searcher, ids = both
    with writing(database) as connection:
        (twin,) = made(connection, 1, title="Image segmentations", abstract="Images")
    for it in (searcher, words[0]):
        it.refresh()
        near = it.similar(ids["image"], 2)
        assert ids["image"] not in [paper.id for paper in near]
        assert len(near) <= 2
    assert words[0].similar(ids["image"], 1)[0].id == twin  # by the words of the title
    assert searcher.similar(10**6, 3) == []


def test_filters(database, words):
    searcher, ids = words
    with writing(database) as connection:
        marks = {
            "card": next(iter(load_catalogue())),
            "task": "probe",
            "has_method": True,
            "standing": "reproduced",
            "code": "https://x.org/y",
        }
        (card,) = made(connection, 1, title="Probe", **marks)
    for filters in (
        Filters(task="probe"),
        Filters(standing="reproduced"),
        Filters(has=frozenset({"method", "code"})),
        Filters(year="2026"),
        Filters(venue="arxiv"),
    ):
        assert found(searcher, "", filters) == [card]
        assert found(searcher, "probe graph", filters) == [card]
    assert found(searcher, "graph", Filters(year="2021")) == [ids["graphs"]]


def test_orders(words, database):
    searcher, ids = words
    assert found(searcher, "") == [ids[name] for name in ("robots", "image", "graphs", "attention")]
    with writing(database) as connection:
        for name, citations in (("image", 5), ("graphs", 9)):
            connection.execute(update(papers).where(papers.c.id == ids[name]).values(citations=citations))
        score = {"period": "all", "start": "2000-01-01", "score": 1.0, "paper_id": ids["attention"]}
        connection.execute(insert(trends).values(score))
    assert found(searcher, "", sort="citations")[:2] == [ids["graphs"], ids["image"]]
    assert found(searcher, "", sort="trending")[0] == ids["attention"]
    assert found(searcher, "venue:icml", sort="date")[0] == ids["robots"]


def test_pages_have_every_paper_once(words, database):
    searcher, _ = words
    with writing(database) as connection:
        made(connection, 45, title="Probing {}")
    for text, sort in (("probing", "relevance"), ("probing", "date"), ("", "citations")):
        first = searcher.search(text, sort=sort, size=20)
        seen = [n for page in range(1, first.pages + 1) for n in found(searcher, text, sort=sort, page=page)]
        assert first.pages == 3
        assert len(seen) == len(set(seen)) == first.total
    assert found(searcher, "probing", page=900) == []


def test_totals_are_exact_and_no_more_pages_are_told_of_than_there_are(words, database, monkeypatch):
    searcher, _ = words
    with writing(database) as connection:
        made(connection, 40, title="Ordinary words {}")
    for module, name in ((engine_module, "MOST_PAGE"), (fulltext, "_MANY")):
        monkeypatch.setattr(module, name, 3)
    for sought in ("ordinary", "ordinary year:2026"):
        results = searcher.search(sought, sort="date", size=10)
        assert (results.total, results.pages) == (40, 3)


def test_a_new_paper_is_found_at_once(words, database):
    searcher, _ = words
    assert found(searcher, "zebra") == []
    with writing(database) as connection:
        (new,) = made(connection, 1, title="Zebra")
    assert found(searcher, "zebra") == [new]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "dat"}, "'date'"),
        ({"page": 0}, "Pages are from 1"),
        ({"size": 101}, "1 to 100"),
        ({"page": 1001}, "1001"),
    ],
)
def test_bad_options_are_named(words, options, message):
    with pytest.raises(UserError, match=message):
        words[0].search("x", **options)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(
    text=st.text(max_size=80)
    | st.text(alphabet="ag \"-:.()*'", max_size=40)
    | st.lists(
        st.sampled_from('graph -graph "graph author: year:2020.. OR AND NOT NEAR( the a-b ²'.split()), max_size=9
    ).map(" ".join),
    sort=st.sampled_from(["relevance", "date"]),
)
def test_no_text_is_an_error(both, text, sort):
    results = both[0].search(text, sort=sort)
    assert len(results.hits) <= results.total
    for hit in results.hits:
        assert "<b>" not in hit.snippet


def test_an_identifier_finds_its_paper_alone(both, database):
    searcher, ids = both
    with writing(database) as connection:
        connection.execute(update(papers).where(papers.c.id == ids["attention"]).values(arxiv="2302.02334"))
        connection.execute(update(papers).where(papers.c.id == ids["graphs"]).values(doi="10.1000/xyz123", year=2020))
    for text in ("2302.02334", "arXiv:2302.02334v2", " https://arxiv.org/abs/2302.02334 "):
        assert found(searcher, text) == [ids["attention"]]
    results = searcher.search("https://doi.org/10.1000/XYZ123", sort="date")
    assert [hit.paper.id for hit in results.hits] == [ids["graphs"]]
    assert (results.total, results.exact, results.notes) == (1, True, ())
    assert found(searcher, "10.1000/xyz123", filters=Filters(year="2021")) != [ids["graphs"]]
    assert "No paper here has this identifier, so it was taken for words." in searcher.search("1706.03762").notes


def test_what_was_not_looked_for_is_said(both):
    for text in ("-", '""', "🙂"):
        assert both[0].search(text).notes == ("There is no word to look for in this, so it narrows nothing.",)
    assert "No paper has “zzzzqqqq”." in both[0].search("zzzzqqqq").notes
    assert both[0].search("").notes == both[0].search("year:2020").notes == both[0].search("graph").notes == ()


def test_a_process_that_ends_waits_for_a_refresh_under_way(database, settings_for, monkeypatch):
    waited_for = []
    monkeypatch.setattr(Searcher, "refresh", lambda self: waited_for.append(not threading.current_thread().daemon))
    Searcher(database, settings_for(database))
    for thread in threading.enumerate():
        if thread.name == "search-refresh":
            thread.join(10)
    assert waited_for == [True]
