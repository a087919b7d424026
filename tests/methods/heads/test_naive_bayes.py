"""The generative probe against its definition, its limits and its optimality on its own model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.methods.heads.naive_bayes import TiedGaussianNB, naive_log_posterior


@parametrize_with_checks([TiedGaussianNB(), TiedGaussianNB(smoothing="relative")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def sample(seed, m=60, n=5, classes=3):
    rng = np.random.default_rng(seed)
    y = np.arange(m) % classes
    return rng.normal(size=(m, n)) * rng.uniform(0.5, 2, n) + rng.normal(size=(classes, n))[y], y


@given(seed=st.integers(0, 1000), classes=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_posteriors_equal_the_definition(seed, classes):
    X, y = sample(seed, classes=classes)
    queries = X[:10] + 0.3
    fitted = TiedGaussianNB().fit(X, y).predict_log_proba(queries)
    # The expanded quadratic loses a few digits against the centred one: 1e-9 in float64.
    np.testing.assert_allclose(fitted, naive_log_posterior(X, y, queries), atol=1e-9)


def test_scores_are_linear():
    X, y = sample(0)
    probe = TiedGaussianNB().fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), X @ probe.coef_.T + probe.intercept_)
    layer = probe.to_linear().double()  # its weights went through float32
    scores = layer(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(scores, probe.decision_function(X), rtol=1e-5, atol=1e-5)


def test_equals_lda_with_a_diagonal_covariance():
    X, y = sample(1, n=2)
    # Make the pooled covariance diagonal, so that full LDA and the naive classifier are the same model.
    centred = X - np.stack([X[y == k].mean(axis=0) for k in range(3)])[y]
    _, axes = np.linalg.eigh(centred.T @ centred)
    X = X @ axes
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    probe = TiedGaussianNB(var_smoothing=0).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), lda.predict_proba(X), atol=1e-10)


def test_equals_nearest_centroid_when_the_variance_is_constant():
    X, y = sample(2)
    centroids = NearestCentroid().fit(X, y)
    probe = TiedGaussianNB(var_smoothing=1e9, priors=np.full(3, 1 / 3)).fit(X, y)  # smoothing drowns the variances
    np.testing.assert_array_equal(probe.predict(X), centroids.predict(X))


def test_invariant_to_affine_maps_of_each_feature():
    X, y = sample(3)
    scale, shift = np.array([1e-2, 1, 10, 100, 3]), np.arange(5)
    plain = TiedGaussianNB(var_smoothing=0).fit(X, y).predict_proba(X)
    mapped = TiedGaussianNB(var_smoothing=0).fit(X * scale + shift, y).predict_proba(X * scale + shift)
    np.testing.assert_allclose(mapped, plain, atol=1e-9)


@given(cuts=st.lists(st.integers(1, 59), max_size=6, unique=True))
@settings(max_examples=25, deadline=None)
def test_any_split_into_batches_gives_the_fit_of_the_whole(cuts):
    X, y = sample(4)
    X = X + 1e3  # a large offset shows a missing mean-shift term
    whole, parts = TiedGaussianNB().fit(X, y), TiedGaussianNB()
    for rows in np.split(np.arange(60), sorted(cuts)):
        parts.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    np.testing.assert_allclose(parts.theta_, whole.theta_, rtol=1e-10)
    np.testing.assert_allclose(parts.var_, whole.var_, rtol=1e-10)


def test_a_weight_of_two_is_a_row_twice():
    X, y = sample(5)
    weight = np.where(np.arange(60) < 20, 2, 1)
    doubled = TiedGaussianNB().fit(np.r_[X, X[:20]], np.r_[y, y[:20]])
    weighted = TiedGaussianNB().fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(weighted.coef_, doubled.coef_, rtol=1e-10)


def test_weights_approach_the_optimum_at_the_square_root_rate():
    n, errors = 10, []
    mean, variance = np.linspace(-0.5, 0.5, n), np.linspace(0.5, 2, n)
    for m in (2_000, 128_000):
        repeats = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            y = np.arange(m) % 2
            X = rng.normal(size=(m, n)) * np.sqrt(variance) + np.where(y[:, None] == 1, mean, -mean)
            repeats.append(np.abs(TiedGaussianNB().fit(X, y).coef_[0] - 2 * mean / variance).mean())
        errors.append(np.mean(repeats))
    # 64 times the data: an eighth of the error, up to sampling noise of five repeats.
    assert 5 < errors[0] / errors[1] < 13


def test_one_example_of_each_class_and_dead_features():
    probe = TiedGaussianNB().fit([[0.0, 0.0, 1.0], [0.0, 5.0, 1.0]], ["a", "b"])
    assert np.isfinite(probe.coef_).all()
    assert list(probe.predict([[0.0, 0.1, 1.0], [0.0, 4.0, 1.0]])) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": "both"}, "smoothing is 'both'; allowed: 'absolute', 'relative'"),
        ({"var_smoothing": -1}, "var_smoothing is -1"),
        ({"priors": [0.5, 0.5]}, "priors must be 3 probabilities"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TiedGaussianNB(**options).fit(*sample(0))


def test_a_fit_that_fails_leaves_nothing_fitted():
    X, y = sample(0)
    model = TiedGaussianNB().fit(X, y)
    with pytest.raises(ValueError, match="priors must be 3 probabilities"):
        model.set_params(priors=[0.5, 0.6, 0.1]).fit(X, y + 10)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_bad_batches_are_named():
    X, y = sample(0)
    with pytest.raises(ValueError, match="first call of partial_fit needs `classes`"):
        TiedGaussianNB().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"labels that classes does not: \[2\]"):
        TiedGaussianNB().partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"at least two classes; got one class: 0\.0$"):
        TiedGaussianNB().fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        TiedGaussianNB().fit(X, X[:, 0])
