"""The JSON API says what the page says."""

import re
import statistics
import subprocess
import sys
import typing

import pytest
from api_tokens import slugs, token_for
from fastapi.testclient import TestClient
from papers_made import DAY, made
from sqlalchemy import insert

from workingpapers.papers.topics import load_topics
from workingpapers.site import trending
from workingpapers.site.database import writing
from workingpapers.site.papers import by_slug
from workingpapers.site.schema import picks
from workingpapers.site.search.filters import SORTS
from workingpapers.site.settings import Settings
from workingpapers.site.web import api
from workingpapers.site.web.app import create_app

BOARD = "demo-standard-openmoji-efficientnet-lite0-quick"


@pytest.fixture
def board(world):
    """The permalink of the demonstration's first leaderboard."""
    return next(name for name in world.app.state.measured.now().boards if name.startswith(BOARD))


@pytest.mark.parametrize(
    "asked", ["q=probing&has=method", "q=paper&page=2", "q=paper&sort=date", "topic=feature-transfer", "q=year:2023"]
)
def test_a_search_finds_what_the_page_finds(client, asked):
    shown = re.findall(r'<h[23]><a href="/papers/([\w-]+)">', client.get(f"/search?{asked}").text)
    found = client.get(f"/api/v1/search?{asked}").json()
    assert slugs(found["items"]) == shown != []
    assert found["total"] >= len(shown)


def test_a_search_marks_what_it_found_in_safe_html(client):
    [hit] = [it for it in client.get("/api/v1/search?q=alert").json()["items"] if it["paper"]["slug"] == "hostile"]
    assert "&lt;script&gt;<mark>alert</mark>" in hit["title"]
    assert "<script" not in hit["title"] + hit["snippet"]
    assert hit["paper"]["title"].startswith("<script>")  # as data it is as published


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("search?sort=best", 422, "'relevance', 'date', 'trending' or 'citations'"),
        ("search?topic=feature-transfr", 400, "Did you mean 'feature-transfer'"),
        ("search?has=luck", 400, "luck"),
        ("search?year=soon", 400, "soon"),
        ("search?page=0", 422, "page"),
        ("search?size=101", 422, "size must be 100 or less; got '101'."),
        ("search?page=NaN", 422, "page must be a whole number; got 'NaN'."),
        ("search?pge=2", 400, "Unknown parameter 'pge'. Did you mean 'page'?"),
        ("search?page=1&page=2", 400, "page may be given once"),
        ("catalogue?size=5", 400, "Unknown parameter 'size'"),
        ("papers/nope", 404, "nope"),
        ("papers/nope/claims", 404, "nope"),
        ("papers/nope/similar", 404, "nope"),
        ("papers/a%00b", 400, "character 0"),
        ("search?q=a%00b", 400, "character 0"),
        ("trending?period=year", 422, "'day', 'week', 'month' or 'all'"),
        ("trending?date=soon", 400, "2026-W48"),
        ("picks?date=2026-13-40", 400, "2026-13-40"),
        ("topics/feature-transfr", 404, "Did you mean 'feature-transfer'"),
        ("leaderboards/nope", 404, "nope"),
        ("leaderboards?task=dem", 400, "Did you mean 'demo'"),
        ("nothing", 404, "/api/v1/nothing"),
    ],
)
def test_what_is_wrong_is_said(client, asked, status, said):
    answer = client.get(f"/api/v1/{asked}")
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert said in answer.json()["error"]


def test_a_wrong_method_is_said(client):
    answer = client.post("/api/v1/search", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 405
    assert "POST" in answer.json()["error"]


def test_the_orders_are_those_of_the_search():
    assert typing.get_args(typing.get_type_hints(api.search)["sort"]) == SORTS
    assert typing.get_args(api.PeriodName) == trending.PERIODS


def test_a_paper_keeps_its_text_and_loses_links_that_run_something(client):
    paper = client.get("/api/v1/papers/hostile").json()
    assert paper["venue"] == "<b>ICML</b>"
    assert (paper["url"], paper["pdf"], paper["code"]) == ("", "", "")
    assert paper["bibtex"] == client.get("/papers/hostile.bib").text
    assert (paper["status"], paper["method"], paper["leaderboards"]) == (None, None, [])
    assert client.get("/api/v1/papers/hostile/claims").json() == {"paper": "hostile", "items": []}


def test_a_paper_of_the_catalogue_has_its_method_and_its_places(client, world, board):
    paper = client.get("/api/v1/papers/moment-probing").json()
    assert paper["method"]["path"] == "workingpapers.methods.heads.naive_bayes:TiedGaussianNB"
    assert "TiedGaussianNB().fit" in paper["method"]["usage"]
    assert paper["status"] == "measured"
    [place] = [it for it in paper["leaderboards"] if it["leaderboard"] == board]
    assert (place["entry"], place["rank"], place["verdict"]) == ("moment-probing", 1, "helps")
    runs = [run for run in world.app.state.store.runs() if run.entry == "moment-probing" and run.setting == "standard"]
    assert place["value"]["mean"] == pytest.approx(statistics.fmean(run.metrics["accuracy"] for run in runs))


def test_claims_stand_reported_beside_measured(client, board):
    found = client.get("/api/v1/papers/moment-probing/claims").json()["items"]
    assert [it["standing"] for it in found] == ["reproduced", "reproduced", "no entry yet", "not testable"]
    first, *_, last = found
    assert first["reported"] == [{"on": "ImageNet-1K, ViT-B/16", "value": 83.15, "baseline": 82.04, "unit": "%"}]
    assert first["command"] == "papers try demo --entries moment-probing"
    assert first["leaderboard"] == board
    assert first["verdict"] == "helps"
    assert first["difference"]["low"] > 0
    means = first["measured"]["mean"] - first["versus"]["mean"]
    assert first["difference"]["mean"] == pytest.approx(means)  # both have the same five seeds
    assert (last["command"], last["verdict"], last["measured"]) == ("", None, None)
    assert "GPU hours" in last["untestable"]


def test_similar_papers_are_those_of_the_page(client):
    shown = client.get("/papers/paper-21").text.partition('id="similar"')[2]
    found = client.get("/api/v1/papers/paper-21/similar").json()["items"]
    assert slugs(found) == re.findall(r'<li><a href="/papers/([\w-]+)">', shown) != []
    assert len(client.get("/api/v1/papers/paper-21/similar?size=2").json()["items"]) == 2


def test_trending_is_that_of_the_page_and_comes_in_pages(client):
    shown = re.findall(r'<h[23]><a href="/papers/([\w-]+)">', client.get("/?period=week").text)
    found = client.get("/api/v1/trending?size=20").json()
    assert slugs(found["items"]) == shown
    assert found["items"][0]["why"] == "30 votes"
    assert found["items"][0]["counts"] == {"vote": 30}
    pages = [client.get(f"/api/v1/trending?size=7&page={number}").json() for number in (1, 2, 3)]
    assert [slug for page in pages for slug in slugs(page["items"])][:20] == shown
    assert [page["more"] for page in pages] == [True] * 3
    assert client.get("/api/v1/trending?period=day&date=2026-01-01").json()["items"] == []
    whole = client.get("/api/v1/trending?period=all&size=100").json()
    assert not whole["more"]
    assert whole["period"]["key"] == ""


def test_picks_are_those_of_the_day(client, world):
    with writing(world.app.state.engine) as connection:
        connection.execute(insert(picks).values(day="2026-11-20", paper_id=by_slug(connection, "hostile").id))
    assert slugs(client.get("/api/v1/picks?date=2026-11-20").json()["items"]) == ["hostile"]
    assert client.get("/api/v1/picks?date=2026-11-21").json()["items"] == []


def test_topics_and_the_catalogue_are_those_of_the_page(client):
    found = client.get("/api/v1/topics").json()
    assert [it["id"] for it in found["items"]] == list(load_topics())
    shown = re.findall(r'<a href="/topics/([\w-]+)">[^<]+</a> <span class="meta">(\d+)', client.get("/topics").text)
    root = "pre-trained-models"
    assert {name: number for name, number in found["papers"].items() if name != root} == {
        name: int(number) for name, number in shown
    }
    assert found["papers"][root] == 3
    topic = client.get("/api/v1/topics/feature-transfer?size=2").json()
    assert topic["above"][0]["id"] == root
    assert (topic["total"], topic["more"], len(topic["items"])) == (3, True, 2)
    every = slugs(client.get("/api/v1/topics/feature-transfer").json()["items"])
    listed = re.findall(r'<h[23]><a href="/papers/([\w-]+)">', client.get("/topics/feature-transfer").text)
    assert sorted(every) == sorted(listed) == ["din", "generative-probe", "moment-probing"]
    assert sorted(slugs(client.get("/api/v1/catalogue").json()["items"])) == sorted(every)


def test_leaderboards_say_what_their_pages_say(client, board):
    listed = client.get("/api/v1/leaderboards").json()
    assert len(listed["items"]) == 3
    assert "demo-of-the-past" in listed["left_out"][0]
    [one] = [it for it in listed["items"] if it["name"] == board]
    assert (one["first"], one["entries"], one["task_title"]) == ("moment-probing", 12, "A demonstration")
    whole = client.get(f"/api/v1/leaderboards/{board}").json()
    truth = client.get(f"/leaderboards/{board}.json").json()
    assert [row["entry"] for row in whole["rows"]] == [row["entry"] for row in truth["rows"]]
    for row, true in zip(whole["rows"], truth["rows"], strict=True):
        for name, value in true["values"].items():
            got = row["values"][name]
            assert got["mean"] == value["mean"]
            assert got["high"] - got["mean"] == pytest.approx(value["half"])
    assert whole["rows"][-1]["rank"] is None  # it crashes
    assert whole["rows"][-1]["failures"]
    assert whole["command"] == "papers try demo --seeds 6"
    assert whole["hardware"]["processor"] == "Some Processor @ 2.4 GHz"
    assert client.get(f"/leaderboards/{board}.csv").status_code == 200


def test_leaderboards_are_filtered(client, board):
    def names(**asked):
        return [it["name"] for it in client.get("/api/v1/leaderboards", params=asked).json()["items"]]

    assert len(names(task="demo")) == 3
    assert board in names(data="openmoji")
    assert len(names(data="openmoji")) == 2
    assert len(names(hardware="Some Processor @ 2.4 GHz")) == 3
    one = f"/api/v1/leaderboards/{board}"
    assert client.get(one, params={"hardware": "Some Processor @ 2.4 GHz"}).json() == client.get(one).json()
    wrong = client.get(one, params={"hardware": "Another"})
    assert wrong.status_code == 404
    assert "Some Processor" in wrong.json()["error"]


def test_feeds_are_there(client, world):
    found = client.get("/api/v1/feeds").json()["items"]
    assert len(found) == len(trending.PERIODS) + len(load_topics()) + 1
    for feed in found[:5] + found[-1:]:
        for kind in ("atom", "rss", "json"):
            path = feed[kind].removeprefix(world.settings.address).partition("{")[0]
            assert client.get(path).status_code == 200
            assert feed["template"] == ("{" in feed[kind])


def test_the_page_about_the_api_names_every_endpoint_and_runs_nothing(client):
    answer = client.get("/api")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert re.findall(r"<script(?! type=\"module\" src=\"/static/)", answer.text) == []
    assert not re.search(r" style=| on\w+=|https?://(?!127\.0\.0\.1|testserver)[^<]*\.(?:js|css)", answer.text)
    schema = client.get("/api/v1/openapi.json").json()
    for path, operations in schema["paths"].items():
        assert path.startswith("/api/")
        for method, operation in operations.items():
            assert f"<code>{method.upper()} {path}</code>" in answer.text
            assert operation["description"]
    assert "a task that measures papers; for example probe</dd>" in answer.text
    targets = set(re.findall(r'href="#([\w-]+)"', answer.text)) - {"content"}
    assert {"model-SearchToSave", "model-Reading"} <= targets
    assert targets <= set(re.findall(r'id="([\w-]+)"', answer.text))
    names = [it["operationId"] for operations in schema["paths"].values() for it in operations.values()]
    assert len(names) == len(set(names))


def test_only_own_marks_are_said_to_need_a_token(client):
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    secured = {path for path, operations in paths.items() for it in operations.values() if it.get("security")}
    assert secured == {path for path in paths if path.startswith("/api/v1/me")}


def test_it_works_on_both_databases(database, tmp_path):
    with writing(database) as connection:
        numbers = made(connection, 3, topics=["pruning"])
        trending.record_all(connection, [trending.Signal(numbers[1], "vote", 1, DAY)])
    settings = Settings(
        database=database.url.render_as_string(hide_password=False),
        store=str(tmp_path / "runs.sqlite"),
        secret="s" * 32,
        embeddings=False,
    )
    client = TestClient(create_app(settings))
    client.headers["Authorization"] = f"Bearer {token_for(database, 'a@example.org')}"
    assert client.get("/api/v1/topics").json()["papers"]["pruning"] == 3
    assert slugs(client.get("/api/v1/topics/pruning").json()["items"]) == ["paper-3", "paper-2", "paper-1"]
    assert slugs(client.get(f"/api/v1/trending?date={DAY}").json()["items"]) == ["paper-2"]
    assert [it["paper"]["id"] for it in client.get(f"/api/daily_papers?date={DAY}").json()] == ["paper-2"]
    assert len(client.get("/api/daily_papers").json()) == 3
    client.put("/api/v1/me/votes/paper-1")
    client.put("/api/v1/me/votes/paper-3")
    assert slugs(client.get("/api/v1/me/votes").json()["items"]) == ["paper-3", "paper-1"]
    assert client.get("/api/v1/papers/a%00b").status_code == 400
    kept = client.put("/api/v1/me/searches", json={"query": "a\0b"})  # which is in no text of PostgreSQL
    assert [it["query"] for it in kept.json()["items"]] == ["a b"]
    assert client.get("/api/papers/paper-2").json()["title"] == "Paper 2 on frozen features"


def test_no_request_brings_torch_in(tmp_path):
    program = f"""
import sys
from fastapi.testclient import TestClient
from workingpapers.site.settings import Settings
from workingpapers.site.web.app import create_app
app = create_app(Settings(database="sqlite:///{tmp_path}/s.sqlite", store="{tmp_path}/r.sqlite", secret="s" * 32))
with TestClient(app) as client:
    for path in ("search?q=probe", "papers/moment-probing", "papers/moment-probing/claims", "leaderboards", "topics"):
        assert client.get("/api/v1/" + path).status_code == 200, path
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
