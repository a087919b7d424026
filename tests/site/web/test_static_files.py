import pytest

from workingpapers.site.web.static_files import address, digest, files


def test_files_are_kept_for_good_at_an_address_that_changes_with_them(client):
    where = address("site.css")
    assert where == f"/static/{digest()}/site.css"
    answer = client.get(where)
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.content == files()["site.css"].body


def test_the_reports_style_is_the_pages_too(client):
    assert "--series-8" in client.get(address("style.css")).text


def test_an_old_versions_address_gets_what_is_here_but_not_to_keep(client):
    answer = client.get("/static/0123456789ab/site.js")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.content == files()["site.js"].body
    assert answer.headers["content-type"].startswith("text/javascript")


def test_files_are_compressed_for_who_takes_it_alone_whoever_asked_before(client):
    packed = client.get(address("plot.js"), headers={"Accept-Encoding": "gzip"})
    plain = client.get(address("plot.js"), headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
    assert packed.content == plain.content == files()["plot.js"].body


@pytest.mark.parametrize("name", ["none.css", "..%2Fapp.py", "%2e%2e", "app.py"])
def test_nothing_else_is_served(client, name):
    assert client.get(f"/static/{digest()}/{name}").status_code == 404


def test_a_template_that_names_a_file_that_is_not_there_fails_at_once():
    with pytest.raises(KeyError):
        address("none.css")


def test_nothing_comes_from_elsewhere():
    for name, file in files().items():
        text = file.body.decode()
        assert "@import" not in text
        assert "@font-face" not in text
        places = text.replace("http://www.w3.org/2000/svg", "")
        assert "http" not in places.replace("https", "http") or name == "none"
