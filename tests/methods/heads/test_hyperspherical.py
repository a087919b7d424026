"""The normalised softmax loss, imprinting, prototypes and the novel-class protocol."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from workingpapers.methods.heads.hyperspherical import (
    HypersphericalClassifier,
    NormalizedLinear,
    NormalizedSoftmaxLoss,
    PrototypeClassifier,
    evaluate_novel,
)


@parametrize_with_checks(
    [
        HypersphericalClassifier(learning_rate=1e-2),  # the checks' few hundred rows make few steps
        PrototypeClassifier(),
        PrototypeClassifier(metric="euclidean"),
        PrototypeClassifier(method="knn"),
        PrototypeClassifier(metric="euclidean", method="knn", n_neighbors=3),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def loss_and_batch(seed=0, classes=6, n=8, batch=10, **options):
    torch.manual_seed(seed)
    loss = NormalizedSoftmaxLoss(classes, n, **options).double()
    return loss, torch.randn(batch, n, dtype=torch.float64), torch.randint(classes, (batch,))


# The loss and its layer


@given(
    seed=st.integers(0, 99), classes=st.integers(2, 9), n=st.integers(1, 9), temperature=st.sampled_from([0.05, 0.5, 1])
)
@settings(max_examples=25, deadline=None)
def test_the_loss_equals_its_definition_whatever_the_lengths(seed, classes, n, temperature):
    loss, features, labels = loss_and_batch(seed, classes, n, temperature=temperature)
    cosine = F.normalize(features) @ F.normalize(loss.classifier.weight).T
    value = loss(features, labels)
    expected = -torch.log_softmax(cosine / temperature, dim=1)[torch.arange(10), labels].mean()
    # 1 / sigma is kept as a float32 logarithm: 20 comes back with a relative error of 1e-7.
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    loss.classifier.weight.data *= torch.rand(classes, 1, dtype=torch.float64) * 10 + 0.1
    torch.testing.assert_close(loss(features * torch.logspace(-3, 3, 10)[:, None], labels), value)


def test_the_gradient_is_orthogonal_to_each_embedding_and_weight():
    loss, features, labels = loss_and_batch()
    features.requires_grad_()
    loss(features, labels).backward()
    weight = loss.classifier.weight
    assert features.grad.norm() > 0.1
    assert (features.grad * features).sum(dim=1).abs().max() < 1e-12
    assert (weight.grad * weight).sum(dim=1).abs().max() < 1e-12


def test_gradients_with_margin_and_learned_scale():
    loss, features, labels = loss_and_batch(batch=4, temperature=0.5, margin=0.3, label_smoothing=0.1)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), features)
    layer = NormalizedLinear(8, 3, learn_scale=True).double()

    def logits(x, weight, log_scale):
        return torch.func.functional_call(layer, {"weight": weight, "log_scale": log_scale}, (x,))

    assert torch.autograd.gradcheck(logits, (features, layer.weight, layer.log_scale))


def test_the_loss_equals_pytorch_metric_learning():
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    loss, features, labels = loss_and_batch()
    peer = peers.NormalizedSoftmaxLoss(6, 8, temperature=0.05).double()
    peer.W.data = loss.classifier.weight.data.T.clone()
    torch.testing.assert_close(loss(features, labels), peer(features, labels), rtol=1e-6, atol=1e-6)
    margin, _, _ = loss_and_batch(margin=0.35)
    cosface = peers.CosFaceLoss(6, 8, margin=0.35, scale=20).double()
    cosface.W.data = margin.classifier.weight.data.T.clone()
    torch.testing.assert_close(margin(features, labels), cosface(features, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_aligned_simplex_weights_reach_the_lower_bound(classes, temperature):
    loss, _, _ = loss_and_batch(classes=classes, n=classes, temperature=temperature)
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    loss.classifier.weight.data = simplex
    bound = math.log1p((classes - 1) * math.exp(-classes / ((classes - 1) * temperature)))
    value = loss(simplex, torch.arange(classes)).item()
    # The bound is as small as 1e-17, where the difference of two logits of 20 leaves rounding of 1e-15.
    assert value == pytest.approx(bound, rel=1e-5, abs=1e-14)
    assert loss(simplex + 0.1 * torch.randn_like(simplex), torch.arange(classes)).item() > value


def test_label_smoothing_spreads_the_target():
    loss, features, labels = loss_and_batch(label_smoothing=0.3)
    target = 0.7 * F.one_hot(labels, 6) + 0.3 / 6
    expected = -(target * loss.classifier(features).log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss(features, labels), expected)


def test_the_scale_is_fixed_or_learned():
    fixed, learned = NormalizedLinear(4, 3), NormalizedLinear(4, 3, scale=5.0, learn_scale=True)
    assert {name for name, _ in fixed.named_parameters()} == {"weight"}
    assert {name for name, _ in learned.named_parameters()} == {"weight", "log_scale"}
    aligned = learned.weight.detach() * 7
    torch.testing.assert_close(learned(aligned).diagonal(), torch.full((3,), 5.0))
    assert learned(aligned.half()).dtype == torch.float32
    assert set(fixed.state_dict()) == {"weight", "log_scale"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_embeddings_have_zero_logits_and_finite_gradients(dtype):
    layer = NormalizedLinear(4, 3).to(dtype)
    zero = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
    logits = layer(zero)
    assert (logits == 0).all()
    logits.sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_imprinting_writes_spherical_centroids():
    layer = NormalizedLinear(5, 3, scale=20)
    old = layer.weight.detach().clone()
    embeddings, labels = torch.randn(7, 5) * 9, torch.tensor([7, 40, 7, 40, 40, 7, 9])
    classes = layer.imprint(embeddings, labels)
    assert classes.tolist() == [7, 9, 40]
    assert torch.equal(layer.weight[:3], old)
    expected = torch.stack([F.normalize(F.normalize(embeddings[labels == c]).mean(dim=0), dim=0) for c in (7, 9, 40)])
    torch.testing.assert_close(layer.weight.detach()[3:], expected)
    logits = layer(embeddings)
    assert logits.shape == (7, 6)
    assert logits[6].argmax() == 4  # the class of one image: that image has the largest possible logit
    assert logits[6, 4].item() == pytest.approx(20)
    assert layer.weight.requires_grad
    frozen = layer.requires_grad_(False)
    frozen.imprint(embeddings, labels)
    assert not frozen.weight.requires_grad


# Prototypes


def clusters(seed=0, classes=4, n=6, m=40):
    rng = np.random.default_rng(seed)
    y = np.arange(m) % classes
    return rng.normal(size=(classes, n))[y] * 2 + rng.normal(size=(m, n)), y


def test_centroids_are_means_of_unit_vectors_made_unit():
    X, y = clusters()
    model = PrototypeClassifier().fit(X, y)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for c in range(4):
        mean = unit[y == c].mean(axis=0)
        np.testing.assert_allclose(model.centroids_[c], mean / np.linalg.norm(mean))
    queries = np.random.default_rng(1).normal(size=(50, 6))
    np.testing.assert_array_equal(model.predict(queries), (queries @ model.centroids_.T).argmax(axis=1))
    np.testing.assert_array_equal(
        PrototypeClassifier(metric="euclidean").fit(X, y).predict(queries), NearestCentroid().fit(X, y).predict(queries)
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbors_equal_scikit_learn(metric):
    X, y = clusters()
    queries = np.random.default_rng(1).normal(size=(50, 6))
    peer = KNeighborsClassifier(3, metric=metric).fit(X, y)
    model = PrototypeClassifier(metric=metric, method="knn", n_neighbors=3).fit(X, y)
    np.testing.assert_array_equal(model.predict(queries), peer.predict(queries))
    all_vote = PrototypeClassifier(metric=metric, method="knn", n_neighbors=99).fit(X, y)  # 40 supports, 10 a class
    assert len(set(all_vote.predict(queries))) == 1


@pytest.mark.parametrize("method", ["centroid", "knn"])
def test_predictions_do_not_change_under_rotation_or_rescaling(method):
    X, y = clusters()
    queries = np.random.default_rng(1).normal(size=(50, 6))
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    plain = PrototypeClassifier(method=method).fit(X, y).predict(queries)
    moved = PrototypeClassifier(method=method).fit(3 * X @ rotation, y).predict(0.1 * queries @ rotation)
    np.testing.assert_array_equal(moved, plain)


def test_metrics_agree_on_unit_vectors_and_unit_centroids():
    X, _ = clusters(m=8)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    queries = np.random.default_rng(1).normal(size=(50, 6))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    one_shot = np.arange(8)  # the centroid of one unit vector is a unit vector
    cosine, euclidean = (PrototypeClassifier(metric=m).fit(unit, one_shot) for m in ("cosine", "euclidean"))
    np.testing.assert_array_equal(cosine.predict(queries), euclidean.predict(queries))


@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), method=st.sampled_from(["centroid", "knn"]))
@settings(max_examples=20, deadline=None)
def test_any_split_into_batches_gives_the_fit_of_the_whole(cuts, method):
    X, y = clusters()
    names = np.array(["d", "a", "cat", "b"])[y]
    order = np.argsort(y, kind="stable")  # classes arrive one after the other, as novel ones do
    whole, parts = PrototypeClassifier(method=method).fit(X, names), PrototypeClassifier(method=method)
    for rows in np.split(order, sorted(cuts)):
        parts.partial_fit(X[rows], names[rows])
    queries = np.random.default_rng(1).normal(size=(50, 6))
    np.testing.assert_array_equal(parts.classes_, ["a", "b", "cat", "d"])
    np.testing.assert_array_equal(parts.class_count_, whole.class_count_)
    np.testing.assert_array_equal(parts.predict(queries), whole.predict(queries))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (PrototypeClassifier, {"metric": "l1"}),
        (lambda: PrototypeClassifier(method="knn"), {"n_neighbors": 0}),
    ],
)
def test_a_fit_that_fails_leaves_nothing_fitted(make, options):
    X, y = clusters()
    model = make().fit(X, y)
    with pytest.raises(ValueError, match=next(iter(options))):
        model.set_params(**options).fit(X, y + 10)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_a_batch_that_is_refused_adds_no_neighbors():
    X, y = clusters()
    model = PrototypeClassifier(method="knn").fit(X, y)
    with pytest.raises(ValueError, match="n_neighbors"):
        model.set_params(n_neighbors=0).partial_fit(X, y)
    assert len(model.support_) == len(X)


# The protocol


def test_scores_of_a_perfect_and_of_a_collapsed_embedding():
    y = np.repeat(np.arange(6), 8)
    perfect = np.eye(6)[y]
    assert evaluate_novel(perfect, y, [4, 5], episodes=2) == {"novel": 1.0}
    joint = evaluate_novel(perfect, y, [4, 5], scenario="joint", episodes=2)
    assert joint == {"novel": 1.0, "seen": 1.0, "harmonic_mean": 1.0}
    collapsed = perfect.copy()
    collapsed[y >= 4] = np.eye(6)[0]  # novel images look like class 0, which is smaller and wins the tie
    joint = evaluate_novel(collapsed, y, [4, 5], scenario="joint", episodes=2)
    assert joint == {"novel": 0.0, "seen": 1.0, "harmonic_mean": 0.0}


def test_scores_equal_a_loop_over_episodes():
    X, y = clusters(m=60)
    X += np.random.default_rng(5).normal(size=X.shape) * 2  # hard enough to err
    scores = evaluate_novel(X, y, [1, 3], scenario="joint", shots=2, episodes=3, random_state=7)
    rng, expected = np.random.RandomState(7), []
    for _ in range(3):
        support = [rng.choice(np.flatnonzero(y == c), 2, replace=False) for c in range(4)]
        queries = np.setdiff1d(np.arange(60), support)
        unit = X / np.linalg.norm(X, axis=1, keepdims=True)
        means = np.stack([unit[rows].mean(axis=0) for rows in support])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        right = (unit[queries] @ means.T).argmax(axis=1) == y[queries]
        novel, seen = right[y[queries] % 2 == 1].mean(), right[y[queries] % 2 == 0].mean()
        expected.append([novel, seen, 2 * novel * seen / (novel + seen)])
    np.testing.assert_allclose([scores[k] for k in ("novel", "seen", "harmonic_mean")], np.mean(expected, axis=0))
    assert 0.3 < scores["novel"] < 0.99
    disjoint = evaluate_novel(X, y, [1, 3], shots=2, episodes=3, random_state=7)
    assert disjoint["novel"] > scores["novel"]  # fewer candidates
    neighbors = PrototypeClassifier(method="knn")
    assert evaluate_novel(X, y, [1, 3], shots=2, random_state=7, classifier=neighbors) != evaluate_novel(
        X, y, [1, 3], shots=2, random_state=7
    )


# The classifier


def test_classifier_learns_digits_and_embeds_on_the_sphere():
    X, y = load_digits(return_X_y=True)
    classifier = HypersphericalClassifier(random_state=0).fit(X[:1200], y[:1200])
    assert classifier.score(X[1200:], y[1200:]) > 0.885  # 0.90; cosine prototypes without training 0.88
    embeddings = classifier.transform(X[1200:])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    head = classifier.module_[1]
    logits = 20 * embeddings @ F.normalize(head.weight).detach().cpu().numpy().T
    np.testing.assert_allclose(logits, classifier.decision_function(X[1200:]), atol=1e-4)
    assert len(classifier.get_feature_names_out()) == classifier.transform(X[:2]).shape[1]
    with pytest.raises(NotFittedError):
        HypersphericalClassifier().get_feature_names_out()


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormalizedLinear(0, 3), "sizes must be 1 or more; got in_features=0"),
        (lambda: NormalizedLinear(3, 3, scale=0), "scale is 0"),
        (lambda: NormalizedSoftmaxLoss(3, 3, temperature=0.0), "temperature is 0.0"),
        (lambda: NormalizedSoftmaxLoss(3, 3, margin=-0.1), "margin is -0.1"),
        (lambda: NormalizedSoftmaxLoss(3, 3, label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: NormalizedLinear(3, 2)(torch.ones(2, 4)), r"features are \(2, 4\); the last axis must be 3"),
        (lambda: HypersphericalClassifier(temperature=-1).fit(*clusters()), "temperature is -1"),
        (lambda: HypersphericalClassifier(embedding_dim=0).fit(*clusters()), "embedding_dim is 0"),
        (lambda: HypersphericalClassifier().fit(np.ones((2, 3, 4)), [0, 1]), "X has 3 axes; .* pool tokens first"),
        (lambda: PrototypeClassifier(metric="l1").fit(*clusters()), "metric is 'l1'; allowed: 'cosine', 'euclidean'"),
        (lambda: PrototypeClassifier(method="svm").fit(*clusters()), "method is 'svm'; allowed: 'centroid', 'knn'"),
        (lambda: PrototypeClassifier(method="knn", n_neighbors=0).fit(*clusters()), "'n_neighbors' .* Got 0"),
        (lambda: PrototypeClassifier().fit(np.ones((3, 2)), [1, 1, 1]), "at least two classes"),
        (lambda: PrototypeClassifier().fit([[1.0, 0], [-2, 0], [0, 1]], [5, 5, 6]), r"sum to zero.*\[5\]"),
        (lambda: PrototypeClassifier().partial_fit([[1.0]], [3], classes=[1]), r"labels that classes does not: \[3\]"),
    ],
)
def test_bad_options_and_features_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (
            torch.ones(2, 4),
            torch.tensor([0, 1]),
            r"embeddings \(2, 4\) and labels \(2,\) do not fit; allowed: \(m, 3\)",
        ),
        (torch.ones(2, 3), torch.tensor([0]), r"labels \(1,\) do not fit"),
        (torch.ones(0, 3), torch.tensor([]), "0 sample"),
        (torch.full((1, 3), float("nan")), torch.tensor([0]), "NaN"),
        (torch.zeros(1, 3), torch.tensor([4]), r"no centroid: \[4\]"),
    ],
)
def test_bad_imprints_are_refused_and_change_nothing(embeddings, labels, message):
    layer = NormalizedLinear(3, 2)
    with pytest.raises(ValueError, match=message):
        layer.imprint(embeddings, labels)
    assert layer.weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"novel": [9]}, r"labels that don't occur: \[9\]"),
        ({"novel": [1]}, r"the disjoint scenario needs more novel classes; got \[1\]"),
        ({"novel": [], "scenario": "joint"}, r"needs more novel classes; got \[\]"),
        ({"novel": [0, 1, 2, 3], "scenario": "joint"}, "every label is novel"),
        ({"novel": [1, 2], "scenario": "open"}, "scenario is 'open'; allowed: 'disjoint', 'joint'"),
        ({"novel": [1, 2], "shots": 10}, r"10 examples or fewer leave no query beside 10 shots: \[1, 2\]"),
        ({"novel": [1, 2], "shots": 0}, "shots=0"),
        ({"novel": [1, 2], "episodes": 0}, "episodes=0"),
    ],
)
def test_bad_protocols_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_novel(*clusters(), **options)
