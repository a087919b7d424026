import email
import email.policy
import html
import re
import time
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from papers_made import made
from sqlalchemy import event, select

from workingpapers.papers.topics import load_topics
from workingpapers.site import people, trending
from workingpapers.site.database import writing
from workingpapers.site.papers import by_slug
from workingpapers.site.schema import outbox, picks, sessions, users
from workingpapers.site.web import pages

BOARD = "/leaderboards/demo-standard-openmoji-efficientnet-lite0-quick"
PAGES = [
    "/", "/?period=day", "/?period=month", "/?period=all", "/?page=2", "/papers", "/papers/hostile",
    "/papers/moment-probing", "/papers/generative-probe", "/papers/din", "/papers/paper-21", "/topics",
    "/topics/feature-transfer", "/leaderboards", "/about", "/search", "/search?q=script", "/search?q=paper&page=2",
    "/search?has=method", "/nothing", "/papers/nothing",
]  # fmt: skip


class Page(HTMLParser):
    """What of a page's structure can be tested."""

    VOID = frozenset("area base br col hr img input link meta source wbr".split())

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.headings, self.labels, self.controls = [], [], [], [], [], []
        self.open, self.problems, self.named = [], [], {}
        self.feed(text)
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID and "svg" not in self.open and tag != "svg":
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag in ("a", "link") and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "form":
            self.links.append(attrs["action"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "label":
            self.labels.append(attrs.get("for"))
        if tag in ("input", "select", "textarea") and attrs.get("type") not in ("hidden", "checkbox", "submit"):
            self.controls.append(attrs.get("id"))
        for name in attrs:
            if name.startswith("on") or name == "style":
                self.problems.append(f"{tag} has {name}")

    def handle_endtag(self, tag):
        if "svg" in self.open or tag == "svg" or tag in self.VOID:
            return
        if not self.open or self.open[-1] != tag:
            if tag in self.open:
                self.problems.append(f"</{tag}> closes {self.open[-1]}")
                while self.open and self.open.pop() != tag:
                    pass
        else:
            self.open.pop()


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_whole_and_structured(client, path):
    answer = client.get(path)
    assert answer.status_code == (404 if "nothing" in path else 200)
    page = Page(answer.text)
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert page.headings.count(1) == 1
    assert page.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert {"main", "header", "footer", "nav", "title"} <= set(page.tags)
    assert set(page.controls) <= set(page.labels)


@pytest.mark.parametrize("path", PAGES)
def test_hostile_papers_are_shown_as_text(client, path):
    text = client.get(path).text
    for forbidden in ("<script>alert", "<img src=x", "<b>ICML", "<u>keyword", "<i>source", "javascript:", "data:text"):
        assert forbidden not in text.replace("&lt;", "")
    assert not set(Page(text).tags) & {"iframe", "object", "embed", "img", "b", "u"}
    assert "8281" not in text  # the template in the title was not evaluated


def test_a_hostile_paper_keeps_its_text(client):
    text = client.get("/papers/hostile").text
    assert "&lt;script&gt;alert(&#39;title&#39;)&lt;/script&gt; <math><msub><mi>x</mi>" in text
    assert "{{ 91*91 }}" in text
    assert "Żółć" in text


def test_formulas_are_typeset_where_papers_are_shown_and_raw_where_programs_read(world, client):
    number = 41
    title = f"Fast $k_{{{number}}}$-means"
    with writing(world.app.state.engine) as connection:
        made(connection, 1, slug=f"math-{number}", title=title, abstract=f"In $O(n^{{{number}}})$ steps. " * 9)
    world.app.state.searcher.refresh()
    typeset = f"<math><msub><mi>k</mi><mn>{number}</mn></msub></math>-means"
    text = client.get(f"/papers/math-{number}").text
    assert f"<h1>Fast {typeset}</h1>" in text
    assert f'<math><mi>O</mi><mo stretchy="false">(</mo><msup><mi>n</mi><mn>{number}</mn></msup>' in text
    assert f"<title>{title} " in text
    assert f"Vote for {title}" in text
    found = client.get("/search", params={"q": f"fast k_{number} means"}).text
    assert f"<mark>Fast</mark> <mark><math><msub><mi>k</mi><mn>{number}</mn>" in found
    assert f"$O(n^{{{number}}})$" not in found
    for path in (f"/papers/math-{number}.bib", f"/api/v1/papers/math-{number}", "/feeds/search.atom?q=fast+means"):
        assert f"$k_{{{number}}}$" in client.get(path).text


def test_links_of_ours_lead_somewhere(client):
    seen = {}
    for path in PAGES:
        for link in Page(client.get(path).text).links:
            target = urljoin(path, link)
            place = urlsplit(target)
            target = target.partition("#")[0]
            if place.scheme or place.path.startswith("/api") or place.path.endswith("/vote"):
                continue
            if target not in seen:
                seen[target] = client.get(target).status_code
    assert {link: code for link, code in seen.items() if code not in (200, 303) and "nothing" not in link} == {}
    assert len(seen) > 60


def test_the_home_page_ranks_and_says_why(client):
    text = client.get("/").text
    titles = re.findall(r'<h2><a href="/papers/([\w-]+)">', text)
    assert titles[0] == "hostile"  # thirty votes
    numbers = [int(title.removeprefix("paper-")) for title in titles[1:]]
    assert numbers == sorted(numbers, reverse=True)  # the higher the number, the more stars
    assert len(titles) == 20
    assert "30 votes" in text
    assert f"{numbers[0] + 3} stars" in text
    assert text.count('<span class="new">new</span>') >= 19
    week = trending.period_of("week", trending.day_of(time.time()))
    assert f"<h1>{week.label}</h1>" in text
    assert 'href="/?period=week&amp;page=2"' in text
    assert f"paper-{numbers[-1] - 1}" in client.get("/?period=week&page=2").text


def test_dates_lead_back_and_forth(client):
    assert "January 2020" in client.get("/?period=month&date=2020-01").text
    assert "Nothing happened" in client.get("/?period=month&date=2020-01").text
    assert 'rel="next"' in client.get("/?period=month&date=2020-01").text


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/?period=fortnight", 400, "Known: all, day, month, week"),
        ("/?date=yesterday", 400, "2026-11-25"),
        ("/?page=0", 422, "page must be 1 or more; got &#39;0&#39;."),
        ("/?page=one", 422, "page must be a whole number; got &#39;one&#39;."),
        ("/?page=99999999999999999999", 422, "page must be 50 or less"),
        ("/papers/none", 404, "No paper at"),
        ("/papers/Moment-Probin", 404, "Did you mean &#39;moment-probing&#39;?"),
        ("/papers/none.bib", 404, "No paper at"),
        ("/topics/feature-transfr", 404, "feature-transfer"),
        ("/leaderboards/none", 404, "No leaderboard"),
        ("/leaderboards/none.json", 404, "No leaderboard"),
        ("/leaderboards?task=demi", 400, "Did you mean &#39;demo&#39;"),
        ("/search?q=x&sort=newest", 400, "order"),
        ("/search?q=x&topic=none", 400, "topic"),
        ("/search?q=x&year=soon", 400, "Years are like"),
        ("/search?q=x&has=everything", 400, "method"),
        ("/search?q=x&standing=fine", 400, "reproduced"),
        ("/search?q=x&page=100000", 422, "page"),
        ("/search?q=" + "x" * 5000, 422, "q"),
        ("/nowhere", 404, "no page at /nowhere"),
    ],
)
def test_what_cannot_be_answered_is_explained(client, path, code, said):
    answer = client.get(path)
    assert answer.status_code == code
    assert said in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/?period=%00",
        "/papers/%00",
        "/papers/..%2f..%2fetc",
        "/search?q=%00%ff%fe",
        "/search?q=%22%27(*)",
        "/%f0%9f",
        "/topics/%2e%2e",
        "/static/x/..%2f..%2fapp.py",
        "/leaderboards/%3Cscript%3E",
        "/search?q=\ud800",
    ],
)
def test_nonsense_is_no_fault(client, path):
    assert client.get(path.encode("utf-8", "surrogatepass").decode("latin-1")).status_code < 500


@pytest.mark.parametrize(
    "path", ["/?period=week&page=40", "/search?q=paper&page=40", "/topics/feature-transfer?page=40"]
)
def test_a_page_past_the_last_one_leads_back_and_does_not_say_that_there_is_nothing(client, path):
    text = client.get(path).text
    assert "There is no page 40 here" in text
    assert not re.search("Nothing happened|Take a word away|No paper is placed", text)
    back = html.unescape(re.search('<a href="([^"]*)">the first page', text)[1])
    assert "/papers/" in client.get(back).text


def test_other_methods_are_refused_politely(client):
    answer = client.put("/about", headers={"Sec-Fetch-Site": "same-origin"})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert client.head("/about").status_code == 200


def test_a_catalogue_papers_page_has_everything(client):
    text = client.get("/papers/moment-probing").text
    assert "from workingpapers.methods.heads.naive_bayes import TiedGaussianNB" in text
    assert "a scikit-learn classifier" in text
    assert "83.15 % against 82.04 % (ImageNet-1K, ViT-B/16) [Table 2]" in text
    assert "papers try demo --setting few-shot --entries moment-probing" in text
    assert text.count('<svg class="strip"') == 2
    assert "Needs a thousand GPU hours." in text
    assert "is number 1 of 12" in text
    assert "@inproceedings{moment-probing," in text
    assert 'action="/papers/moment-probing/vote"' in text
    assert "Feature transfer" in text


def test_a_brought_in_papers_page_has_what_is_known(client):
    text = client.get("/papers/paper-5").text
    assert "Abstract of paper 5" in text
    assert "Ada Lovelace, Alan Turing" in text
    assert "Use it" not in text
    assert "More like this" in text
    assert text.count('<a href="/papers/paper-5">') == 0  # not like itself


def test_bibtex_is_served(client):
    answer = client.get("/papers/moment-probing.bib")
    assert answer.headers["content-type"].startswith("application/x-bibtex")
    assert answer.text.startswith("@inproceedings{")


def test_topics_count_and_list_papers(client):
    text = client.get("/topics").text
    assert all(f'href="/topics/{name}"' in text for name in load_topics() if name != "pre-trained-models")
    assert '<a href="/topics/feature-transfer">' in text
    listed = client.get("/topics/feature-transfer").text
    assert "3 papers" in listed
    assert 'href="/papers/moment-probing"' in listed


def test_search_finds_marks_and_filters(client):
    text = client.get("/search", params={"q": "moment probing"}).text
    first = text.index('href="/papers/')
    assert text[first:].startswith('href="/papers/moment-probing"')
    assert "<mark>Moment</mark>" in text
    assert "words alone" in text  # no encoder here, and it says so
    none = client.get("/search", params={"q": "moment probing", "standing": "not testable"}).text
    assert "No paper matches" in none
    assert 'value="moment probing"' in none
    by_year = client.get("/search", params={"year": "2023", "has": ["method"]}).text
    assert "2 papers" in by_year
    assert re.search(r'value="method" checked', by_year)


def test_curators_picks_come_first(client, world):
    with writing(world.app.state.engine) as connection:
        paper = by_slug(connection, "paper-7")
        day = trending.day_of(time.time()).isoformat()
        connection.execute(picks.insert().values(day=day, paper_id=paper.id, user_id=None))
    text = client.get("/", headers={"Cookie": "fresh=1"}).text  # not the page kept a moment ago
    assert text.index("Picked today") < text.index('"/papers/paper-7"') < text.index('"/papers/hostile"')
    with writing(world.app.state.engine) as connection:
        connection.execute(picks.delete())


@pytest.fixture
def signed_in(client, world):
    """A client with a session, and everything of it gone afterwards."""
    engine, settings = world.app.state.engine, world.settings
    with writing(engine) as connection:
        people.send_link(connection, settings, "curator@example.org", "/", time.time())
        raw = connection.execute(select(outbox.c.message).order_by(outbox.c.id.desc())).scalars().first()
        text = email.message_from_bytes(raw, policy=email.policy.default).get_body(("plain",)).get_content()
        [token] = parse_qs(urlsplit(re.search(r"http\S+", text[text.index("works once") :])[0]).query)["token"]
        done = people.sign_in(connection, settings, token, time.time())
    client.cookies.set("session", done.secret)
    yield client
    with writing(engine) as connection:
        connection.execute(sessions.delete())
        connection.execute(users.delete())


def test_signed_in_people_see_their_own_marks(signed_in, client):
    here = {"Sec-Fetch-Site": "same-origin", "Referer": "http://testserver/papers/paper-23"}
    assert "Keep in library" in signed_in.get("/papers/paper-23").text
    assert signed_in.post("/papers/paper-23/vote", headers=here).status_code == 303
    signed_in.post("/papers/paper-23/tags", data={"tag": "to read"}, headers=here)
    answer = signed_in.get("/papers/paper-23")
    assert 'aria-pressed="true"' in answer.text
    assert 'href="/me/tags/to%20read"' in answer.text
    assert "Pick for today" in answer.text
    assert answer.headers["cache-control"] == "private, no-store"
    assert 'aria-pressed="true"' in signed_in.get("/search?q=%22Paper+23%22").text
    assert "Your papers" in signed_in.get("/").text
    assert Page(answer.text).problems == []
    signed_in.post("/papers/paper-23/vote", data={"undo": "1"}, headers=here)
    assert 'aria-pressed="true"' not in signed_in.get("/papers/paper-23").text


def test_nobody_else_sees_them(signed_in, world):
    signed_in.get("/papers/paper-24")
    signed_in.cookies.clear()
    anonymous = signed_in.get("/papers/paper-24")
    assert "Keep in library" not in anonymous.text
    assert "Sign in" in anonymous.text
    assert anonymous.headers["cache-control"] == "no-cache"


def test_anonymous_votes_lead_to_signing_in(client):
    answer = client.post("/papers/paper-23/vote", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in?next=")


@pytest.mark.parametrize("slug", ["paper-6", "hostile", "nobody"])
def test_a_paper_is_the_same_whoever_makes_its_page(client, world, monkeypatch, tmp_path, slug):
    request = SimpleNamespace(app=world.app)
    assert not pages._is_quick(request, slug)  # there is no index of embeddings
    in_a_thread = client.get(f"/papers/{slug}?thread")
    (tmp_path / "index").touch()
    monkeypatch.setattr(pages, "index_file", lambda engine: tmp_path / "index")
    assert pages._is_quick(request, slug)
    assert not pages._is_quick(request, "moment-probing")  # a catalogue paper's page is much work
    at_once = client.get(f"/papers/{slug}?loop")
    assert (at_once.status_code, at_once.text) == (in_a_thread.status_code, in_a_thread.text)


def test_a_database_that_takes_no_changes_is_told_and_read_on(signed_in, world):
    def read_only(connection, *_):
        connection.execute("PRAGMA query_only = ON")

    def back(connection, *_):
        connection.execute("PRAGMA query_only = OFF")

    here = {"Sec-Fetch-Site": "same-origin"}
    engine = world.app.state.engine
    event.listen(engine, "checkout", read_only)
    event.listen(engine, "checkin", back)
    try:
        answer = signed_in.post("/papers/paper-25/vote", headers=here)
        page = signed_in.get("/papers/paper-25")
    finally:
        event.remove(engine, "checkout", read_only)
        event.remove(engine, "checkin", back)
    assert (answer.status_code, answer.headers["retry-after"], page.status_code) == (503, "60", 200)
    assert "nothing was changed" in answer.text
    assert 'aria-pressed="true"' not in page.text
    assert signed_in.post("/papers/paper-25/vote", headers=here).status_code == 303


def test_a_paper_without_abstract_says_so_and_a_long_query_has_a_short_heading(client, world):
    with writing(world.app.state.engine) as connection:
        made(connection, 1, slug="bare", title="Bare", abstract="", authors=[], venue="", year=None, published=None)
    text = client.get("/papers/bare").text
    assert "No abstract of this paper is known here." in text
    assert "No abstract" not in client.get("/papers/paper-20").text
    long = client.get("/search", params={"q": "w" * 1000}).text
    assert len(re.search("<h1>(.*?)</h1>", long)[1]) < 200
    assert f'value="{"w" * 1000}"' in long
