"""A page with a made-up task, its runs and hostile papers, as an application, behind a test client, and as a server."""

import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import demo
import pytest
import uvicorn
from fastapi.testclient import TestClient
from papers_made import made

from workingpapers.papers import catalogue
from workingpapers.runs import claims
from workingpapers.runs.store import Store
from workingpapers.site.database import writing
from workingpapers.site.settings import Settings
from workingpapers.site.trending import Signal, day_of, record_all
from workingpapers.site.web.app import create_app
from workingpapers.tasks import protocol

HOSTILE = {
    "slug": "hostile",
    "title": "<script>alert('title')</script> $x_{<b>}$ \"quoted\" {{ 91*91 }} 100% & \\input{x} ``",
    "abstract": "<img src=x onerror=alert(1)> $\\alpha</i><script>alert(2)</script>$ " + "long " * 200,
    "authors": ["<script>alert('author')</script>", 'O\'Brien "x" and Sons', "Żółć"],
    "venue": "<b>ICML</b>",
    "keywords": ["<u>keyword</u>"],
    "url": "javascript:alert('url')",
    "pdf": "javascript:alert('pdf')",
    "code": "data:text/html,<script>alert('code')</script>",
    "doi": "10.1/<script>",
    "source": "<i>source</i>",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The demonstration's task and cards in place of the real ones, its store, and the application on a database."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "workingpapers.tasks.demo", SimpleNamespace(task=demo.demo_task()))
        for module in (protocol, claims):
            patch.setattr(module, "task_names", lambda: ("demo",))
        patch.setattr(catalogue, "CARDS", _told_apart(demo.write_cards(folder / "cards")))
        patch.setenv("WORKINGPAPERS_CACHE", str(folder / "cache"))
        catalogue.load_catalogue.cache_clear()
        protocol.load_task.cache_clear()
        demo.fill(Store(str(folder / "runs.sqlite")))
        settings = Settings(
            database=f"sqlite:///{folder}/site.sqlite",
            store=str(folder / "runs.sqlite"),
            secret="a secret of this test, long enough",
            curators=frozenset(["curator@example.org"]),
            proxies=1,
        )
        app = create_app(settings)
        with TestClient(app):  # the catalogue comes with the start
            pass
        _fill(app.state.engine)
        app.state.searcher.refresh()
        yield SimpleNamespace(app=app, settings=settings, folder=folder)
        app.state.engine.dispose()
    catalogue.load_catalogue.cache_clear()
    protocol.load_task.cache_clear()


def _told_apart(folder):
    """Give each of the demonstration's cards an arXiv identifier of its own: the page would take them for one paper."""
    for number, file in enumerate(sorted(folder.iterdir())):
        file.write_text(file.read_text().replace("2302.02334", f"2302.0233{number}"))
    return folder


def _fill(engine):
    today = day_of(time.time()).isoformat()
    with writing(engine) as connection:
        [hostile] = made(connection, 1, **HOSTILE)
        plain = made(connection, 45, published=today)
        record_all(connection, [Signal(hostile, "vote", 30, today)])
        record_all(connection, [Signal(number, "stars", 3 + number, today) for number in plain])


@pytest.fixture
def client(world):
    """A client that no rate limit stops: each test comes from an address of its own."""
    number = next(_numbers)
    made_client = TestClient(world.app, follow_redirects=False)
    made_client.headers["X-Forwarded-For"] = f"10.0.{number // 250}.{number % 250 + 1}"
    return made_client


_numbers = iter(range(60_000))


@pytest.fixture(scope="module")
def server(world):
    """The address of a server of the world."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(world.app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(10)
    listener.close()


CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Log:
    """Stands for a module's logger, so that what other tests do to logging makes no difference."""

    def __init__(self):
        self.text = ""

    def exception(self, message, *values):
        self.text += f"{message % values}\n{traceback.format_exc()}"


@pytest.fixture
def logged(monkeypatch):
    """What a module logs from now on."""

    def listen(module):
        log = Log()
        monkeypatch.setattr(module, "log", log)
        return log

    return listen
