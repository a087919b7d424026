"""`probe` on classes without examples, and with small networks that are trained with each head."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid
from torch import nn

from workingpapers.errors import UserError
from workingpapers.tasks.probe import embeddings, unseen
from workingpapers.tasks.probe.embeddings import ImageProblem, Images, Network
from workingpapers.tasks.probe.examples import Examples, Problem
from workingpapers.tasks.protocol import Budget, Conditions, Context, load_task

TASK = load_task("probe")
TRAINED = [e for e in TASK.entries.values() if not e.needs]


def context(trials=3, epochs=2, seed=0):
    return Context(seed, Budget("quick", train=100, test=100, epochs=epochs, trials=trials))


# Classes without examples


def path_problem(classes=10, each=20, distances=None):
    """Classes on a line, where the features tell the place with noise."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), each)
    X = (y[:, None] + rng.normal(0, 0.5, (len(y), 3))).astype(np.float32)
    steps = np.arange(classes, dtype=float)
    metric = np.abs(steps[:, None] - steps) if distances is None else distances
    return Problem(Examples(X, y, classes, 0, metric), X + 0.1, y)


@pytest.mark.parametrize("seed", range(3))
def test_classes_that_are_held_back_are_in_no_training_label(seed):
    problem, seen = path_problem(), []

    def fit(train):
        seen.append(train)
        return TASK.entries["argmax"].fit(train, context())

    metrics = unseen.measure(fit, problem, seed)
    [train] = seen
    observed = set(train.y)
    assert len(observed) == 4  # two fifths of ten
    np.testing.assert_array_equal(train.X, problem.train.X[np.isin(problem.train.y, list(observed))])
    assert train.classes == 10
    assert metrics["unseen-accuracy"] == 0  # argmax can only name what it saw


@pytest.mark.parametrize("wrong", [-1, 10, 0.5])
def test_predictions_that_are_no_labels_are_refused(wrong):
    def fit(train):
        return SimpleNamespace(predict=lambda X: np.full(len(X), wrong))

    with pytest.raises(UserError, match=r"predict returned .* needed: labels 0 to 9 of shape \(200,\)"):
        unseen.measure(fit, path_problem(), 0)


def test_seeds_hold_back_other_classes():
    observed = set()
    for seed in range(5):
        unseen.measure(
            lambda train: observed.add(tuple(np.unique(train.y))) or NearestCentroid().fit(train.X, train.y),
            path_problem(),
            seed,
        )
    assert len(observed) == 5


def test_the_metrics_by_hand():
    class Guess:
        def predict(self, X):
            return np.full(len(X), 2)

    problem, observed = path_problem(classes=5, each=2), []
    metrics = unseen.measure(lambda train: observed.append(set(train.y)) or Guess(), problem, 0)
    assert metrics["squared-distance"] == pytest.approx((4 + 1 + 0 + 1 + 4) / 5)
    assert metrics["accuracy"] == pytest.approx(20)
    assert metrics["unseen-accuracy"] == pytest.approx(0 if 2 in observed[0] else 100 / 3)


def test_decoding_by_distances_reaches_unseen_classes_that_argmax_cannot():
    problem = path_problem()
    scores = {
        name: unseen.measure(lambda train, name=name: TASK.entries[name].fit(train, context()), problem, 0)
        for name in ("argmax", "loki", "frechet-median", "ridge-embedding")
    }
    assert scores["loki"]["unseen-accuracy"] > 0
    assert scores["ridge-embedding"]["unseen-accuracy"] > 30  # places on a line are what ridge regression fits
    assert scores["loki"]["squared-distance"] < scores["argmax"]["squared-distance"]


def test_under_the_discrete_metric_decoding_is_argmax():
    problem = path_problem(classes=6, distances=1.0 - np.eye(6))
    train = problem.train.take(np.flatnonzero(problem.train.y < 4))
    argmax = TASK.entries["argmax"].fit(train, context()).predict(problem.inputs)
    for name in ("loki", "frechet-median"):
        np.testing.assert_array_equal(TASK.entries[name].fit(train, context()).predict(problem.inputs), argmax)


def test_an_embedding_of_distances_has_these_distances():
    places = np.random.default_rng(0).normal(size=(7, 3))
    wanted = np.linalg.norm(places[:, None] - places, axis=2)
    found = unseen._embedded(wanted)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=2), wanted, atol=1e-9)


def test_data_that_cannot_serve_are_refused():
    no_distances = dataclasses.replace(path_problem().train, distances=None)
    with pytest.raises(UserError, match=r"needs distances between the classes; .*rotated-digits"):
        unseen.measure(None, Problem(no_distances, np.zeros((1, 3)), np.zeros(1)), 0)
    with pytest.raises(UserError, match="at least five classes; the data set has 4"):
        unseen.measure(None, path_problem(classes=4), 0)


# Networks trained with heads


def images(classes=20, each=6, seed=0):
    """Images whose brightness tells their class: label k is k / classes everywhere."""
    y = torch.arange(classes).repeat_interleave(each)
    X = (y / classes)[:, None, None, None].expand(-1, 3, 32, 32) + 0.001 * torch.randn(
        len(y), 3, 32, 32, generator=torch.Generator().manual_seed(seed)
    )
    return Images(X.contiguous(), y, seed)


@pytest.mark.parametrize("entry", TRAINED, ids=lambda e: e.name)
def test_every_entry_starts_from_the_same_weights(entry):
    start = embeddings._encoder(3).state_dict()
    network = entry.fit(dataclasses.replace(images(), seed=3), context(epochs=0, seed=3))
    for name, weights in network.encoder.state_dict().items():
        torch.testing.assert_close(weights, start[name], rtol=0, atol=0)
    other = embeddings._encoder(4).state_dict()
    assert not torch.equal(other["0.weight"], start["0.weight"])


@pytest.mark.parametrize("setting", ["novel-classes", "representation"])
def test_every_entry_trains_for_the_same_steps(monkeypatch, setting):
    counts = {}
    batches = embeddings._batches
    for entry in TASK.select(setting):
        monkeypatch.setattr(
            embeddings,
            "_batches",
            lambda *a, name=entry.name: (
                counts.update({name: counts.get(name, 0) + 1}) or rows for rows in batches(*a)
            ),
        )
        start = embeddings._encoder(0).state_dict()
        trained = entry.fit(images(), context(epochs=3)).encoder.state_dict()
        moved = any(not torch.equal(trained[name], start[name]) for name in start)
        assert moved == (entry.name != "untrained")
    assert set(counts) == {e.name for e in TASK.select(setting)} - {"untrained"}
    assert set(counts.values()) == {3 * 2}  # 120 images in batches of 64


@pytest.mark.parametrize(("classes", "chosen"), [(20, 16), (5, 5)])
def test_balanced_batches_have_four_images_of_each_class(classes, chosen):
    train = images(classes)
    for rows in embeddings._batches(train, 3, balanced=True):
        assert np.unique(train.y[rows], return_counts=True)[1].tolist() == [4] * chosen


def test_shuffled_batches_pass_over_all_images():
    train = images()
    rows = list(embeddings._batches(train, 2, balanced=False))
    assert [len(r) for r in rows] == [64, 56, 64, 56]
    for epoch in (rows[:2], rows[2:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(120))
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("seed", range(3))
def test_novel_classes_are_absent_from_training(seed):
    train, held = images(9), images(9, each=8)
    problem, seen = ImageProblem(train, held.X, held.y.numpy()), []

    def fit(given):
        seen.append(given)
        return Network(nn.Sequential(nn.AvgPool2d(32), nn.Flatten()))

    metrics = embeddings.measure_novel(fit, problem, context(seed=seed))
    [given] = seen
    shown = set((given.X.mean(dim=(1, 2, 3)) * 9).round().int().tolist())
    assert len(shown) == 6  # two thirds
    assert set(given.y.tolist()) == set(range(6))
    assert len(given.y) == 6 * 6
    order = np.random.default_rng([seed, 4]).permutation(9)
    assert shown == set(order[:6].tolist())
    assert set(metrics) == {"disjoint-accuracy", "joint-harmonic-mean"}


def test_too_few_classes_or_images_are_refused():
    for classes, each in ((5, 8), (8, 5)):
        held = images(classes, each)
        with pytest.raises(UserError, match=f"there are {classes} classes, the smallest with {each}"):
            embeddings.measure_novel(None, ImageProblem(images(classes), held.X, held.y.numpy()), context())


def test_the_representation_of_a_perfect_network(monkeypatch):
    """The head reads the class off the embedding; the embeddings of a class coincide."""
    monkeypatch.setattr(embeddings, "_transfer", lambda network, seed: 12.0)
    held = images(4)
    codes = nn.Embedding.from_pretrained(torch.eye(4))

    class Knows(nn.Module):
        def forward(self, X):
            return codes((X.mean(dim=(1, 2, 3)) * 4).round().long())

    problem = ImageProblem(images(4), held.X, held.y.numpy())
    metrics = embeddings.measure_representation(lambda train: Network(Knows(), nn.Identity()), problem, context())
    assert metrics.pop("transfer-accuracy", 12.0) == 12.0
    assert metrics == {"accuracy": 100, "within-class-variance": pytest.approx(0, abs=1e-12)}


@pytest.mark.parametrize(("data", "transfers"), [("openmoji", False), ("openmoji-subgroups", False), ("digits", True)])
def test_nothing_is_transferred_to_pictures_that_were_trained_on(data, transfers, monkeypatch):
    from workingpapers.data.datasets import load_dataset

    monkeypatch.setattr("workingpapers.tasks.probe.examples.load_dataset", lambda *_, **__: load_dataset("digits"))
    where = Conditions("probe", "representation", data, "")
    problem = embeddings.load(where, 0, embeddings.prepare(where))
    assert problem.transfers == transfers
    monkeypatch.setattr(embeddings, "_transfer", lambda network, seed: 12.0)
    head = nn.Linear(embeddings.WIDTH, problem.train.classes)
    found = embeddings.measure_representation(lambda train: Network(embeddings._encoder(0), head), problem, context())
    assert ("transfer-accuracy" in found) <= transfers  # OpenMoji may not be installed


def test_embedding_is_the_same_for_one_image_and_for_many():
    network = Network(embeddings._encoder(0).train())
    X = torch.rand(600, 3, 32, 32)  # more than one batch
    found = embeddings.embed(network, X)
    assert found.shape == (600, embeddings.WIDTH)
    np.testing.assert_allclose(found[550:551], embeddings.embed(network, X[550:551]), rtol=1e-4, atol=1e-6)
