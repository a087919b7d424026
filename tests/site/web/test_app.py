"""The application as a whole."""

from fastapi.testclient import TestClient

from workingpapers.site.settings import Settings
from workingpapers.site.web.app import create_app


def test_a_page_without_papers_answers_everywhere(tmp_path):
    settings = Settings(database=f"sqlite:///{tmp_path}/s", store=f"{tmp_path}/r.sqlite", secret="s" * 32)
    empty = TestClient(create_app(settings))  # never started, so that not even the catalogue is there
    for path in (
        *("/?period=day", "/?page=2", "/search?q=a", "/search?sort=date", "/search?q=a&page=5", "/papers", "/topics"),
        *("/topics/feature-transfer", "/topics/feature-transfer?page=3", "/leaderboards", "/about"),
        *("/feeds/trending.atom", "/feeds/topics/feature-transfer.json", "/feeds/search.rss?q=a"),
    ):
        assert empty.get(path).status_code == 200, path
    assert "Nothing has happened to any paper here yet." in empty.get("/").text
    empty.app.state.engine.dispose()
