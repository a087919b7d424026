import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urljoin

import demo
import pytest
from demo import ENTRIES, EVIL, SETTINGS, run
from PIL import Image

from workingpapers.errors import UserError
from workingpapers.papers import catalogue
from workingpapers.runs import claims, report
from workingpapers.runs.execute import try_
from workingpapers.runs.leaderboard import leaderboards
from workingpapers.runs.present import command
from workingpapers.runs.report import write_report
from workingpapers.runs.store import Store
from workingpapers.tasks import protocol


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The demonstration's task and cards in place of the real ones, its store, and the site written from it."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "workingpapers.tasks.demo", SimpleNamespace(task=demo.demo_task()))
        for module in (protocol, claims):
            patch.setattr(module, "task_names", lambda: ("demo",))
        patch.setattr(catalogue, "CARDS", demo.write_cards(folder / "cards"))
        catalogue.load_catalogue.cache_clear()
        protocol.load_task.cache_clear()
        store = demo.fill(Store(str(folder / "runs.sqlite")))
        small = Store(str(folder / "small.sqlite"))
        small.save(run("crashes", 0, status="timed out", error="after 3 s"))
        yield SimpleNamespace(store=store, small=small, site=write_report(folder / "site", store).parent)
    catalogue.load_catalogue.cache_clear()
    protocol.load_task.cache_clear()


def pages(site):
    found = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    assert len(found) == 6  # the index, three leaderboards, two papers
    return found


class Page(HTMLParser):
    """The links, ids and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append((tag, value))
            if name == "id":
                self.ids.append(value)


def board_of(site, part):
    return next(path for path in (site / "leaderboards").glob("*.html") if part in path.name)


def test_the_index_lists_leaderboards_with_winner_and_verdicts_and_papers_with_findings(world):
    text = (world.site / "index.html").read_text()
    assert all(title in text for title in SETTINGS.values())
    assert ">moment-probing<" in text
    assert "3&nbsp;help, 3&nbsp;hurt" in text
    assert "2&nbsp;reproduced" in text
    assert "2&nbsp;not\u00a0reproduced" in text
    assert "Left out: what was run of demo-of-the-past, standard (1 in all). Unknown task" in text
    assert "Described" not in text  # a card without method, runs and testable claims


def test_a_leaderboard_shows_every_entry_failure_and_how_it_was_made(world):
    text = board_of(world.site, "standard-openmoji").read_text()
    assert all(name in text for name in ENTRIES)
    assert "out of memory: The process was killed" in text
    assert "shapes (64, 1280) and (512,) do not fit" in text
    assert "papers try demo --seeds 6" in text
    assert "Some Processor @ 2.4 GHz" in text
    assert "2.9.1" in text
    assert text.count("<figure>") == 4  # intervals, time, parameters, one learning curve
    assert "▲</span> helps" in text
    assert '<td class="n"></td>' in text.partition("linear-svm")[2].partition("</tr>")[0]  # a metric that it lacks


def test_a_paper_shows_reported_beside_measured(world):
    text = (world.site / "papers/moment-probing.html").read_text()
    assert "83.15 % against 82.04 % (ImageNet-1K, ViT-B/16) [Table 2]" in text
    assert "▲</span> helps" in text
    assert "papers try demo --setting few-shot --entries moment-probing" in text
    assert "Needs a thousand GPU hours." in text
    assert "The task has no entry for it yet." in text
    assert "<code>fit</code>" in text
    assert text.count('href="../leaderboards/') == 4  # two claims, and the two leaderboards it is on


def test_what_comes_from_outside_is_escaped(world):
    for name, text in pages(world.site).items():
        assert "<script" not in text, name
        assert not Page(text).tags & {"script", "iframe", "object", "embed", "form"}, name
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert escaped in (world.site / "index.html").read_text()
    assert escaped in board_of(world.site, "standard-openmoji").read_text()
    assert escaped in board_of(world.site, "photos").read_text()
    assert (world.site / "papers/generative-probe.html").read_text().count(escaped) == 6  # title twice, four fields


def test_links_lead_somewhere_ids_are_unique_and_nothing_is_loaded_from_elsewhere(world):
    read = {name: Page(text) for name, text in pages(world.site).items()}
    for name, page in read.items():
        assert len(page.ids) == len(set(page.ids)), name
        for tag, link in page.links:
            if link.startswith("https://"):
                assert tag == "a", (name, link)
            elif not link.startswith("data:"):
                target, _, fragment = urljoin(name, link).partition("#")
                target = target or name
                assert (world.site / unquote(target)).is_file(), (name, link)
                assert not fragment or fragment in read[target].ids, (name, link)


def test_downloads_hold_the_numbers(world):
    page = board_of(world.site, "photos")
    found = json.loads(page.with_suffix(".json").read_text())
    assert [row["entry"] for row in found["rows"]] == ["mlp", "logistic-regression", "knn"]
    assert len(found["runs"]) == 6
    assert found["conditions"]["data"] == f"./my photos/{EVIL}"
    table = page.with_suffix(".csv").read_text().splitlines()
    assert table[0].startswith("entry,paper,seeds,accuracy,accuracy ±")
    assert [line.split(",")[0] for line in table[1:]] == ["mlp", "logistic-regression", "knn"]


def test_the_command_names_what_is_not_the_default(world):
    def of(*runs):
        return command(leaderboards(runs)[0])

    assert of(*(run(name, 0) for name in [*ENTRIES, "crashes"])) == "papers try demo --seeds 1"
    other = {"data": "my photos", "label": "what is it"}
    some = run("logistic-regression", 2, **other), run("knn", 0, **other)
    assert of(*some) == "papers try demo --data 'my photos' --label 'what is it' --entries knn --seeds 3"
    few = [run("logistic-regression", 0, setting="few-shot"), run("knn", 0, setting="few-shot")]
    assert of(*few) == "papers try demo --setting few-shot --entries knn --seeds 1"


def test_a_leaderboard_without_a_finished_run_has_a_page(world, tmp_path):
    text = board_of(write_report(tmp_path / "site", world.small).parent, "demo").read_text()
    assert "No run finished with accuracy." in text
    assert "timed out: after 3 s" in text
    assert "<figure>" not in text


def test_runs_from_before_a_metric_existed_have_gaps(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("logistic-regression", 0))
    store.save(dataclasses.replace(run("knn", 0), metrics={"macro-f1": 80.0}))
    text = board_of(write_report(tmp_path / "site", store).parent, "demo").read_text()
    assert "80.0" in text.partition(">knn<")[2].partition("</tr>")[0]


def test_a_single_seed_and_a_missing_baseline_are_shown_as_they_are(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("knn", 0))
    page = board_of(write_report(tmp_path / "site", store).parent, "demo")
    assert "the baseline logistic-regression has no run to compare with" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["rows"][0]["values"]["accuracy"]["half"] is None


def test_a_report_of_real_runs(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    try_("toytask:task", seeds=3, store=store)
    try_("toytask:task", setting="trouble", entries=["raises"], seeds=1, store=store)
    index = write_report(tmp_path / "deep" / "site", store)
    assert index == tmp_path / "deep" / "site" / "index.html"
    assert "no such thing" in board_of(index.parent, "trouble").read_text()


def test_remarks_of_runs_are_shown_and_kept(tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    try_("toytask:task", setting="trouble", entries=["says"], seeds=1, store=store)
    index = write_report(tmp_path / "out", store)
    assert "<dd>no value was kept</dd>" in board_of(index.parent, "trouble").read_text()
    rows = json.loads(board_of(index.parent, "trouble").with_suffix(".json").read_text())["rows"]
    assert [row["remarks"] for row in rows] == [[], ["no value was kept"]]


def test_a_second_report_replaces_the_first_and_leaves_other_files(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("knn", 0))
    site = write_report(tmp_path / "site", store).parent
    (site / "notes.txt").write_text("mine")
    store.save(run("logistic-regression", 0))
    write_report(site, store)
    assert "2 runs of 2 entries" in (site / "index.html").read_text()
    assert (site / "notes.txt").read_text() == "mine"
    assert not list(site.rglob("*.part"))


def test_an_empty_store_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match="`papers try probe` makes some"):
        write_report(tmp_path / "site", Store(str(tmp_path / "runs.sqlite")))
    assert not (tmp_path / "site").exists()


def test_a_store_of_unknown_tasks_is_refused_with_the_reason(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("knn", 0, task="demos"))
    with pytest.raises(UserError, match=r"Unknown task 'demos'. Did you mean 'demo'"):
        write_report(tmp_path / "site", store)


@pytest.mark.parametrize("where", ["site", "site/papers"])
def test_a_file_where_a_folder_must_be_is_refused(world, tmp_path, where):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"needs a folder at .*{where}"):
        write_report(tmp_path / "site", world.small)
    assert path.read_text() == "mine"
    assert not (tmp_path / "site/index.html").exists()


def test_a_folder_where_a_file_must_be_is_refused(world, tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(UserError, match=r"needs a file at .*index.html"):
        write_report(tmp_path, world.small)


def test_a_page_that_no_report_wrote_is_refused_before_anything_is_written(world, tmp_path):
    (tmp_path / "index.html").write_text("<h1>my home page</h1>")
    with pytest.raises(UserError, match=r"index.html is not from an earlier report"):
        write_report(tmp_path, world.small)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<h1>my home page</h1>"


def test_a_folder_that_cannot_be_written_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be written to /proc/site"):  # refuses even the superuser
        write_report(Path("/proc/site"), world.small)

    def deny(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", deny)
    with pytest.raises(UserError, match="Permission denied"):
        write_report(tmp_path / "site", world.small)
    assert not [path for path in (tmp_path / "site").rglob("*") if path.is_file()]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_has_the_contrast_of_wcag_aa(scheme):
    style = (Path(report.__file__).parent / "templates/style.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("prefers-color-scheme: dark")
    )
    colours = light if scheme == "light" else dark
    assert light.keys() == dark.keys()
    for ground in ("paper", "wash"):
        for name in colours.keys() - {"paper", "wash", "rule"}:
            pair = sorted([luminance(colours[ground]), luminance(colours[name])])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ground, name)


CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_a_browser(world, browser, scheme, width):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    troubles, asked = [], []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    grounds = set()
    for name in pages(world.site):
        page.goto((world.site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.close()
    assert troubles == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert grounds == {"rgb(254, 254, 254)" if scheme == "light" else "rgb(22, 19, 28)"}


@pytest.mark.browser
@pytest.mark.parametrize(("width", "in_words"), [(320, True), (700, False)])
def test_a_table_that_goes_on_to_the_right_shows_it_until_its_end(world, browser, width, in_words):
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(board_of(world.site, "standard-openmoji").as_uri())
    assert page.evaluate("(box => box.scrollWidth - box.clientWidth)(document.querySelector('.scroll'))") > 0
    assert page.get_by_text("The table goes on to the right").is_visible() == in_words

    def right_edge():
        shot = Image.open(io.BytesIO(page.locator(".scroll").screenshot())).convert("RGB")
        return shot.getpixel((shot.width - 1, shot.height - 8))  # below the last row's text

    shaded = right_edge()
    page.evaluate("document.querySelector('.scroll').scrollLeft = 9999")
    ground = right_edge()
    page.close()
    assert ground == (254, 254, 254)
    assert max(shaded) < 230


OVERLAPS = """
[...document.querySelectorAll('.plot svg')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
        .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1
            && p.top < q.bottom - 3 && q.top < p.bottom - 3)
        .map(([b, q]) => a + ' / ' + b));
})
"""


@pytest.mark.browser
def test_texts_in_plots_do_not_overlap_and_follow_the_scheme(world, browser):
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        for name in pages(world.site):
            page.goto((world.site / name).as_uri())
            assert page.evaluate(OVERLAPS) == [], name
        page.goto(board_of(world.site, "standard-openmoji").as_uri())
        colours[scheme] = page.evaluate("getComputedStyle(document.querySelector('.plot svg text')).fill")
        page.close()
    assert colours["light"] != colours["dark"]
