"""Off-the-shelf features: the transforms, the views, the SVM over views and the retrieval against their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, normalize
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.methods.features import off_the_shelf
from workingpapers.methods.features.off_the_shelf import (
    OffTheShelfClassifier,
    PCAWhitener,
    SignedPower,
    multi_view,
)
from workingpapers.methods.features.patch_retrieval import (
    PatchRetrieval,
    mean_average_precision,
    multi_patch,
    naive_patch_distances,
)


@parametrize_with_checks(
    [
        SignedPower(),
        PCAWhitener(),
        OffTheShelfClassifier(),
        PatchRetrieval(levels_ref=1, levels_query=1),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# --- transforms


def test_signed_power_keeps_signs_and_inverts():
    X = np.random.default_rng(0).normal(size=(20, 5))
    X[0, 0] = 0
    np.testing.assert_array_equal(SignedPower(p=1).fit_transform(X), X)
    squared = SignedPower(p=2).fit_transform(X)
    np.testing.assert_array_equal(np.sign(squared), np.sign(X))
    np.testing.assert_allclose(np.abs(squared), X**2)
    np.testing.assert_allclose(SignedPower(p=0.5).fit_transform(squared), X)


def test_whitened_data_have_identity_covariance():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + 3
    white = PCAWhitener(renormalize=False).fit_transform(X)
    np.testing.assert_allclose(np.cov(white.T), np.eye(8), atol=1e-8)  # eps moves variances by less than 1e-8
    few = PCAWhitener(n_components=3).fit_transform(X)
    np.testing.assert_allclose(few, normalize(white[:, :3]))
    # Doubled variance everywhere: every component is divided by sqrt(2) more.
    damped = PCAWhitener(renormalize=False, n_components=1)
    damped.set_params(eps=PCAWhitener(n_components=1).fit(X).pca_.explained_variance_[0])
    np.testing.assert_allclose(damped.fit_transform(X), white[:, :1] / math.sqrt(2))


def test_directions_without_variance_are_left_out():
    rng = np.random.default_rng(0)
    X, queries = rng.normal(size=(12, 40)), rng.normal(size=(5, 40))  # 12 rows vary in 11 directions
    white = PCAWhitener().fit(X).transform(queries)
    np.testing.assert_allclose(white, PCAWhitener(n_components=11).fit(X).transform(queries))
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="only 0 components have variance"):
        PCAWhitener().fit(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (SignedPower(p=0), "p is 0; it must be finite and above 0"),
        (PCAWhitener(eps=-1), "eps is -1"),
        (PCAWhitener(n_components=9), "n_components=9 must be between"),
        (PCAWhitener(n_components=3), "only 2 components have variance; n_components is 3"),
    ],
)
def test_bad_transforms_are_named(transformer, message):
    X = np.random.default_rng(0).normal(size=(5, 3))
    X[:, 2] = X[:, 0] + X[:, 1]  # two dimensions in three columns
    with pytest.raises(ValueError, match=message):
        transformer.fit(X)


# --- views and patches


def ramp(height, width):
    """Return an image whose channels are the pixel centres' x, y (-1 to 1) and a constant."""
    rows, columns = ((torch.arange(n, dtype=torch.double) + 0.5) / n * 2 - 1 for n in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])[None]


def test_there_are_sixteen_views_the_second_half_mirrored():
    images = torch.rand(2, 3, 24, 36)
    views = multi_view(images)
    assert views.shape == (2, 16, 3, 24, 36)
    torch.testing.assert_close(views[:, 0], images, rtol=0, atol=0)
    torch.testing.assert_close(views[:, 8:], views[:, :8].flip(-1), rtol=0, atol=0)
    torch.testing.assert_close(multi_view(images[1:]), views[1:])


def test_crops_show_four_ninths_of_the_area():
    # Away from the border bilinear sampling of a linear image is exact, so a crop is the ramp, scaled and shifted.
    image = ramp(36, 36)
    views = multi_view(image)[0]
    for crop, (x, y) in zip(views[1:6], [(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)], strict=True):
        expected = image[0] * (2 / 3) + torch.tensor([x / 3, y / 3, 1 / 3], dtype=torch.double)[:, None, None]
        torch.testing.assert_close(crop[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])


def test_rotations_turn_without_stretching():
    # In pixels, x of the source = cos x + sin y and y of the source = cos y - sin x for a clockwise turn.
    height, width = 40, 60
    image = ramp(height, width)
    x, y = image[0, 0] * width / 2, image[0, 1] * height / 2
    inside = (x.abs() < 15) & (y.abs() < 10)
    for view, degrees in zip(multi_view(image, degrees=20)[0, 6:8], (-20, 20), strict=True):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        torch.testing.assert_close((view[0] * width / 2)[inside], (cos * x + sin * y)[inside])
        torch.testing.assert_close((view[1] * height / 2)[inside], (cos * y - sin * x)[inside])
    quarter = multi_view(torch.rand(1, 3, 9, 9, dtype=torch.double), degrees=90)[0]
    torch.testing.assert_close(quarter[7], torch.rot90(quarter[0], k=-1, dims=(1, 2)))  # clockwise


def test_half_precision_views_are_sampled_in_single():
    images = torch.rand(1, 3, 64, 64)
    single, half = multi_view(images), multi_view(images.bfloat16())
    assert half.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: the images themselves differ by 2^-9, rounding the result adds as much.
    torch.testing.assert_close(half.float(), single, rtol=0, atol=2**-7)


def test_patches_cover_the_image_level_by_level():
    image = ramp(30, 30)
    patches = multi_patch(image)[0]
    assert len(patches) == 30
    torch.testing.assert_close(patches[0], image[0], rtol=0, atol=0)
    start = 1
    for h in (2, 3, 4):
        level = patches[start : start + h * h]
        side = 2 / (h + 1)
        centres = [-1 + side * (k + 1) for k in range(h)]  # from edge to edge, neighbours half a patch apart
        middle = level[:, :2, 14:16, 14:16].mean(dim=(2, 3))  # the coordinates shown at the centre of each patch
        expected = torch.tensor([[x, y] for y in centres for x in centres], dtype=torch.double)
        torch.testing.assert_close(middle, expected)
        width = level[:, 0, 15, 16] - level[:, 0, 15, 13]  # three pixels of the patch
        torch.testing.assert_close(width, torch.full_like(width, 3 * 2 / 30 * side))
        start += h * h


def test_bad_images_are_named():
    with pytest.raises(ValueError, match=r"floating point, \(B, 3, H, W\); got \(1, 3, 4, 4\), torch.uint8"):
        multi_view(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(3, 4, 4\)"):
        multi_patch(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        multi_view(torch.full((1, 3, 4, 4), torch.nan))
    with pytest.raises(ValueError, match=r"area is 1\.5"):
        multi_view(torch.zeros(1, 3, 4, 4), area=1.5)
    with pytest.raises(ValueError, match="degrees is inf"):
        multi_view(torch.zeros(1, 3, 4, 4), degrees=math.inf)
    with pytest.raises(ValueError, match="levels is 0"):
        multi_patch(torch.zeros(1, 3, 4, 4), levels=0)


# --- the SVM over views


def sample_views(seed, images=60, views=4, size=12, classes=3, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(images) % classes
    centre = rng.normal(size=(classes, size))[y] + spread * rng.normal(size=(images, size))
    return centre[:, None] + rng.normal(size=(images, views, size)), y


def test_one_view_equals_plain_features():
    X, y = sample_views(0, views=1)
    single = OffTheShelfClassifier(random_state=0).fit(X[:, 0], y)
    several = OffTheShelfClassifier(random_state=0, power=1.0).fit(X, y)
    np.testing.assert_array_equal(single.decision_function(X[:, 0]), several.decision_function(X))


@pytest.mark.parametrize("classes", [2, 3])
def test_views_are_samples_and_their_decision_values_are_summed(classes):
    X, y = sample_views(1, classes=classes)
    model = OffTheShelfClassifier(C=3.0, power=0.5).fit(X, y)
    views = normalize((np.sign(X) * np.sqrt(np.abs(X))).reshape(-1, 12))
    svm = LinearSVC(C=3.0, dual=False, intercept_scaling=10.0).fit(views, np.repeat(y, 4))
    summed = sum(svm.decision_function(views[v::4]) for v in range(4))
    np.testing.assert_allclose(model.decision_function(X), summed, atol=1e-12)
    scores = np.stack([0 * summed, summed], axis=1) if classes == 2 else summed
    np.testing.assert_array_equal(model.predict(X), scores.argmax(axis=1))
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-12)


@given(seed=st.integers(0, 100), power=st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=10, deadline=None)
def test_invariant_to_the_length_of_each_view(seed, power):
    X, y = sample_views(seed)
    scale = np.random.default_rng(seed).uniform(0.01, 100, (60, 4, 1))
    plain = OffTheShelfClassifier(C=1.0, power=power).fit(X, y)
    scaled = OffTheShelfClassifier(C=1.0, power=power).fit(X * scale, y)
    # Rounding alone differs, and the solver stops at a tolerance of 1e-4 from nearly the same place.
    np.testing.assert_allclose(scaled.decision_function(X * scale), plain.decision_function(X), atol=1e-6)
    small = (X * 1e-9).astype(np.float32)
    np.testing.assert_allclose(plain.decision_function(small), plain.decision_function(X), atol=1e-5)


def test_the_order_and_number_of_test_views_are_free():
    X, y = sample_views(2)
    model = OffTheShelfClassifier(C=1.0).fit(X, y)
    np.testing.assert_allclose(model.decision_function(X[:, ::-1]), model.decision_function(X))
    parts = model.decision_function(X[:, :1]) + model.decision_function(X[:, 1:])
    np.testing.assert_allclose(parts, model.decision_function(X))


def test_the_search_never_splits_the_views_of_an_image(monkeypatch):
    X, y = sample_views(3, images=20)
    X[:, :, 0] = 5.0 * np.arange(1, 21)[:, None]  # a fingerprint of the image: feature 0 against feature 1
    X[:, :, 1] = 5.0
    fits = []

    class Recorder(LinearSVC):
        def fit(self, rows, targets):
            fits.append(np.round(rows[:, 0] / rows[:, 1]).astype(int))
            return super().fit(rows, targets)

    monkeypatch.setattr(off_the_shelf, "LinearSVC", Recorder)
    OffTheShelfClassifier(random_state=0).fit(X, y)
    *searched, final = [np.unique(rows, return_counts=True) for rows in fits]
    assert len(searched) == 6
    assert len(final[0]) == 20
    for images, views in searched:
        assert len(images) == 17  # one image of each class is held out
        assert (views == 4).all()  # no image is split
        np.testing.assert_array_equal(images, searched[0][0])


def test_the_search_finds_the_better_penalty():
    # Much label noise: a weak penalty fits the noise, so the search must not end at the weakest.
    X, y = sample_views(4, images=200, views=1, size=60, classes=2)
    y = np.where(np.random.default_rng(0).random(200) < 0.3, 1 - y, y)
    test, truth = sample_views(4, images=2000, views=1, size=60, classes=2)
    model = OffTheShelfClassifier(random_state=0).fit(X, y)
    weakest = OffTheShelfClassifier(C=1000.0).fit(X, y)
    assert model.C_ < 1000
    assert model.score(test, truth) > weakest.score(test, truth) + 0.05


def test_summed_views_beat_one_view_when_views_are_noisy():
    X, y = sample_views(5, images=100, views=8, spread=0.0)
    test, truth = sample_views(5, images=400, views=8, spread=0.0)  # the same class centres, other noise
    model = OffTheShelfClassifier(C=1.0).fit(X, y)
    assert model.score(test, truth) > model.score(test[:, :1], truth) + 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C is 0; allowed: 'auto' or a finite number above 0"),
        ({"C": "best"}, "C is 'best'"),
        ({"C": math.nan}, "C is nan"),
        ({"power": -1}, "power is -1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OffTheShelfClassifier(**options).fit(*sample_views(0))


def test_bad_training_data_are_named():
    X, y = sample_views(0)
    with pytest.raises(ValueError, match="at least two classes; y holds one class: 0"):
        OffTheShelfClassifier().fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        OffTheShelfClassifier().fit(X, y[:-1])
    with pytest.raises(ValueError, match="no class has two"):
        OffTheShelfClassifier().fit(X[:3], y[:3])
    assert OffTheShelfClassifier(C=1.0).fit(X[:3], y[:3]).score(X[:3], y[:3]) == 1
    with pytest.raises(ValueError, match="NaN"):
        OffTheShelfClassifier().fit(np.where(X > 2, np.nan, X), y)
    with pytest.raises(ValueError, match="11 features"):
        OffTheShelfClassifier(C=1.0).fit(X, y).predict(X[:, :, 1:])


# --- retrieval


@given(
    seed=st.integers(0, 1000),
    levels_ref=st.sampled_from([1, 2, 3]),
    levels_query=st.sampled_from([1, 2, 3]),
    count=st.integers(1, 6),
)
@settings(max_examples=20, deadline=None)
def test_distances_equal_the_definition(seed, levels_ref, levels_query, count):
    rng = np.random.default_rng(seed)
    references, queries = rng.normal(size=(count, 14, 5)), rng.normal(size=(3, 14, 5))
    index = PatchRetrieval(levels_ref=levels_ref, levels_query=levels_query).fit(references)
    used = {1: 1, 2: 5, 3: 14}
    expected = naive_patch_distances(queries[:, : used[levels_query]], references[:, : used[levels_ref]])
    np.testing.assert_allclose(index.distances(queries), expected, atol=1e-7)


def test_one_level_is_plain_ranking_by_distance():
    rng = np.random.default_rng(0)
    references, queries = rng.normal(size=(30, 5)), rng.normal(size=(4, 5))
    distances, ranks = PatchRetrieval(levels_ref=1, levels_query=1).fit(references).search(queries)
    plain = np.linalg.norm(queries[:, None] - references, axis=2)
    np.testing.assert_array_equal(ranks, plain.argsort(axis=1))
    np.testing.assert_allclose(distances, np.sort(plain, axis=1))
    nearest = PatchRetrieval(levels_ref=1, levels_query=1).fit(references).search(queries, k=3)[1]
    np.testing.assert_array_equal(nearest, ranks[:, :3])


def test_an_image_is_nearest_to_itself_and_more_patches_never_hurt():
    X = np.random.default_rng(1).normal(size=(6, 30, 4))
    own = PatchRetrieval().fit(X).distances(X)
    np.testing.assert_allclose(np.diag(own), 0, atol=1e-7)  # the square root of rounding at 1e-15
    for few, many in ((1, 2), (2, 3), (3, 4)):
        less, more = (PatchRetrieval(levels_ref=h).fit(X).distances(X) for h in (few, many))
        assert (more <= less + 1e-7).all()
    everything = PatchRetrieval(levels_ref=None, levels_query=None).fit(X).distances(X)
    np.testing.assert_allclose(everything, naive_patch_distances(X, X), atol=1e-7)


def test_clutter_costs_the_query_and_not_the_reference():
    clean, clutter = np.zeros((1, 5, 2)), np.zeros((1, 5, 2))
    clutter[0, 4] = [3, 4]
    both = PatchRetrieval(levels_ref=2, levels_query=2)
    assert both.fit(clutter).distances(clean) == 0
    assert both.fit(clean).distances(clutter) == 1  # (0 + 0 + 0 + 0 + 5) / 5


def test_the_retrieval_pipeline_ends_in_squared_unit_vectors():
    X = np.random.default_rng(2).normal(size=(50, 8))
    features = make_pipeline(Normalizer(), PCAWhitener(n_components=4), SignedPower(p=2)).fit_transform(X)
    np.testing.assert_allclose(np.abs(features).sum(axis=1), 1)


def test_bad_retrieval_is_named():
    X = np.random.default_rng(0).normal(size=(4, 14, 3))
    with pytest.raises(ValueError, match="levels_ref is 4, which needs 30 patches an image; got 14"):
        PatchRetrieval().fit(X)
    with pytest.raises(ValueError, match="levels_query is 0; it must be at least 1"):
        PatchRetrieval(levels_ref=3, levels_query=0).fit(X).distances(X)
    with pytest.raises(ValueError, match="k is 5; with 4 references it must be 1 to 4"):
        PatchRetrieval(levels_ref=3).fit(X).search(X, k=5)
    with pytest.raises(ValueError, match="2 features"):
        PatchRetrieval(levels_ref=3).fit(X).distances(X[:, :, :2])


@given(seed=st.integers(0, 1000), count=st.integers(2, 15))
@settings(max_examples=25, deadline=None)
def test_average_precision_equals_scikit_learns(seed, count):
    rng = np.random.default_rng(seed)
    scores, relevant = rng.random((4, count)), rng.random((4, count)) < 0.4
    relevant[np.arange(4), rng.integers(count, size=4)] = True
    expected = np.mean([average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)])
    assert mean_average_precision((-scores).argsort(axis=1), relevant) == pytest.approx(expected)


def test_average_precision_by_hand():
    relevant = np.array([[True, False, True, False]])
    assert mean_average_precision([[0, 1, 2, 3]], relevant) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision([[0, 1]], relevant) == pytest.approx(1 / 2)  # the second answer is not found
    # Without reference 1 the answers are first and second; without reference 0 the only answer is second.
    assert mean_average_precision([[0, 1, 2, 3]], relevant, [[False, True, False, False]]) == 1
    assert mean_average_precision([[0, 1, 2, 3]], relevant, [[True, False, False, False]]) == 1 / 2


@pytest.mark.parametrize(
    ("ranks", "relevant", "message"),
    [
        ([[0, 1]], [[True, False], [True, False]], r"do not fit; got \(1, 2\), \(2, 2\)"),
        ([[0, 2]], [[True, False]], "indices from 0 to 1"),
        ([[1, 1]], [[True, False]], "names a reference twice"),
        ([[0, 1]], [[False, False]], "query 0 has no relevant reference"),
    ],
)
def test_bad_rankings_are_named(ranks, relevant, message):
    with pytest.raises(ValueError, match=message):
        mean_average_precision(ranks, relevant)
