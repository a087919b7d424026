"""The daily papers of Hugging Face, as it sends them."""

from datetime import date

import pytest
from replay import Answer, answer_json

from workingpapers.site.sources.http import SourceError
from workingpapers.site.sources.huggingface import HuggingFace

TODAY = date(2026, 11, 25)


def daily(number, **changes):
    paper = {
        "id": f"2611.{number:05}",
        "authors": [
            {"_id": "67a", "name": "Ada Lovelace", "hidden": False},
            {"_id": "67b", "user": {"user": "bob"}, "name": "Bob", "status": "claimed_verified", "hidden": False},
        ],
        "publishedAt": "2026-11-23T18:00:00.000Z",
        "submittedOnDailyAt": "2026-11-24T03:00:00.000Z",
        "title": f"Paper {number}",
        "summary": "We  study\nthings.",
        "upvotes": 12,
        "discussionId": "69aa",
        "githubRepo": "https://github.com/a/b",
        "githubStars": 41,
        "ai_summary": "Things are studied.",
        "ai_keywords": ["things"],
    } | changes
    return {
        "paper": paper,
        "publishedAt": "2026-11-23T13:00:00.000Z",
        "title": paper["title"],
        "thumbnail": "https://cdn-thumbnails.huggingface.co/x.png",
        "numComments": 1,
        "submittedBy": {"_id": "1", "fullname": "Carol", "name": "carol", "type": "user"},
        "isAuthorParticipating": False,
    }


@pytest.fixture
def source(client, server):
    return HuggingFace(client, "2026-11-24", TODAY, base=server.address, page=2)


def test_a_paper_is_read(source, server):
    server.in_turn(answer_json([daily(7)]), answer_json([]))
    batch = next(source.batches(None))
    (record,) = batch.records
    assert (record.arxiv, record.title, record.abstract) == ("2611.00007", "Paper 7", "We study things.")
    assert (list(record.authors), record.published) == (["Ada Lovelace", "Bob"], "2026-11-23")
    assert (record.code, record.stars, record.source) == ("https://github.com/a/b", 41, "huggingface")
    assert (record.url, record.pdf) == ("https://arxiv.org/abs/2611.00007", "https://arxiv.org/pdf/2611.00007")
    assert (list(record.keywords), record.summary) == ([], "")  # neither its authors' nor ours
    assert server.asked[0].path == "/api/daily_papers"
    assert server.asked[0].query == {"date": "2026-11-24", "limit": "2", "p": "0"}


def test_days_are_paged_and_every_batch_can_be_gone_on_from(source, server):
    def script(asked):
        first = int(asked.query["p"]) * 2
        number = {"2026-11-24": 3, "2026-11-25": 2}[asked.query["date"]]
        day = int(asked.query["date"][-2:])
        return answer_json([daily(day * 100 + n) for n in range(first, min(first + 2, number))])

    server.script = script
    batches = list(source.batches(None))
    assert [[record.arxiv[-4:] for record in batch.records] for batch in batches] == [
        ["2400", "2401"],
        ["2402"],
        ["2500", "2501"],
        [],
    ]
    for number, batch in enumerate(batches[:-1], 1):
        assert [later.records for later in source.batches(batch.cursor)] == [b.records for b in batches[number:]]
    assert batches[-1].cursor == {"since": "2026-11-24", "done": True, "day": "2026-11-25", "page": 0}


def test_papers_without_code_have_none(source, server):
    paper = daily(7)
    for name in ("githubRepo", "githubStars", "ai_summary"):
        del paper["paper"][name]
    server.in_turn(answer_json([paper]), answer_json([]))
    record = next(source.batches(None)).records[0]
    assert (record.code, record.stars) == ("", 0)


@pytest.mark.parametrize(
    "bad",
    [
        *(None, 3, {}, {"paper": None}),
        *(daily(1, id=None), daily(1, id="x"), daily(1, title=""), daily(1, publishedAt="soon")),
        *(daily(1, authors="Ada"), daily(1, authors=[{"name": None}]), daily(1, githubStars=-3)),
    ],
)
def test_a_malformed_paper_is_left_out(source, server, bad):
    server.in_turn(answer_json([bad, daily(2)]), answer_json([]))
    batch = next(source.batches(None))
    assert [record.arxiv for record in batch.records] == ["2611.00002"]
    assert len(batch.problems) == 1
    assert batch.problems[0].startswith("Hugging Face, paper 1: ")


def test_an_answer_that_is_no_list(source, server):
    server.in_turn(answer_json({"error": "x"}))
    with pytest.raises(SourceError, match="are no list"):
        next(source.batches(None))


def test_failures_are_tried_again(source, server):
    server.in_turn(Answer(b"[{", cut=1), answer_json([], status=502), answer_json([daily(3)]), answer_json([]))
    assert next(source.batches(None)).records[0].arxiv == "2611.00003"
