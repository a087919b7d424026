"""Signing in by mail and everything under /me, as a browser without scripts does it."""

import asyncio
import email
import email.policy
import html
import re
import threading
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from anyio import to_thread
from fastapi.testclient import TestClient
from papers_made import made
from sqlalchemy import func, select

from workingpapers.site.database import writing
from workingpapers.site.people import SESSION_AGE
from workingpapers.site.recommend import Recommendations
from workingpapers.site.schema import library, outbox, papers, picks, searches, sessions, tags, users, votes
from workingpapers.site.settings import Settings
from workingpapers.site.web.app import THREADS, create_app

BROWSER = {"Sec-Fetch-Site": "same-origin"}
PAGES = [
    *("/me", "/me/library", "/me/tags", "/me/searches", "/me/recommended", "/me/data", "/me/data/export"),
    *("/me/tokens", "/submit"),
]


def settings_for(engine, tmp_path, **changes):
    return Settings(
        database=engine.url.render_as_string(hide_password=False),
        store=str(tmp_path / "runs.sqlite"),
        secret="s" * 32,
        curators=frozenset(["curator@b.example"]),
        embeddings=False,
        **{"address": "http://testserver"} | changes,
    )


@pytest.fixture
def app(database, tmp_path):
    """The page with three papers."""
    with writing(database) as connection:
        made(connection, 3)
    return create_app(settings_for(database, tmp_path))


@pytest.fixture
def browser(app):
    """Somebody who is not signed in and follows no redirect unasked."""
    return TestClient(app, headers=BROWSER, follow_redirects=False)


def mailed_link(app, address):
    """The link of the last mail to an address, without the host."""
    found = select(outbox.c.message).where(outbox.c.email == address).order_by(outbox.c.id.desc()).limit(1)
    with app.state.engine.connect() as connection:
        message = connection.execute(found).scalar_one()
    text = email.message_from_bytes(message, policy=email.policy.default).get_content()
    place = urlsplit(re.search(r"https?://\S+token=\S+", text)[0])
    return f"{place.path}?{place.query}"


def sign_in(app, address="a@b.example", **form):
    """A browser in which somebody is signed in."""
    browser = TestClient(app, headers=BROWSER, follow_redirects=False)
    assert browser.post("/sign-in", data={"email": address} | form).status_code == 200
    token = parse_qs(urlsplit(mailed_link(app, address)).query)["token"][0]
    answer = browser.post("/sign-in/confirm", data={"token": token})
    assert answer.status_code == 303
    return browser


@pytest.fixture
def reader(app):
    """A browser in which a@b.example is signed in."""
    return sign_in(app)


def count(app, table):
    with app.state.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_link_is_sent_shown_and_used_once(app, browser):
    assert 'name="next" value="/papers/paper-1"' in browser.get("/sign-in?next=/papers/paper-1").text
    sent = browser.post("/sign-in", data={"email": " A@B.example ", "next": "/papers/paper-1"})
    assert "on its way to a@b.example" in sent.text
    link = mailed_link(app, "a@b.example")
    for _ in range(2):  # mail programs look at links; that signs nobody in
        shown = browser.get(link)
        assert "Sign in as a@b.example?" in shown.text
        assert shown.headers["cache-control"] == "no-store"
        assert "set-cookie" not in shown.headers
    assert count(app, users) == 0
    token = html.unescape(re.search(r'name="token" value="([^"]+)"', shown.text)[1])
    done = browser.post("/sign-in/confirm", data={"token": token})
    assert (done.status_code, done.headers["location"]) == (303, "/papers/paper-1")
    cookie = done.headers["set-cookie"]
    assert re.match(rf"session=\S{{43}}; HttpOnly; Max-Age={int(SESSION_AGE)}; Path=/; SameSite=lax$", cookie)
    assert "Signed in as a@b.example" in browser.get("/me").text
    again = TestClient(app, headers=BROWSER).post("/sign-in/confirm", data={"token": token})
    assert again.status_code == 400
    assert "used already" in again.text


def test_over_https_the_cookie_belongs_to_this_host_alone(sqlite_database, tmp_path):
    app = create_app(settings_for(sqlite_database, tmp_path, address="https://testserver"))
    browser = TestClient(app, base_url="https://testserver", headers=BROWSER, follow_redirects=False)
    browser.post("/sign-in", data={"email": "a@b.example"})
    token = parse_qs(urlsplit(mailed_link(app, "a@b.example")).query)["token"][0]
    cookie = browser.post("/sign-in/confirm", data={"token": token}).headers["set-cookie"]
    assert cookie.startswith("__Host-session=")
    assert "; Secure" in cookie
    assert "Domain" not in cookie
    assert browser.get("/me").status_code == 200


def test_known_and_unknown_addresses_get_the_same_answer(app, browser):
    sign_in(app, "known@b.example")
    known, unknown = (
        browser.post("/sign-in", data={"email": address}) for address in ("known@b.example", "other@b.example")
    )
    assert known.status_code == unknown.status_code == 200
    assert known.text.replace("known@", "other@") == unknown.text
    assert set(known.headers) == set(unknown.headers)


def test_nobody_is_flooded_with_links(app, browser):
    for _ in range(10):
        assert browser.post("/sign-in", data={"email": "victim@b.example"}).status_code == 200
    with app.state.engine.connect() as connection:
        mails = connection.execute(select(func.count()).where(outbox.c.email == "victim@b.example")).scalar_one()
    assert mails == 3  # an hour; the answer does not say so
    refused = browser.post("/sign-in", data={"email": "other@b.example"})
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 1
    assert count(app, outbox) == 3


def test_what_is_no_address_is_refused(app, browser):
    for address in ("", "x", "a@b", "a@b.example\r\nBcc: c@d.example", "a@b.example, c@d.example"):
        assert browser.post("/sign-in", data={"email": address}).status_code in (400, 422)
    assert count(app, outbox) == 0


def test_nobody_is_sent_elsewhere_after_signing_in(app):
    browser = TestClient(app, headers=BROWSER, follow_redirects=False)
    aways = ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:evil(1)", "/a\r\nX: y", "me")
    for number, away in enumerate(aways):
        browser.cookies.clear()
        assert "evil" not in browser.get("/sign-in", params={"next": away}).text
        browser.post("/sign-in", data={"email": f"a{number}@b.example", "next": away})
        token = parse_qs(urlsplit(mailed_link(app, f"a{number}@b.example")).query)["token"][0]
        assert browser.post("/sign-in/confirm", data={"token": token}).headers["location"] == "/me"


def test_nobody_is_sent_elsewhere_after_a_vote(reader):
    for referer in (
        "https://evil.example/x",
        "http://testserver@evil.example/",
        "//[",
        "http://testserver//evil.example",
    ):
        answer = reader.post("/papers/paper-1/vote", headers={"Referer": referer})
        assert answer.headers["location"] == "/papers/paper-1"


def test_bad_links_say_so(browser):
    for token in ("", "x", "a.b", "\N{SNOWMAN}"):
        assert "not valid" in browser.get("/sign-in/confirm", params={"token": token}).text
    assert browser.post("/sign-in/confirm", data={"token": "x"}).status_code == 400


def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(browser):
    for path in PAGES:
        answer = browser.get(path, params={"page": "2"})
        assert answer.status_code == 303
        place = urlsplit(answer.headers["location"])
        assert (place.path, parse_qs(place.query)) == ("/sign-in", {"next": [f"{path}?page=2"]})


def test_who_votes_without_being_signed_in_comes_back_to_the_page(app, browser):
    answer = browser.post("/papers/paper-1/vote", headers={"Referer": "http://testserver/?period=all"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?next=%2F%3Fperiod%3Dall"
    assert count(app, votes) == 0


def test_pages_of_a_new_person_answer_and_are_kept_by_nobody(reader):
    for path in PAGES:
        answer = reader.get(path)
        assert answer.status_code == 200, path
        assert "no-store" in answer.headers["cache-control"]
        assert "style=" not in answer.text
        assert "<script>" not in answer.text


def test_signing_out_here_and_everywhere(app, reader):
    others = [sign_in(app), sign_in(app)]
    assert reader.post("/sign-out").headers["location"] == "/"
    assert reader.get("/me").status_code == 303
    assert others[0].get("/me").status_code == 200
    others[0].post("/sign-out", data={"everywhere": "1"})
    assert others[1].get("/me").status_code == 303
    assert count(app, sessions) == 0


def test_votes_from_a_form(app, reader):
    for _ in range(2):
        back = reader.post("/papers/paper-2/vote", headers={"Referer": "http://testserver/?period=day&page=2"})
        assert (back.status_code, back.headers["location"]) == (303, "/?period=day&page=2")
    with app.state.engine.connect() as connection:
        given = select(papers.c.votes).where(papers.c.slug == "paper-2")
        assert connection.execute(given).scalar_one() == 1
        reader.post("/papers/paper-2/vote", data={"undo": "1"})
    assert count(app, votes) == 0
    assert reader.post("/papers/nothing/vote").status_code == 404


def test_another_sites_form_changes_nothing(app, reader):
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        assert reader.post("/papers/paper-2/vote", headers=headers).status_code == 403
        assert reader.post("/me/data/delete", data={"email": "a@b.example"}, headers=headers).status_code == 403
    assert (count(app, votes), count(app, users)) == (0, 1)


def test_tags_from_a_form_to_their_page(app, reader):
    reader.post("/papers/paper-1/tags", data={"tag": "To Read: no", "do": "add"})
    assert count(app, tags) == 0
    for tag in ("R&D  c++", "r&d c++", "x"):
        reader.post("/papers/paper-1/tags", data={"tag": tag, "do": "add"})
    assert count(app, tags) == 2
    listed = reader.get("/me/tags").text
    address = html.unescape(re.search(r'href="(/me/tags/r[^"]+)"', listed)[1])
    assert "Paper 1 on frozen features" in reader.get(address).text
    reader.post("/papers/paper-1/tags", data={"tag": "R&D C++", "do": "remove"})
    assert reader.get(address).status_code == 404
    assert reader.get("/me/tags/%00").status_code == 400


def test_the_library_from_forms(app, reader):
    for slug, state in (("paper-1", "unread"), ("paper-2", "unread"), ("paper-3", "unread"), ("paper-2", "read")):
        reader.post(f"/papers/{slug}/library", data={"state": state})
    assert re.findall(r"<h2><a href=\"/papers/([^\"]+)", reader.get("/me/library").text) == [
        *("paper-3", "paper-2", "paper-1")
    ]
    assert re.findall(r"<h2><a href=\"/papers/([^\"]+)", reader.get("/me/library?show=read").text) == ["paper-2"]
    assert "1 paper<" in reader.get("/me/library?show=read").text
    reader.post("/papers/paper-3/library", data={"state": "drop"})
    assert "paper-3" not in reader.get("/me").text
    assert "paper-1" in reader.get("/me").text
    assert reader.post("/papers/paper-3/library", data={"state": "eaten"}).status_code == 422
    assert reader.get("/me/library?show=eaten").status_code == 422
    assert count(app, library) == 2


def test_searches_from_forms(app, reader):
    query = '"frozen <b>features</b>" year:2024..'
    reader.post("/me/searches", data={"query": query})
    shown = reader.get("/me/searches").text
    assert html.escape(query, quote=False).replace('"', "&#34;") in shown
    assert "Turn alert on" in shown
    assert "You get no digest yet" in shown
    reader.post("/me/searches", data={"query": query, "alert": "1"})
    assert "Turn alert off" in reader.get("/me/searches").text
    (number,) = re.findall(r"/me/searches/(\d+)/delete", reader.get("/me/searches").text)
    other = sign_in(app, "other@b.example")
    other.post(f"/me/searches/{number}/delete")
    assert count(app, searches) == 1
    reader.post(f"/me/searches/{number}/delete")
    assert count(app, searches) == 0
    assert reader.post(f"/me/searches/{10**30}/delete").status_code == 400


def test_tokens_are_shown_once(app, reader):
    made_page = reader.post("/me/tokens", data={"name": "my <script>"})
    token = re.search(r"wp_[\w-]{43}", made_page.text)[0]
    listed = reader.get("/me/tokens").text
    assert token not in listed
    assert "my &lt;script&gt;" in listed
    (number,) = re.findall(r"/me/tokens/(\d+)/delete", listed)
    sign_in(app, "other@b.example").post(f"/me/tokens/{number}/delete")
    assert "Take back" in reader.get("/me/tokens").text
    reader.post(f"/me/tokens/{number}/delete")
    assert "Take back" not in reader.get("/me/tokens").text


def test_only_curators_pick_from_a_form(app, reader):
    assert reader.post("/papers/paper-1/pick").status_code == 403
    curator = sign_in(app, "curator@b.example")
    assert curator.post("/papers/paper-1/pick").status_code == 303
    assert count(app, picks) == 1
    assert "Paper 1" in curator.get("/me").text
    curator.post("/papers/paper-1/pick", data={"do": "drop"})
    assert count(app, picks) == 0


def test_a_submitted_paper_waits_or_opens(app, reader):
    with writing(app.state.engine) as connection:
        made(connection, 1, arxiv="1706.03762", slug="1706.03762")
    known = reader.post("/submit", data={"arxiv": "https://arxiv.org/abs/1706.03762v5"})
    assert known.headers["location"] == "/papers/1706.03762"
    assert reader.post("/submit", data={"arxiv": "2401.00001"}).headers["location"] == "/submit"
    assert "arXiv 2401.00001" in reader.get("/submit").text
    refused = reader.post("/submit", data={"arxiv": "<script>"})
    assert refused.status_code == 400
    assert "&lt;script&gt;" in refused.text


def test_all_own_data_is_downloaded(reader):
    reader.post("/papers/paper-1/vote")
    answer = reader.get("/me/data/export")
    assert answer.headers["content-disposition"] == 'attachment; filename="working-papers.json"'
    assert answer.json()["email"] == "a@b.example"
    assert [row["slug"] for row in answer.json()["votes"]] == ["paper-1"]


def test_deleting_needs_the_address_and_signs_out_everywhere(app, reader):
    other = sign_in(app)
    assert reader.post("/me/data/delete", data={"email": "x@b.example"}).status_code == 400
    assert count(app, users) == 1
    gone = reader.post("/me/data/delete", data={"email": "A@b.example"})
    assert "is deleted" in gone.text
    assert count(app, users) == 0
    assert other.get("/me").status_code == 303


def test_nothing_is_recommended_before_a_vote_and_a_note_says_so(reader):
    assert "Vote for some papers" in reader.get("/me/recommended").text
    reader.post("/papers/paper-1/vote")
    assert "too new" in reader.get("/me/recommended").text
    assert reader.get("/me/recommended", params={"tag": "<b>"}).status_code == 400


def test_lists_that_are_being_made_keep_nobody_else_waiting(app, reader):
    made_now = threading.Event()

    class Slow:
        def recommend(self, user, tag):
            made_now.wait(20)
            return Recommendations(note="Made.")

    async def rush():
        to_thread.current_default_thread_limiter().total_tokens = THREADS  # as the server has it
        options = {
            "transport": httpx.ASGITransport(app),
            "base_url": "http://testserver",
            "cookies": dict(reader.cookies),
        }
        async with httpx.AsyncClient(**options) as client:
            lists = [asyncio.create_task(client.get("/me/recommended")) for _ in range(THREADS + 1)]
            await asyncio.sleep(0.2)
            try:
                other = await asyncio.wait_for(client.get("/topics"), 5)
            finally:
                made_now.set()
            return other.status_code, {("Made." in (await one).text) for one in lists}

    app.state.recommender = Slow()
    assert asyncio.run(rush()) == (200, {True})


def test_what_people_see_of_a_paper_is_escaped(app, reader):
    with writing(app.state.engine) as connection:
        made(connection, 1, title="<script>alert(1)</script> \"'>", slug="evil")
    reader.post("/papers/evil/library")
    for path in ("/me", "/me/library"):
        assert "<script>alert" not in reader.get(path).text
        assert "alert(1)" in reader.get(path).text


def test_many_requests_at_once_of_one_person_count_one_vote(app, reader):
    answers = []

    def click():
        one = TestClient(app, headers=BROWSER, follow_redirects=False, cookies=dict(reader.cookies))
        answers.append(one.post("/papers/paper-1/vote").status_code)

    threads = [threading.Thread(target=click) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [303] * 8
    with app.state.engine.connect() as connection:
        assert connection.execute(select(papers.c.votes).where(papers.c.slug == "paper-1")).scalar_one() == 1
