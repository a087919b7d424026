"""The page in a browser: journeys with and without scripts, in both colour schemes and on a phone."""

import re

import pytest
from papers_made import made

from workingpapers.site.database import writing

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def paths(world):
    boards = world.app.state.measured.now().boards
    board = next(name for name, it in boards.items() if it.conditions.setting == "standard" and len(it.rows) > 9)
    return {
        "trending": "/",
        "search": "/search?q=%22paper%22+frozen&has=method",
        "found": "/search?q=frozen+features",
        "paper": "/papers/moment-probing",
        "hostile": "/papers/hostile",
        "leaderboard": f"/leaderboards/{board}",
        "leaderboards": "/leaderboards",
        "topics": "/topics",
        "topic": "/topics/feature-transfer",
        "catalogue": "/papers",
        "about": "/about",
        "subscribe": "/subscribe",
        "sign-in": "/sign-in",
    }


@pytest.fixture
def opened(browser, server):
    """Open a page in a context of its own; fails at the end if anything was said on the console or asked elsewhere."""
    contexts, troubles = [], []

    def open_(path="/", width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_extra_http_headers({"X-Forwarded-For": f"10.9.{len(contexts)}.{width % 250}"})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url.startswith(server) or troubles.append(request.url))
        page.goto(f"{server}{path}", wait_until="networkidle")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


CONTRAST = """() => {
    const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour[3] > 0.99) return colour;
        }
        return [255, 255, 255, 1];
    };
    const bad = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
        const style = getComputedStyle(element);
        const inside = element.closest('svg');
        if (inside && element.localName !== 'text') continue;
        const colour = parse(inside ? style.fill : style.color);
        const [a, b] = [light(colour.slice(0, 3)), light(ground(element).slice(0, 3))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (ratio < (large ? 3 : 4.5)) bad.push([walker.currentNode.textContent.trim().slice(0, 40), ratio]);
    }
    return bad;
}"""
NAMES = """() => {
    const named = (e) => (e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent
        || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent || '').trim();
    return [...document.querySelectorAll('a, button, input:not([type=hidden]), select, [role=img], [role=region]')]
        .filter((e) => e.checkVisibility() && !named(e)).map((e) => e.outerHTML.slice(0, 120));
}"""
# WCAG 2.5.8: 24 by 24 pixels, but for links within sentences and lists of text, and what has room around it.
SMALL = """() => [...document.querySelectorAll('button, input:not([type=hidden]), select')]
    .filter((e) => e.checkVisibility() && !e.closest('.check'))
    .map((e) => [e.outerHTML.slice(0, 100), e.getBoundingClientRect()])
    .filter(([_, box]) => box.width && (box.height < 24 || box.width < 24)).map(([text]) => text)"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (320, "light"), (320, "dark")])
def test_every_page_is_legible_named_and_fits(opened, paths, width, scheme):
    page = opened("/", width, scheme)
    server = page.url.rstrip("/")
    grounds = set()
    for name, path in paths.items():
        page.goto(f"{server}{path}", wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(CONTRAST) == [], name
        assert page.evaluate(NAMES) == [], name
        assert page.evaluate(SMALL) == [], name
        assert [len(page.query_selector_all(tag)) for tag in ("main", "h1", "body > header", "body > footer")] == [
            1
        ] * 4
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids)), name
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == {"rgb(254, 254, 254)" if scheme == "light" else "rgb(22, 19, 28)"}


def test_from_trending_to_a_paper_to_its_leaderboard(opened):
    page = opened("/")
    page.get_by_role("navigation", name="Period").get_by_role("link", name="All time").click()
    assert page.get_by_role("heading", level=1).inner_text() == "All time"
    page.get_by_role("navigation", name="Page", exact=True).get_by_role("link", name="Topics").click()
    page.get_by_role("link", name="Feature transfer").first.click()
    page.get_by_role("link", name="Tuning Pre-trained Model via Moment Probing").click()
    assert page.get_by_role("heading", name="Reported beside measured").is_visible()
    page.locator("#claims ~ .claim").first.get_by_role("link").first.click()
    assert page.get_by_role("heading", name="Results").is_visible()


def test_search_by_keyboard_alone(opened):
    page = opened("/")
    page.keyboard.press("/")
    page.keyboard.type("moment probing")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=moment+probing")
    assert page.get_by_role("article").first.get_by_role("link").first.inner_text().startswith("Tuning Pre-trained")
    assert page.locator("mark").count() > 0


def test_going_back_from_a_search_brings_the_one_before_with_its_words(opened):
    page = opened("/search?q=frozen&sort=date")
    page.get_by_label("Search for").fill("moment probing")
    page.get_by_label("Sort by").select_option("citations")
    page.keyboard.press("Tab")
    page.get_by_role("main").get_by_role("button", name="Search").click()
    page.wait_for_url("**q=moment+probing**")
    page.go_back()
    assert page.get_by_role("heading", level=1).inner_text() == "Papers on frozen"
    assert page.get_by_label("Search for").input_value() == "frozen"
    assert page.get_by_label("Sort by").input_value() == "date"


def test_the_first_stop_of_the_tab_key_skips_to_the_content(opened):
    page = opened("/papers/moment-probing")
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "Skip to the content"
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


def test_what_has_the_focus_is_seen(opened):
    page = opened("/search?q=paper")
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "none" not in outline
        assert not re.search(r"\b0px", outline)


def test_code_is_copied_with_a_button(opened, server):
    page = opened("/papers/moment-probing")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server)
    button = page.get_by_role("button", name="Copy").first
    button.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("from workingpapers.methods")


@pytest.mark.parametrize("width", [320, 1280])
def test_the_copy_button_covers_no_code(opened, width):
    page = opened("/papers/moment-probing", width=width)
    covered = """() => [...document.querySelectorAll('.copied')].filter((frame) => {
        const [a, b] = ['button', 'pre'].map((name) => frame.querySelector(name).getBoundingClientRect());
        return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    }).length"""
    assert page.locator(".copied").count() > 1
    assert page.evaluate(covered) == 0


def test_a_formula_too_long_for_a_phone_scrolls_alone(opened, world):
    formula = f"${'x+' * 60}x$"
    with writing(world.app.state.engine) as connection:
        made(connection, 1, slug="long-formula", title=f"On {formula}", abstract=f"In {formula} steps.")
    page = opened("/papers/long-formula", width=320)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.querySelector('math').namespaceURI") == "http://www.w3.org/1998/Math/MathML"
    wide = "[...document.querySelectorAll('.formula')].map((e) => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(wide) == [True, True]


def test_what_is_written_from_right_to_left_runs_so_alone(opened, world):
    with writing(world.app.state.engine) as connection:
        made(connection, 1, slug="hebrew", title="מודלים (BERT) 2.0!", abstract="מבוא (ראו כאן).", authors=["דוד כהן"])
    page = opened("/papers/hebrew", width=320)
    # Where each letter of an element stands: the mark at a text's end is left of all before it.
    lefts = """(selector) => { const text = document.createTreeWalker(document.querySelector(selector), 4).nextNode();
        return [...text.data].map((_, at) => { const range = document.createRange(); range.setStart(text, at);
            range.setEnd(text, at + 1); return range.getBoundingClientRect().left; }); }"""
    for selector in ("h1", ".summary"):
        places = page.evaluate(lefts, selector)
        assert places[-1] == min(places), selector
    page.goto(page.url.partition("/papers")[0] + "/search?q=מודלים", wait_until="networkidle")
    assert page.evaluate(lefts, "time") == sorted(page.evaluate(lefts, "time"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_interactive_plot(opened, paths):
    page = opened(paths["leaderboard"])
    stage = page.locator(".stage")
    assert stage.locator(".point").count() == 11  # every entry that finished
    page.get_by_label("Against", exact=True).select_option("parameters")
    assert "learned parameters" in stage.inner_text()
    page.get_by_label("Show", exact=True).select_option("calibration error")
    assert stage.locator(".point").count() == 10  # one gives no probabilities
    page.get_by_label("Against", exact=True).focus()
    page.get_by_label("Show", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    said = page.locator(".said").inner_text()
    assert re.fullmatch(r"[\w-]+: calibration error 0\.0\d+ ± [\d.]+; learned parameters [\d.]+( [kM])?; .*\.", said)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == said


def test_the_interactive_plot_fits_a_phone(opened, paths):
    page = opened(paths["leaderboard"], width=320)
    sizes = "[...document.querySelectorAll('.stage text')].map((e) => e.getBoundingClientRect().height)"
    assert min(page.evaluate(sizes)) >= 11
    page.set_viewport_size({"width": 900, "height": 700})
    page.wait_for_function("document.querySelector('.stage svg').viewBox.baseVal.width > 700")


def test_the_plots_points_stand_where_the_numbers_are(opened, paths):
    page = opened(paths["leaderboard"])
    rows = page.evaluate("fetch(document.querySelector('.explore').dataset.source).then((a) => a.json())")["rows"]
    known = {row["entry"]: row for row in rows if row["values"].get("accuracy")}
    points = page.evaluate(
        "[...document.querySelectorAll('.stage .point')].map((p) => [p.getAttribute('aria-label').split(':')[0],"
        " ...p.querySelector('path').getAttribute('transform').match(/[\\d.]+/g).map(Number)])"
    )
    by_cost = sorted(points, key=lambda point: point[1])
    assert [name for name, *_ in by_cost] == sorted(known, key=lambda name: known[name]["costs"]["fit_seconds"])
    by_value = sorted(points, key=lambda point: -point[2])
    assert [name for name, *_ in by_value] == sorted(known, key=lambda name: known[name]["values"]["accuracy"]["mean"])


def test_everything_is_there_without_scripts(opened, paths):
    page = opened(paths["leaderboard"], java_script_enabled=False)
    assert page.get_by_role("table").is_visible()
    assert not page.locator(".explore").is_visible()
    assert page.locator(".plot svg").count() == 4
    page.goto(page.url.partition("/leaderboards")[0] + "/search")
    page.get_by_label("Search for").fill("probing")
    page.get_by_text("Filters").click()
    page.get_by_label("a method here").check()
    page.get_by_role("button", name="Search").click()
    assert "has=method" in page.url
    assert page.get_by_role("article").count() >= 1


def test_hostile_titles_run_nothing(opened, paths):
    page = opened(paths["hostile"])
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    assert page.get_by_role("heading", level=1).inner_text().startswith("<script>alert('title')</script>")
    for link in page.locator("main a").all():
        assert link.get_attribute("href").startswith(("/", "#", "https://arxiv.org", "https://doi.org"))
    assert dialogs == []


def test_motion_is_reduced_for_who_asks(opened):
    page = opened("/about", reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).animationName !== 'none').length"
    assert page.evaluate(moving) == 0


def test_enlarged_text_and_forced_colours_stay_usable(opened):
    page = opened("/papers/moment-probing", width=640, forced_colors="active")
    page.evaluate("document.documentElement.style.fontSize = '200%'")  # WCAG 1.4.4
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
    assert page.get_by_role("button", name=re.compile("Vote for")).is_visible()
