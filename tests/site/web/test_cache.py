import asyncio
import gzip

import httpx
import pytest
from sqlalchemy import text

from workingpapers.site.database import open_database, writing
from workingpapers.site.web import cache
from workingpapers.site.web.cache import LIFETIME, LONGEST, MicroCache, data_version


class Counting:
    """An application that numbers its answers."""

    def __init__(self, status=200, headers=(), body="page", pause=0.0):
        self.asked, self.status, self.headers, self.body, self.pause = 0, status, list(headers), body, pause

    async def __call__(self, scope, receive, send):
        self.asked += 1
        number = self.asked
        await asyncio.sleep(self.pause)
        body = f"{self.body} {number} of {scope['path']}".encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": self.status, "headers": [*headers, *self.headers]})
        await send({"type": "http.response.body", "body": body})


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def asking(app, version=lambda: None, clock=None):
    """Return the layer's client."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(MicroCache(app, version, clock or Clock())), base_url="http://page"
    )


async def texts(client, *asked, **options):
    return [(await client.get(path, **options)).text for path in asked]


def test_a_page_is_made_once_in_its_lifetime():
    app, clock = Counting(), Clock()
    client = asking(app, clock=clock)
    assert asyncio.run(texts(client, "/a", "/a", "/b", "/a?x=1", "/a?x=1")) == [
        "page 1 of /a", "page 1 of /a", "page 2 of /b", "page 3 of /a", "page 3 of /a",
    ]  # fmt: skip
    clock.now += LIFETIME + 0.1
    assert asyncio.run(texts(asking(app, clock=clock), "/a")) == ["page 4 of /a"]


def test_a_page_lives_on_while_nothing_is_written():
    app, clock, written = Counting(), Clock(), [1]
    client = asking(app, lambda: written[0], clock)

    async def journey():
        seen = await texts(client, "/a")
        clock.now += LIFETIME * 3
        seen += await texts(client, "/a")
        written[0] = 2
        seen += await texts(client, "/a")
        clock.now += LONGEST + 1
        return seen + await texts(client, "/a")

    assert [int(seen.split()[1]) for seen in asyncio.run(journey())] == [1, 1, 2, 3]


def test_many_who_ask_at_once_are_answered_by_one():
    app = Counting(pause=0.05)
    client = asking(app)

    async def rush():
        return await asyncio.gather(*(client.get("/a") for _ in range(20)))

    assert {answer.text for answer in asyncio.run(rush())} == {"page 1 of /a"}
    assert app.asked == 1


def test_a_failure_is_nobody_elses():
    app = Counting(status=500, pause=0.02)
    client = asking(app)

    async def rush():
        return await asyncio.gather(*(client.get("/a") for _ in range(5)))

    assert len(asyncio.run(rush())) == app.asked == 5


@pytest.mark.parametrize("personal", [{"Cookie": "session=x"}, {"Authorization": "Bearer x"}])
def test_who_says_who_they_are_gets_their_own(personal):
    app = Counting()
    client = asking(app)
    assert len(set(asyncio.run(texts(client, "/a", "/a", headers=personal)))) == 2
    assert asyncio.run(texts(client, "/a"))[0] == "page 3 of /a"  # and nobody else gets theirs


@pytest.mark.parametrize(
    "header", [(b"set-cookie", b"a=b"), (b"cache-control", b"private"), (b"cache-control", b"no-store")]
)
def test_what_is_not_for_all_is_not_kept(header):
    assert len(set(asyncio.run(texts(asking(Counting(headers=[header])), "/a", "/a")))) == 2


def test_an_answer_that_is_still_right_is_not_sent_again():
    client = asking(Counting())

    async def journey():
        first = await client.get("/a")
        again = await client.get("/a", headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
        other = await client.get("/a", headers={"If-None-Match": '"other"'})
        return first, again, other

    first, again, other = asyncio.run(journey())
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert "content-length" not in again.headers
    assert other.status_code == 200
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    ("since", "status"),
    [
        ("Wed, 25 Nov 2026 10:00:00 GMT", 304),
        ("Wed, 25 Nov 2026 11:00:00 +0100", 304),
        ("Wed, 25 Nov 2026 09:59:59 GMT", 200),
        ("soon", 200),
    ],
)
def test_an_answer_with_a_date_is_not_sent_again_to_who_has_it(since, status):
    app = Counting(headers=[(b"last-modified", b"Wed, 25 Nov 2026 10:00:00 GMT")])
    client = asking(app)
    first, kept = (
        asyncio.run(client.request(method, "/a", headers={"If-Modified-Since": since})) for method in ("GET", "HEAD")
    )
    assert (first.status_code, kept.status_code, app.asked) == (status, status, 1)
    assert first.headers["etag"] == kept.headers["etag"]
    assert asyncio.run(asking(Counting()).get("/a", headers={"If-Modified-Since": since})).status_code == 200


def test_text_is_compressed_for_who_takes_it():
    app = Counting(body="page " * 400)

    async def journey():
        async with asking(app) as client:
            plain = await client.get("/a", headers={"Accept-Encoding": "identity"})
            async with client.stream("GET", "/a", headers={"Accept-Encoding": "br, gzip"}) as packed:
                raw = b"".join([part async for part in packed.aiter_raw()])
            return plain, packed, raw

    plain, packed, raw = asyncio.run(journey())
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(raw) < len(plain.content) / 5
    assert gzip.decompress(raw) == plain.content
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("accepted", "is_packed"),
    [
        ("gzip", True),
        ("br;q=1, GZIP ; q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, br", False),
        ("x-gzip2", False),
    ],
)
def test_who_refuses_compression_gets_none(accepted, is_packed):
    client = asking(Counting(body="page " * 400))
    answer = asyncio.run(client.get("/a", headers={"Accept-Encoding": accepted}))
    assert ("content-encoding" in answer.headers) == is_packed


def test_head_is_get_without_the_body():
    async def journey():
        client = asking(Counting())
        return await client.head("/a"), await client.get("/a")

    head, get = asyncio.run(journey())
    assert head.content == b""
    assert dict(head.headers) == dict(get.headers)


def test_streams_pass_through():
    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for part in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    assert asyncio.run(texts(asking(stream), "/a")) == ["one two"]


def test_it_never_grows_beyond_its_bound(monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 20_000)
    app = Counting(body="x" * 1000)
    layer = MicroCache(app, lambda: None, Clock())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(layer), base_url="http://page")
    asyncio.run(texts(client, *(f"/{number}" for number in range(50))))
    assert sum(len(answer.body) for answer in layer._kept.values()) <= 20_000
    assert asyncio.run(texts(client, "/49"))[0].endswith(" 50 of /49")  # the latest are kept


def test_a_download_does_not_drive_pages_out():
    app = Counting()
    layer = MicroCache(app, lambda: None, Clock())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(layer), base_url="http://page")
    assert asyncio.run(texts(client, "/page")) == ["page 1 of /page"]
    app.body = "x" * cache.MOST_BYTES
    asyncio.run(texts(client, "/all.json"))
    assert asyncio.run(texts(client, "/page")) == ["page 1 of /page"]


def test_long_addresses_count_towards_its_bound(monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 20_000)
    layer = MicroCache(Counting(), lambda: None, Clock())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(layer), base_url="http://page")
    asyncio.run(texts(client, *(f"/?{number}{'x' * 3000}" for number in range(50))))
    assert 0 < sum(map(len, layer._kept)) <= 20_000


def test_the_version_of_a_database_changes_with_every_commit(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/site.sqlite")
    version = data_version(engine)
    before = version()
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM papers")).scalar_one()
    assert version() == before
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO users (email, created) VALUES ('a@b.c', 1)"))
    assert version() != before
    engine.dispose()
