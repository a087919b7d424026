"""The page's database, once on SQLite and once on PostgreSQL."""

import pytest

from workingpapers.site.database import open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """An empty database of the page; a test that takes it runs on both."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/site.sqlite"
    else:
        url = request.getfixturevalue("postgres_database")()
    engine = open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_database(tmp_path):
    """An empty database of the page on SQLite, for tests in which the kind makes no difference."""
    engine = open_database(f"sqlite:///{tmp_path}/site.sqlite")
    yield engine
    engine.dispose()
