"""A digest's mail: everything is in it twice, as HTML and as text; nothing in a title becomes markup."""

import re
from dataclasses import replace
from datetime import date
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workingpapers.site.mail.digest import Edition, Pick, Section
from workingpapers.site.mail.letter import letter, subject
from workingpapers.site.mail.message import WIRE
from workingpapers.site.mail.subscriptions import Subscription, Wish
from workingpapers.site.papers import Paper
from workingpapers.site.settings import Settings

SETTINGS = Settings(database="sqlite://", secret="x" * 32, address="https://papers.example.org")
TITLES = (
    "Tuning Pre-trained Models",
    'A $\\mathcal{O}(n)$ <b onclick="x">Attention</b> & Its "Limits" {{ 7 * 7 }}',
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft-Transformers",
)


def paper(number, title, **changes):
    values = dict.fromkeys(Paper.__dataclass_fields__, "") | {"id": number, "slug": f"paper-{number}", "title": title}
    values |= {"authors": tuple(f"Author {n}" for n in range(9)), "venue": "NeurIPS", "year": 2026, "topics": ()}
    values |= {"abstract": "We study frozen features. " * 30, "standing": None}
    return Paper(**values | changes)


def edition(first=date(2026, 11, 24), last=date(2026, 11, 24)):
    picks = [Pick(paper(n, title), "3 votes, 41 stars", n == 0) for n, title in enumerate(TITLES)]
    picks[0] = Pick(paper(0, TITLES[0], standing="reproduced"), "3 votes", True)
    bare = paper(9, "Bare", abstract="", authors=(), venue="", year=None, standing="not run")
    sections = [Section("Trending", None, picks), Section("Found for “a&b”", "a&b", [Pick(bare, "added", True)])]
    return Edition(Subscription(1, "ada@example.org", "active", Wish("daily"), 0.0), last, first, last, sections)


@pytest.fixture
def mail():
    raw = letter(SETTINGS, edition(), 1.76e9).as_bytes(policy=WIRE)
    return message_from_bytes(raw.replace(b"\r\n", b"\n"), policy=default)


class Read(HTMLParser):
    """What a mail program makes of HTML: tags, attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_both_parts_say_the_same(mail):
    text = " ".join(mail.get_body(("plain",)).get_content().split())
    page = Read(mail.get_body(("html",)).get_content())
    assert page.open == []
    html = " ".join(page.text.split())
    for part in (text, html):
        for title in (*TITLES, "Bare"):
            assert title in part
        assert part.count("Author 3 and 5 more · NeurIPS 2026") == len(TITLES)
        assert "3 votes, 41 stars" in part
        assert part.count("Measured here") == 1  # only where something was measured
        assert "every day because you asked for it" in part
        assert "24 November 2026" in part
    links = [value for name, value in page.attributes if name == "href"]
    for address in links:
        if "search" not in address and not address.endswith("org/"):
            assert address in text
    assert {f"https://papers.example.org/papers/paper-{n}" for n in (0, 1, 2, 9)} <= set(links)
    assert "https://papers.example.org/search?q=a%26b" in links


def test_nothing_is_loaded_and_no_title_becomes_markup(mail):
    html = mail.get_body(("html",)).get_content()
    page = Read(html)
    assert {"img", "script", "link", "iframe", "b"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") or name in ("src", "background") for name, _ in page.attributes)
    assert "url(" not in html
    assert "@import" not in html


def test_text_fits_and_reads_well(mail):
    lines = mail.get_body(("plain",)).get_content().splitlines()
    assert all(len(line) <= 72 or " " not in line.strip() for line in lines)
    assert "\n\n\n\n" not in "\n".join(lines)
    assert "-- " in lines  # what follows is a signature, which programs leave out of answers
    assert "Tuning Pre-trained Models (new)" in lines


def test_a_program_can_show_its_own_button(mail):
    link = mail["List-Unsubscribe"]
    assert re.fullmatch(r"<https://papers\.example\.org/subscription/unsubscribe\?token=[\w.-]+>", link)
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert link.strip("<>") in mail.get_body(("plain",)).get_content()


def test_subjects():
    made = edition()
    assert subject(made) == "Tuning Pre-trained Models, and 3 more papers"
    alone = Edition(made.subscription, made.day, made.first, made.last, made.sections[1:])
    assert subject(alone) == "Bare"


def test_a_text_without_spaces_is_cut_within():
    long = Pick(paper(0, "字" * 100, abstract="文" * 300), "3 votes", False)
    made = replace(edition(), sections=[Section("Trending", None, [long])])
    assert subject(made) == "字" * 70 + " …"
    assert "文" * 100 in letter(SETTINGS, made, 0).get_body(("plain",)).get_content()


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (date(2026, 11, 24), "24 November 2026"),
        (date(2026, 11, 20), "20 to 24 November 2026"),
        (date(2026, 10, 30), "30 October to 24 November 2026"),
        (date(2025, 12, 30), "30 December 2025 to 24 November 2026"),
    ],
)
def test_days_are_said_briefly(first, said):
    text = letter(SETTINGS, edition(first), 0).get_body(("plain",)).get_content()
    assert text.splitlines()[1] == said


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 600, 1000])
def test_it_fits_every_width_in_both_schemes(tmp_path, mail, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip(f"needs Chromium at {chromium}")
    (tmp_path / "mail.html").write_text(mail.get_body(("html",)).get_content())
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        view.goto(f"file://{tmp_path}/mail.html")
        assert view.evaluate("document.documentElement.scrollWidth") == width
        body = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert body == ("rgb(254, 254, 254)" if scheme == "light" else "rgb(22, 19, 28)")
        contrast = view.evaluate(CONTRAST)
        assert min(contrast) >= 4.5  # WCAG 2.2, 1.4.3
        browser.close()


# The contrast of every text with the body's background, as WCAG defines it.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/\\d+/g).slice(0, 3).map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll('p, h1, h2, h3, a, span')].map((element) => {
    const ink = light(getComputedStyle(element).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  });
}"""


@pytest.mark.parametrize(
    ("venue", "year", "place"),
    [("ICLR 2021", 2020, "ICLR 2021"), ("CVPR 2014 Workshops", 2014, "CVPR 2014 Workshops"), ("COLT", None, "COLT")],
)
def test_a_venue_that_names_its_year_gets_no_other(venue, year, place):
    one = edition()
    one.sections[0].picks[0] = Pick(paper(0, "A", venue=venue, year=year, abstract="The ``probes''."), "", False)
    part = letter(SETTINGS, one, 1.76e9).get_body(("plain",)).get_content()
    assert f"5 more · {place} The “probes”." in " ".join(part.split())
