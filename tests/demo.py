"""A made-up task with cards and runs such as a real store holds them, for whatever shows runs; nothing is computed."""

import math
import random
import re

from workingpapers.runs.store import Run
from workingpapers.tasks.protocol import Budget, Metric, Prepared, Setting, Task

EVIL = "<script>alert(1)</script>"
SETTINGS = {
    "standard": "Classify with frozen features, every label",
    "few-shot": "Classify with frozen features, five labels a class",
}
METRICS = (
    Metric("accuracy", True, "%", 0.5, "Share of held-back examples whose class was found."),
    Metric("macro-f1", True, "%", 0.5),
    Metric("calibration error", False, about="Expected calibration error with 15 bins.", optional=True),
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
Frozen features are almost always judged with logistic regression. This paper asks whether another classifier isn't
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
            load=lambda conditions, entry, seed, prepared: None,
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
    metrics = {"accuracy": value, "macro-f1": value - 2.1}
    if entry != "linear-svm":  # it gives no probabilities
        metrics["calibration error"] = abs(draw.gauss(0.05, 0.01))
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
        metrics=metrics if status == "ok" else {},
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


def write_cards(folder):
    """Write two papers with methods and claims, and one that is only described; return the folder."""
    folder.mkdir()
    for slug, title in (
        ("moment-probing", "Tuning Pre-trained Model via Moment Probing"),
        ("generative-probe", f"Revisiting Generative Classifiers {EVIL}"),
    ):
        (folder / f"{slug}.toml").write_text(CARD.format(slug=slug, title=title, evil=EVIL))
    described = re.sub(
        r"method = .*?'''\n(?=summary)", "", CARD.format(slug="din", title="Described", evil=""), flags=re.S
    )
    (folder / "din.toml").write_text(described.split("[[claims]]")[0].replace('task = "demo"\n', ""))
    return folder


def fill(store):
    """Save about ten entries with five seeds in three leaderboards, with curves, failures and hostile names."""
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
    return store
