"""Feeds are what their formats ask for, whatever stands in a title, and say nothing new when nothing is."""

import json
import re
import time
from datetime import datetime
from email.utils import formatdate, parsedate_to_datetime
from xml.etree import ElementTree

import feedparser
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from papers_made import made
from sqlalchemy import update

from workingpapers.site.database import writing
from workingpapers.site.feeds import FORMATS, Feed, atom, json_feed, rss
from workingpapers.site.papers import Paper, by_ids
from workingpapers.site.schema import papers
from workingpapers.site.settings import Settings
from workingpapers.site.trending import Signal, day_of, record_all
from workingpapers.site.web.app import create_app
from workingpapers.site.web.feed_routes import Changes

ATOM = "{http://www.w3.org/2005/Atom}"
NASTY = 'A <b>bold</b> & "quoted" ]]> $x<y$ \x00\x0b title \ud83d\ude00 é'
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def paper(number=1, **changes):
    values = dict.fromkeys(Paper.__dataclass_fields__, "") | {"id": number, "slug": f"paper-{number}"}
    values |= {"title": f"Paper {number}", "abstract": "About it.", "authors": ("Ada Lovelace", "Żółć")}
    values |= {"topics": ("pruning",), "published": "2026-11-24", "added": 1.764e9 + number, "standing": "reproduced"}
    return Paper(**values | changes)


def feed(*of):
    return Feed("What <trends>", "It & more.", "https://papers.example.org:8443", "/?period=week", "/feeds/x", of)


def parsed(body):
    found = feedparser.parse(body)
    assert not found.bozo, found.get("bozo_exception")
    return found


def test_atom_has_what_rfc_4287_asks_for():
    body = atom(feed(paper(1), paper(2, published=None, authors=())))
    top = ElementTree.fromstring(body)
    assert top.tag == f"{ATOM}feed"
    for element in (top, *top.findall(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):  # exactly one of each: 4.1.1, 4.1.2
            assert len(element.findall(f"{ATOM}{name}")) == 1
        assert RFC3339.fullmatch(element.findtext(f"{ATOM}updated"))
        alternates = [link for link in element.findall(f"{ATOM}link") if link.get("rel") == "alternate"]
        assert len(alternates) == 1
    assert top.find(f"{ATOM}author/{ATOM}name") is not None  # so that an entry may have none
    assert [link.get("href") for link in top.findall(f"{ATOM}link") if link.get("rel") == "self"] == [
        "https://papers.example.org:8443/feeds/x"
    ]
    found = parsed(body)
    assert found.version == "atom10"
    assert [entry.id for entry in found.entries] == [f"tag:papers.example.org,2026:papers/paper-{n}" for n in (1, 2)]
    assert [author.name for author in found.entries[0].authors] == ["Ada Lovelace", "Żółć"]
    assert found.entries[0].published == "2026-11-24T00:00:00Z"
    assert found.entries[0].tags[0].label == "Pruning and sparsity"
    assert found.entries[0].summary == "About it.\n\nMeasured here: reproduced."


def test_rss_has_what_rss_2_asks_for():
    body = rss(feed(paper(1), paper(2)))
    channel = ElementTree.fromstring(body).find("channel")
    for name in ("title", "link", "description", "lastBuildDate"):
        assert channel.findtext(name)
    for item in channel.findall("item"):
        assert item.find("guid").get("isPermaLink") == "false"
        when = parsedate_to_datetime(item.findtext("pubDate"))
        assert when.utcoffset().total_seconds() == 0
    found = parsed(body)
    assert found.version == "rss20"
    assert found.entries[0].link == "https://papers.example.org:8443/papers/paper-1"
    assert time.gmtime(1.764e9 + 1) == found.entries[0].published_parsed


def test_json_has_what_json_feed_asks_for():
    made_feed = json.loads(json_feed(feed(paper(1), paper(2, authors=(), topics=()))))
    assert made_feed["version"] == "https://jsonfeed.org/version/1.1"
    assert made_feed["title"] == "What <trends>"
    assert made_feed["feed_url"] == "https://papers.example.org:8443/feeds/x"
    for item in made_feed["items"]:
        assert isinstance(item["id"], str)
        assert item["content_text"]
        datetime.fromisoformat(item["date_published"])
    assert made_feed["items"][0]["authors"] == [{"name": "Ada Lovelace"}, {"name": "Żółć"}]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_paper_has_the_same_id_in_each_format_and_an_empty_feed_is_one(kind):
    write, _ = FORMATS[kind]
    full, empty = write(feed(paper(7))), write(feed())
    if kind == "json":
        assert json.loads(full)["items"][0]["id"] == "tag:papers.example.org,2026:papers/paper-7"
        assert json.loads(empty)["items"] == []
    else:
        assert parsed(full).entries[0].id == "tag:papers.example.org,2026:papers/paper-7"
        assert parsed(empty).entries == []


@given(st.text(st.characters(), min_size=1, max_size=60))
def test_any_title_comes_through(title):
    it = paper(1, title=title, abstract=title, authors=(title,), topics=())
    legal = re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", title)
    read = ElementTree.fromstring(atom(feed(it)))
    unix = legal.replace("\r\n", "\n").replace("\r", "\n")  # as every XML parser does
    assert (read.findtext(f"{ATOM}entry/{ATOM}title") or "") in (legal, unix)
    ElementTree.fromstring(rss(feed(it)))
    assert json.loads(json_feed(feed(it)))["items"][0]["title"] == title.encode("utf-8", "replace").decode()


def test_markup_in_titles_and_abstracts_stays_text():
    nasty = NASTY.encode("utf-16", "surrogatepass").decode("utf-16")
    it = feed(paper(1, title=nasty, abstract=nasty))
    shown = nasty.replace("\x00", "").replace("\x0b", "")
    assert ElementTree.fromstring(atom(it)).findtext(f"{ATOM}entry/{ATOM}title") == shown
    summary = ElementTree.fromstring(rss(it)).findtext("channel/item/description")
    assert "&lt;b&gt;bold&lt;/b&gt; &amp;" in summary


def test_no_two_versions_of_a_feed_have_the_same_second():
    changes = Changes()
    assert changes.at("/a", b"one", 100.9) == 100
    assert changes.at("/a", b"one", 200) == 100
    assert changes.at("/a", b"two", 100.95) == 101
    assert changes.at("/a", b"one", 101) == 102
    assert changes.at("/b", b"one", 300) == 300


@pytest.fixture
def client(database, tmp_path):
    """The page with papers that trend, behind a client."""
    today = day_of(time.time()).isoformat()
    with writing(database) as connection:
        ids = made(connection, 3, topics=["pruning"])
        other = made(connection, 2, title="About graphs {}")
        for number in ids:
            record_all(connection, [Signal(number, "vote", number, today)])
        assert other
    settings = Settings(
        database=database.url.render_as_string(hide_password=False),
        store=str(tmp_path / "runs.sqlite"),
        secret="s" * 32,
        embeddings=False,
    )
    return TestClient(create_app(settings))


@pytest.mark.parametrize("kind", ["atom", "rss"])
@pytest.mark.parametrize(
    ("path", "slugs"),
    [
        ("/feeds/trending.{}", ["paper-3", "paper-2", "paper-1"]),
        ("/feeds/trending.{}?period=day", ["paper-3", "paper-2", "paper-1"]),
        ("/feeds/topics/compression.{}", ["paper-3", "paper-2", "paper-1"]),
        ("/feeds/topics/multimodal.{}", []),
        ("/feeds/search.{}?q=graphs", ["paper-5", "paper-4"]),
        ("/feeds/search.{}?q=frozen&topic=pruning", ["paper-3", "paper-2", "paper-1"]),
    ],
)
def test_each_list_has_a_feed(client, kind, path, slugs):
    answer = client.get(path.format(kind))
    assert answer.headers["content-type"].startswith(FORMATS[kind][1])
    found = parsed(answer.content)
    assert [entry.link.rpartition("/")[2] for entry in found.entries] == slugs
    assert found.feed.link.startswith("http://127.0.0.1:8000/")
    page = client.get(found.feed.link.removeprefix("http://127.0.0.1:8000"))
    assert page.status_code == 200  # what a feed points at is there


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("cookie", [{}, {"Cookie": "a=b"}], ids=["kept", "made anew"])
def test_a_reader_that_has_it_is_told_so(client, method, cookie):
    def status(**headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = client.request(method, "/feeds/trending.atom", headers=cookie | given)
        assert (answer.content == b"") == (method == "HEAD" or answer.status_code == 304)
        return answer.status_code

    first = client.get("/feeds/trending.atom")
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    later, old = (formatdate(parsedate_to_datetime(modified).timestamp() + off, usegmt=True) for off in (60, -1))
    assert status(If_None_Match=etag) == status(If_Modified_Since=modified) == status(If_Modified_Since=later) == 304
    for no_date in (old, "yesterday", "", "Mon, 99 Foo 2026 99:99:99 GMT"):
        assert status(If_Modified_Since=no_date) == 200
    assert status(If_Modified_Since=modified, If_None_Match='"other"') == 200  # the tag decides: RFC 9110, 13.1.3
    with writing(client.app.state.engine) as connection:
        connection.execute(update(papers).where(papers.c.id == 1).values(title="Renamed"))
    changed = client.get("/feeds/trending.atom", headers={"Cookie": "a=b", "If-Modified-Since": modified})
    assert changed.status_code == 200
    assert b"Renamed" in changed.content
    assert changed.headers["etag"] != etag


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/feeds/trending.xml", 422),
        ("/feeds/trending.atom?period=year", 422),
        ("/feeds/topics/prunin.atom", 404),
        ("/feeds/search.atom?q=x&topic=prunin", 400),
    ],
)
def test_what_there_is_no_feed_of_is_named(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_papers_of_the_database_are_what_feeds_take(database):
    with writing(database) as connection:
        ids = made(connection, 2)
        parsed(atom(feed(*by_ids(connection, ids))))
