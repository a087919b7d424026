"""The routes in the shapes of Hugging Face, asked by its own client."""

import time

import pytest
from api_tokens import slugs, token_for
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from papers_made import made

from workingpapers.site import trending
from workingpapers.site.database import writing


@pytest.fixture
def hub(server, monkeypatch):
    """Hugging Face's own client, pointed at our server."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    return HfApi(endpoint=server, token=False)


def test_the_client_of_hugging_face_lists_daily_papers(hub, client):
    today = trending.day_of(time.time())
    listed = list(hub.list_daily_papers(date=today.isoformat(), sort="trending", limit=5))
    shown = slugs(client.get("/api/v1/trending?period=day&size=5").json()["items"])
    assert [paper.id for paper in listed] == shown  # none has an arXiv identifier
    assert listed[0].title.startswith("<script>alert")
    assert [author.name for author in listed[0].authors][-1] == "Żółć"
    assert listed[1].published_at.date() == today
    assert listed[1].submitted_at.year == 1970  # when the test's papers came
    assert listed[1].submitted_by.fullname == "Working Papers"
    assert listed[1].comments == 0
    after = list(hub.list_daily_papers(date=today.isoformat(), sort="trending", limit=5, p=1))
    assert not {paper.id for paper in after} & set(shown)
    week = list(hub.list_daily_papers(week=trending.period_of("week", today).key, limit=100))
    month = list(hub.list_daily_papers(month=f"{today:%Y-%m}", limit=100))
    assert len(week) >= 46
    assert len(month) >= 46
    days = [paper.published_at for paper in week]
    assert days == sorted(filter(None, days), reverse=True) + [None] * days.count(None)
    latest = list(hub.list_daily_papers(limit=3, submitter="nobody"))
    assert [paper.published_at.date() for paper in latest] == [today] * 3
    assert next(iter(hub.list_daily_papers(sort="trending", limit=1))).id == "hostile"
    with pytest.raises(HfHubHTTPError, match="2026-W48"):
        list(hub.list_daily_papers(date="soon"))
    with pytest.raises(HfHubHTTPError, match="one of date, week and month"):
        list(hub.list_daily_papers(date="2026-11-25", month="2026-11"))


def test_the_client_of_hugging_face_finds_papers(hub, client, world):
    [first, *_] = list(hub.list_papers(query="moment probing", limit=3))
    assert first.title == "Tuning Pre-trained Model via Moment Probing"
    assert first.published_at is None  # only the year is known
    assert first.submitted_at.timestamp() <= time.time()
    assert len(list(hub.list_papers(query="paper", limit=2))) == 2
    assert len(list(hub.list_papers())) == 20
    one = hub.paper_info(first.id)
    assert (one.id, one.title, one.summary) == (first.id, first.title, first.summary)
    assert one.github_repo == "https://github.com/example/code"
    client.headers["Authorization"] = f"Bearer {token_for(world.app.state.engine, 'voter@example.org')}"
    assert client.put("/api/v1/me/votes/paper-40").json()["voted"]
    assert hub.paper_info("paper-40").upvotes == 1
    assert hub.paper_info("hostile").github_repo is None
    with pytest.raises(HfHubHTTPError, match="No paper") as caught:
        hub.paper_info("2501.00001")
    assert caught.value.response.status_code == 404


def test_identifiers_with_a_slash_are_found(client, world):
    with writing(world.app.state.engine) as connection:
        made(connection, 1, slug="old", arxiv="cs/0112017")
    assert client.get("/api/papers/cs/0112017").json()["id"] == "cs/0112017"
