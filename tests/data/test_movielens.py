"""MovieLens-100K from the files of the package recbole, and from the original over HTTP."""

import hashlib
import io
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from workingpapers.data import movielens as module
from workingpapers.data.impressions import load_impressions
from workingpapers.errors import UserError
from workingpapers.tasks.recommend.logs import load_log

RATINGS = [(7, 3, 4, 100), (7, 1, 5, 90), (8, 2, 1, 500), (7, 2, 3, 100), (8, 1, 5, 400)]  # user, film, stars, second
PEOPLE = [(7, 24, "M", "technician", "85711"), (8, 53, "F", "other", "T8H1N")]
FILMS = [
    (1, "Toy Story", 1995, ["Animation", "Children's"]),
    (2, "GoldenEye", 1995, ["Action"]),
    (3, "An | odd one", "V", ["unknown"]),
]


def atomic(folder):
    """The data as the package holds them."""
    folder.mkdir(parents=True)
    (folder.parent.parent / "__init__.py").touch()
    people = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token", *map("\t".join, text(PEOPLE))]
    films = [(i, title, year, " ".join(genres)) for i, title, year, genres in FILMS]
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *map("\t".join, text(films))]
    given = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *map("\t".join, text(RATINGS))]
    for part, lines in (("user", people), ("item", items), ("inter", given)):
        (folder / f"ml-100k.{part}").write_text("\n".join(lines) + "\n")


def text(rows):
    return [[str(value) for value in row] for row in rows]


def original():
    """The data as the original archive holds them."""
    films = []
    for i, title, year, genres in FILMS:
        date = f"01-Jan-{year}" if isinstance(year, int) else ""
        flags = [str(int(genre in genres)) for genre in module.GENRES]
        films.append("|".join([str(i), title.replace("|", "/"), date, "", "http://", *flags]))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("ml-100k/u.data", "\n".join(map("\t".join, text(RATINGS))) + "\n")
        archive.writestr("ml-100k/u.user", "\n".join(map("|".join, text(PEOPLE))) + "\n")
        archive.writestr("ml-100k/u.item", "\n".join(films).encode("latin-1"))
    return held.getvalue()


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A cache of its own, and no package."""
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "recbole" not in p])
    monkeypatch.delitem(sys.modules, "recbole", raising=False)


@pytest.fixture
def package(tmp_path, monkeypatch):
    atomic(tmp_path / "packages" / "recbole" / "dataset_example" / "ml-100k")
    monkeypatch.syspath_prepend(tmp_path / "packages")


@pytest.fixture
def served(tmp_path, monkeypatch):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "ml-100k.zip").write_bytes(original())
    monkeypatch.setattr(module, "package_folder", lambda: None)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(original()).hexdigest())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{server.server_port}/ml-100k.zip")
    yield folder
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def check_impressions(found):
    table = found.table
    assert table["user"].tolist() == [7, 7, 7, 8, 8]
    assert table["film"].tolist() == [1, 3, 2, 1, 2]  # by time, and by row within a second
    assert found.clicks.tolist() == [1, 1, 0, 1, 0]
    assert table["age_of_person"].tolist() == [24, 24, 24, 53, 53]
    assert table["region"].tolist() == ["8", "8", "8", "T", "T"]
    assert table["genres"].tolist() == ["Animation|Children's", "unknown", "Action", "Animation|Children's", "Action"]
    np.testing.assert_array_equal(table["released"].to_numpy(float), [1995, np.nan, 1995, 1995, 1995])
    assert table["occupation"].tolist()[2:4] == ["technician", "other"]
    assert found.kinds["age_of_person"] == "numerical"
    assert found.user == "user"
    assert found.name == "movielens-100k"


def test_from_the_package(package):
    assert module.here()
    check_impressions(load_impressions("movielens-100k"))


def test_from_the_original(served):
    assert not module.here()
    check_impressions(load_impressions("movielens-100k"))
    assert module.here()
    (served / "ml-100k.zip").unlink()
    check_impressions(load_impressions("movielens-100k"))  # downloaded once


def test_another_file_at_the_address_is_refused(served, monkeypatch):
    (served / "ml-100k.zip").write_bytes(b"something else")
    with pytest.raises(UserError, match="is not the file that was expected"):
        load_impressions("movielens-100k")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(UserError, match="is not MovieLens-100K"):
        load_impressions("movielens-100k")


def test_a_package_of_other_columns_is_refused(package, tmp_path):
    path = tmp_path / "packages" / "recbole" / "dataset_example" / "ml-100k" / "ml-100k.user"
    path.write_text("person:token\n7\n")
    with pytest.raises(UserError, match=r"lacks the columns \['age', 'zip'\]"):
        load_impressions("movielens-100k")


@pytest.fixture
def whole(monkeypatch):
    """The package as it is published, where it is installed."""
    monkeypatch.undo()
    if module.package_folder() is None:
        pytest.skip("the package recbole is not installed")


def test_the_published_package(whole):
    found = load_impressions("movielens-100k")
    assert len(found) == 100_000
    assert found.table["user"].nunique() == 943
    assert found.table["film"].nunique() == 1682
    assert found.clicks.mean() == pytest.approx(0.55375)
    assert found.table.drop(columns=["released", "age"]).notna().all().all()
    log = load_log("movielens-100k")
    assert len(log.log.items) == 1008
