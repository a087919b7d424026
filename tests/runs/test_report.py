import json
import math
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urljoin

import pytest

from workingpapers.errors import UserError
from workingpapers.papers import catalogue
from workingpapers.runs import claims, report
from workingpapers.runs.execute import try_
from workingpapers.runs.leaderboard import leaderboards
from workingpapers.runs.report import command, permalink, write_report
from workingpapers.runs.store import Run, Store
from workingpapers.tasks import protocol
from workingpapers.tasks.protocol import Budget, Conditions, Metric, Prepared, Setting, Task

EVIL = "<script>alert(1)</script>"
SETTINGS = {
    "standard": "Classify with frozen features, every label",
    "few-shot": "Classify with frozen features, five labels a class",
}
METRICS = (
    Metric("accuracy", True, "%", 0.5, "Share of held-back examples whose class was found."),
    Metric("macro-f1", True, "%", 0.5),
    Metric("calibration error", False, about="Expected calibration error with 15 bins."),
)
# entry: paper, accuracy, spread over seeds, seconds, parameters
ENTRIES = {
    "logistic-regression": (None, 88.0, 0.25, 3.1, 12_810),
    "moment-probing": ("moment-probing", 90.6, 0.3, 41.0, 164_234),
    "generative-probe": ("generative-probe", 83.1, 0.4, 0.012, 12_810),
    "grassmann": (None, 88.1, 0.12, 25.0, 40_960),
    "hyperspherical": (None, 88.9, 1.4, 18.0, 12_800),
    "lda-shrinkage": (None, 88.6, 0.2, 0.4, 12_810),
    "linear-svm": (None, 88.0, 0.1, 5.5, 12_810),
    "knn": (None, 84.9, 0.3, 0.004, 0),
    "nearest-class-mean": (None, 80.2, 0.35, 0.005, 12_800),
    "mlp": (None, 89.3, 0.4, 33.0, 333_322),
    "off-the-shelf-features-of-every-layer": (None, 87.2, 0.5, 9.0, 51_210),
}
LEARNERS = ("moment-probing", "grassmann", "hyperspherical", "mlp")
CARD = """
slug = "{slug}"
title = "{title}"
arxiv = "2302.02334"
year = 2023
venue = "ICML 2023"
code = "https://github.com/example/code"
topics = ["feature-transfer"]
task = "demo"
door = "a scikit-learn classifier; `fit` takes tokens"
method = "workingpapers.methods.heads.naive_bayes:TiedGaussianNB"
usage = '''
from workingpapers.methods.heads.naive_bayes import TiedGaussianNB

probe = TiedGaussianNB().fit(features[:200], labels[:200])
print(probe.score(features[200:], labels[200:]) > 0.5)  # {evil}
'''
summary = '''
Frozen features are almost always judged with logistic regression. This paper asks whether another linear classifier isn't
the better probe when labels are few, and gives a theory of how many examples either needs: see `fit`. {evil}
'''
notes = ["The per-backbone tables were not read. {evil}"]

[[claims]]
id = "beats-linear"
text = "The probe beats logistic regression on frozen features."
metric = "top-1 accuracy"
baseline = "logistic regression"
reported = [{{ on = "ImageNet-1K, ViT-B/16", value = 83.15, baseline = 82.04, unit = "%" }}]
source = "Table 2"
verified = true
check = {{ task = "demo", entry = "{slug}", expect = "helps" }}

[[claims]]
id = "few-labels"
text = "With five labels a class the gap is wider still."
metric = "top-1 accuracy"
baseline = "logistic regression"
source = "abstract"
verified = false
check = {{ task = "demo", entry = "{slug}", setting = "few-shot", expect = "helps" }}

[[claims]]
id = "other-entry"
text = "A second variant does the same."
metric = "top-1 accuracy"
baseline = "logistic regression"
source = "abstract"
verified = true
check = {{ task = "demo", entry = "not-there-yet", expect = "helps" }}

[[claims]]
id = "at-scale"
text = "It holds for models of a billion parameters."
metric = "top-1 accuracy"
baseline = "logistic regression"
source = "abstract"
verified = true
untestable = "Needs a thousand GPU hours. {evil}"
"""


def demo_task():
    budgets = {
        "quick": Budget("quick", 2000, 1000, 10, 5),
        "full": Budget("full", 50_000, 10_000, 100, 20),
    }
    settings = [
        Setting(
            name=name,
            title=title,
            metrics=METRICS,
            baseline="logistic-regression",
            data="openmoji",
            model="efficientnet-lite0",
            budgets=budgets,
            prepare=lambda conditions, entries: Prepared("", ""),
            load=lambda conditions, entry, seed: None,
            measure=lambda fit, problem, context: {},
        )
        for name, title in SETTINGS.items()
    ]
    task = Task("demo", title="A demonstration", settings=settings)
    for name, (paper, *_) in ENTRIES.items():
        task.entry(*SETTINGS, paper=paper, name=name)(lambda train, context: None)
    task.entry(name="crashes")(lambda train, context: None)
    return task


def run(entry, seed, *, task="demo", setting="standard", data="openmoji", status="ok", error="", label="label"):
    paper, accuracy, spread, seconds, parameters = ENTRIES.get(entry, (None, 50.0, 1.0, 1.0, 10))
    draw = random.Random(f"{entry} {seed} {setting} {data}")
    shift = -19 if setting == "few-shot" else 0
    value = accuracy + shift + random.Random(seed).gauss(0, 0.4) + draw.gauss(0, spread)
    curves = {}
    if entry in LEARNERS:
        rate, floor = 4 + 4 * LEARNERS.index(entry), 0.1 + 0.12 * LEARNERS.index(entry)
        noise = draw.gauss(0, 0.08)
        curves["training loss"] = [(step, floor + (2.2 + noise) * math.exp(-step / rate)) for step in range(40)]
    return Run(
        key=f"{task} {setting} {data} {label} {entry} {seed}",
        task=task,
        setting=setting,
        data=data,
        data_fingerprint="3f9a0c" * 10,
        model="efficientnet-lite0",
        model_fingerprint="77aa10" * 10,
        budget="quick",
        entry=entry,
        paper=paper,
        seed=seed,
        status=status,
        error=error,
        metrics={"accuracy": value, "macro-f1": value - 2.1, "calibration error": abs(draw.gauss(0.05, 0.01))}
        if status == "ok"
        else {},
        measured={
            "fit_seconds": seconds * draw.uniform(0.9, 1.1),
            "predict_seconds": 0.2,
            "cpu_seconds": seconds,
            "peak_memory_mb": 480 + parameters / 1000,
            "peak_gpu_mb": 0.0,
            "parameters": float(parameters),
        }
        if status == "ok"
        else {},
        curves=curves if status == "ok" else {},
        settings={"label": label, "threads": 1, "budget": {"name": "quick", "train": 2000, "test": 1000, "epochs": 10}},
        versions={"python": "3.11.2", "workingpapers": "0.1.0", "torch": "2.9.1", "numpy": "2.3.5"},
        hardware={
            "processor": "Some Processor @ 2.4 GHz",
            "cores": 2,
            "memory_gb": 16,
            "gpu": "",
            "system": "Linux x86_64",
        },
        finished=f"2026-11-25T10:00:{seed:02d}.000+00:00",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A task, three cards and a store of about ten entries with five seeds, curves, failures and hostile names."""
    folder = tmp_path_factory.mktemp("world")
    cards = folder / "cards"
    cards.mkdir()
    for slug, title in (
        ("moment-probing", "Tuning Pre-trained Model via Moment Probing"),
        ("generative-probe", f"Revisiting Generative Classifiers {EVIL}"),
    ):
        (cards / f"{slug}.toml").write_text(CARD.format(slug=slug, title=title, evil=EVIL))
    described = re.sub(
        r"method = .*?'''\n(?=summary)", "", CARD.format(slug="din", title="Described", evil=""), flags=re.S
    )
    (cards / "din.toml").write_text(described.split("[[claims]]")[0].replace('task = "demo"\n', ""))
    store = Store(str(folder / "runs.sqlite"))
    for entry in ENTRIES:
        for seed in range(5):
            store.save(run(entry, seed))
            if entry not in ("grassmann", "hyperspherical"):
                store.save(run(entry, seed, setting="few-shot"))
    for seed in range(2):
        for entry in ("logistic-regression", "knn", "mlp"):
            store.save(run(entry, seed, data=f"./my photos/{EVIL}"))
    for seed in range(5):
        store.save(
            run("crashes", seed, status="failed", error=f"ValueError: shapes (64, 1280) and (512,) do not fit {EVIL}")
        )
    store.save(run("mlp", 5, status="out of memory", error="The process was killed, most likely for want of memory."))
    store.save(run("gone", 0, task="demo-of-the-past"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "workingpapers.tasks.demo", SimpleNamespace(task=demo_task()))
        for module in (protocol, claims):
            patch.setattr(module, "task_names", lambda: ("demo",))
        patch.setattr(catalogue, "CARDS", cards)
        catalogue.load_catalogue.cache_clear()
        protocol.load_task.cache_clear()
        yield SimpleNamespace(store=store, site=write_report(folder / "site", store).parent)
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
    assert "Left out, 1 of demo-of-the-past, standard: Unknown task" in text
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


def test_permalinks_are_readable_constant_and_distinct():
    at = Conditions("demo", "standard", "./my photos/Ünï", "google/vit", "full")
    assert permalink(at) == "demo-standard-my-photos-n-google-vit-full-5f1aaec5"
    other = Conditions("demo", "standard", "./my photos/Ünï", "google/vit", "full", label="species")
    assert permalink(other) != permalink(at)
    assert len(permalink(Conditions("demo", "standard", "x" * 1000, "", "full"))) < 100


def test_the_command_names_what_is_not_the_default(world):
    def of(*runs):
        return command(leaderboards(runs)[0])

    entries = [name for name in [*ENTRIES, "crashes"]]
    assert of(*(run(name, 0) for name in entries)) == "papers try demo --seeds 1"
    some = [
        run("logistic-regression", 2, data="my photos", label="what is it"),
        run("knn", 0, data="my photos", label="what is it"),
    ]
    assert of(*some) == "papers try demo --data 'my photos' --label 'what is it' --entries knn --seeds 3"
    few = [run("logistic-regression", 0, setting="few-shot"), run("knn", 0, setting="few-shot")]
    assert of(*few) == "papers try demo --setting few-shot --entries knn --seeds 1"


def test_a_leaderboard_without_a_finished_run_has_a_page(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("crashes", 0, status="timed out", error="after 3 s"))
    text = board_of(write_report(tmp_path / "site", store).parent, "demo").read_text()
    assert "No run finished." in text
    assert "timed out: after 3 s" in text
    assert "<figure>" not in text


def test_a_single_seed_and_a_missing_baseline_are_shown_as_they_are(world, tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    store.save(run("knn", 0))
    page = board_of(write_report(tmp_path / "site", store).parent, "demo")
    assert "the baseline logistic-regression has no run to compare with" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["rows"][0]["values"]["accuracy"]["half"] is None


def test_a_report_of_real_runs(tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    try_("toytask:task", seeds=3, store=store)
    try_("toytask:task", setting="trouble", entries=["raises"], seeds=1, store=store)
    index = write_report(tmp_path / "deep" / "site", store)
    assert index == tmp_path / "deep" / "site" / "index.html"
    assert "no such thing" in board_of(index.parent, "trouble").read_text()


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
    with pytest.raises(UserError, match="Unknown task 'demos'. Did you mean 'demo'"):
        write_report(tmp_path / "site", store)


@pytest.mark.parametrize("where", ["site", "site/papers"])
def test_a_file_where_a_folder_must_be_is_refused(world, tmp_path, where):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"needs a folder at .*{where}"):
        write_report(tmp_path / "site", world.store)
    assert path.read_text() == "mine"
    assert not (tmp_path / "site/index.html").exists()


def test_a_folder_where_a_file_must_be_is_refused(world, tmp_path):
    (tmp_path / "index.html").mkdir()
    with pytest.raises(UserError, match=r"needs a file at .*index.html"):
        write_report(tmp_path, world.store)


def test_a_page_that_no_report_wrote_is_refused_before_anything_is_written(world, tmp_path):
    (tmp_path / "index.html").write_text("<h1>my home page</h1>")
    with pytest.raises(UserError, match=r"index.html is not from an earlier report"):
        write_report(tmp_path, world.store)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert (tmp_path / "index.html").read_text() == "<h1>my home page</h1>"


def test_a_folder_that_cannot_be_written_is_refused(world, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be written to /proc/site"):  # refuses even the superuser
        write_report(Path("/proc/site"), world.store)

    def deny(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", deny)
    with pytest.raises(UserError, match="Permission denied"):
        write_report(tmp_path / "site", world.store)
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


OVERLAPS = """
[...document.querySelectorAll('.plot svg')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
        .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
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
