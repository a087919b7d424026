"""Every setting of `probe` from end to end at tiny size, and every form that data and models of one's own may take."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from workingpapers.cli import main
from workingpapers.errors import UserError
from workingpapers.runs.execute import try_
from workingpapers.runs.store import Store
from workingpapers.tasks.protocol import load_task

TASK = load_task("probe")
COLOURS = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)]) * 160 + 40


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for the whole module: what is rendered or computed once serves every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKINGPAPERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def store(tmp_path, monkeypatch):
    file = tmp_path / "runs.sqlite"
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(file))
    monkeypatch.chdir(tmp_path)
    return file


def noisy(rng, colour, side=24):
    return (colour + rng.normal(0, 30, (side, side, 3))).clip(0, 255).astype(np.uint8)


def make_folder(root, classes, each):
    """Write images of a few noisy colours, a folder for each."""
    rng = np.random.default_rng(0)
    for k in range(classes):
        (root / f"colour{k}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noisy(rng, COLOURS[k])).save(root / f"colour{k}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "colours", classes=8, each=20)


def check(board, setting, failing=()):
    """Every entry of the setting is there, with numbers that can be, or with the reason that it has none."""
    rows = {row.entry: row for row in board.rows}
    assert set(rows) == {entry.name for entry in TASK.select(setting)}
    metrics = {metric.name: metric for metric in TASK.setting(setting).metrics}
    for name, row in rows.items():
        if name in failing:
            assert row.failures
            continue
        assert not row.failures
        assert {n for n, m in metrics.items() if not m.optional} <= set(row.values)
        for metric, value in row.values.items():
            assert math.isfinite(value.mean)
            assert metrics[metric].unit != "%" or value.mean >= 0
        assert row.costs["fit_seconds"] >= 0
        assert row.costs["peak_memory_mb"] > 0
        assert row.costs["parameters"] >= 0
    return rows


# Settings


@pytest.mark.slow
def test_standard(folder, store):
    pytest.importorskip("skimage")
    rows = check(try_("probe", data=str(folder), model="pixels", seeds=1), "standard")
    assert rows["logistic-regression"].values["accuracy"].mean > 90  # colours are far apart
    assert rows["knn"].costs["parameters"] == 0
    # 8 classes, 768 features and a bias each.
    assert rows["logistic-regression"].costs["parameters"] >= 8 * 769
    assert all(rows[name].paper for name in ("moment-probing", "generative-probe", "grassmann", "hyperspherical"))


@pytest.mark.parametrize(("setting", "metric"), [("label-efficiency", "mean-accuracy"), ("multi-scale", "accuracy")])
def test_settings_on_a_folder(folder, store, setting, metric):
    board = try_("probe", setting=setting, data=str(folder), model="pixels", seeds=1)
    rows = check(board, setting)
    assert rows[TASK.setting(setting).baseline].values[metric].mean > 80
    if setting == "label-efficiency":
        curve = next(run for run in board.runs if run.entry == "knn").curves["accuracy by training examples"]
        assert [size for size, _ in curve] == [16, 40, 80, 112]  # 2, 5, 10 and all 14 of each of 8 classes


def test_multi_view(tmp_path, store):
    board = try_("probe", setting="multi-view", data=str(make_folder(tmp_path / "few", 3, 8)), model="pixels", seeds=2)
    check(board, "multi-view")
    assert all(row.seeds == 2 for row in board.rows)


@pytest.mark.slow
def test_unseen_classes_of_rotated_digits(store):
    rows = check(try_("probe", setting="unseen-classes", model="pixels", seeds=1), "unseen-classes")
    assert rows["argmax"].values["unseen-accuracy"].mean == 0
    assert rows["loki"].values["squared-distance"].mean < rows["argmax"].values["squared-distance"].mean


def test_unseen_classes_need_distances(folder, store):
    with pytest.raises(UserError, match="needs distances between the classes"):
        try_("probe", setting="unseen-classes", data=str(folder), model="pixels", seeds=1)


@pytest.mark.slow
def test_novel_classes(folder, store):
    rows = check(try_("probe", setting="novel-classes", data=str(folder), seeds=1), "novel-classes")
    assert rows["softmax"].values["disjoint-accuracy"].mean > 50  # of two novel colours or three; chance is 33 to 50
    assert rows["softmax"].costs["parameters"] > rows["untrained"].costs["parameters"] > 20_000


def test_novel_classes_of_too_few_images(tmp_path, store):
    board = try_("probe", setting="novel-classes", data=str(make_folder(tmp_path / "few", 3, 8)), seeds=1)
    assert all("at least 6 classes with more than 5" in row.failures[0] for row in board.rows)


@pytest.mark.slow
def test_representation(tmp_path, store):
    board = try_("probe", setting="representation", data=str(make_folder(tmp_path / "few", 4, 12)), seeds=1)
    rows = check(board, "representation")
    assert "training loss by step" in next(run for run in board.runs if run.entry == "grassmann-k4").curves
    assert rows["softmax"].values["accuracy"].mean > 50


@pytest.mark.slow
def test_digits(store):
    """A packaged data set by name, with more images than a batch holds."""
    board = try_("probe", data="digits", model="pixels", entries=["nearest-mean", "generative-probe"], seeds=2)
    rows = {row.entry: row for row in board.rows}
    assert set(rows) == {"logistic-regression", "nearest-mean", "generative-probe"}
    # Logistic regression reaches about 96 % on these digits, the nearest mean about 90 %.
    assert rows["logistic-regression"].values["accuracy"].mean > 93
    assert rows["nearest-mean"].values["accuracy"].mean > 85


# Data and models of one's own, at the command line


def measured(store, *options, entries="nearest-mean,moment-probing", **given):
    """Run the command twice and return the first's standard error: it must succeed, and the second must run nothing."""
    command = ["try", "probe", "--entries", entries, "--seeds", "1", *options]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    names = ["logistic-regression", *entries.split(",")]
    lines = first.stdout.splitlines()
    assert lines[0].startswith("probe, standard: ")
    assert {line.split()[0] for line in lines[2:]} == set(names)
    runs = Store(str(store)).runs()
    assert {(run.entry, run.status) for run in runs} == {(name, "ok") for name in names}
    second = CliRunner().invoke(main, command)
    assert second.exit_code == 0
    assert second.stdout == first.stdout
    assert f"{len(names)} of {len(names)} runs are in the store already" in second.stderr
    assert Store(str(store)).runs() == runs
    return first.stderr


def vectors(each=12, dim=5):
    rng = np.random.default_rng(0)
    y = np.repeat(["pear", "fig", "plum"], each)
    X = rng.normal(size=(len(y), dim))
    X[:, 0] += 4 * np.unique(y, return_inverse=True)[1]
    return X, y


def test_a_folder_of_images(folder, store):
    measured(store, data=folder, model="pixels")


def test_a_folder_with_train_and_test(tmp_path, store):
    for part in ("train", "test"):
        make_folder(tmp_path / "split" / part, classes=3, each=6)
    measured(store, data="split", model="pixels")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_numbers(tmp_path, store, kind):
    X, y = vectors()
    frame = pd.DataFrame(X, columns=list("abcde")).assign(fruit=y)
    getattr(frame, f"to_{kind}")(tmp_path / f"own.{kind}", index=False)
    measured(store, data=f"own.{kind}", label="fruit", model="pixels")


def test_a_table_of_images(tmp_path, store):
    files = sorted((make_folder(tmp_path / "pictures", 2, 8)).rglob("*.png"))
    frame = pd.DataFrame(
        {"file": [str(f.relative_to(tmp_path)) for f in files], "label": [f.parent.name for f in files]}
    )
    frame.to_csv(tmp_path / "own.csv", index=False)
    measured(store, data="own.csv", model="pixels")


@pytest.mark.parametrize("tokens", [False, True])
def test_features_computed_elsewhere(tmp_path, store, tokens):
    X, y = vectors()
    np.savez(tmp_path / "own.npz", features=np.repeat(X[:, None], 4, axis=1) if tokens else X, labels=y)
    measured(store, data="own.npz", model="pixels")


def test_features_from_a_function(tmp_path, store):
    (tmp_path / "fruit.py").write_text(
        "import numpy as np\n\n"
        "def basket():\n"
        "    y = np.arange(40) % 2\n"
        "    return np.random.default_rng(0).normal(size=(40, 3)) + 3 * y[:, None], y\n"
    )
    measured(store, data="fruit:basket", model="pixels")


def test_images_from_a_function(tmp_path, store):
    (tmp_path / "pictures.py").write_text(
        "import numpy as np\n\n"
        "def make():\n"
        "    y = np.arange(40) % 2\n"
        "    noise = np.random.default_rng(0).integers(0, 100, (40, 16, 16, 3))\n"
        "    return (noise + 100 * y[:, None, None, None]).astype(np.uint8), y\n"
    )
    measured(store, data="pictures:make", model="pixels")


def test_a_model_from_a_function(tmp_path, folder, store):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def small():\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4), nn.ReLU(), nn.Conv2d(12, 8, 3))\n"
        "    net.image_size, net.mean, net.std = 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)\n"
        "    return net\n"
    )
    measured(store, data=folder, model="nets:small")


@pytest.mark.slow
def test_a_local_folder_of_a_transformers_model(tmp_path, folder, store):
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    measured(store, data=folder, model=tmp_path / "vit")


def test_other_data_of_the_same_name_are_other_runs(tmp_path, store):
    X, y = vectors()
    for shift in (0.0, 1.0):
        np.savez(tmp_path / "own.npz", features=X + shift, labels=y)
        result = CliRunner().invoke(
            main,
            ["try", "probe", "--entries", "nearest-mean", "--seeds", "1", "--data", "own.npz", "--model", "pixels"],
        )
        assert result.exit_code == 0
        assert "0 of 2 runs are in the store already" in result.stderr


def test_skipped_images_are_counted_for_the_user(tmp_path, store):
    root = make_folder(tmp_path / "some", 2, 12)
    broken = root / "colour0" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    assert "1 image was skipped: colour0/3.png: " in measured(store, data=root, model="pixels")
