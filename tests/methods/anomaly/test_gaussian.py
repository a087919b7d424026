"""The Gaussian detector against scikit-learn's covariances, the laws of its distance, and its working point."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.methods.anomaly.gaussian import (
    GaussianAnomalyDetector,
    _Gaussian,
    _kept,
    naive_mahalanobis,
)


@parametrize_with_checks(
    [
        GaussianAnomalyDetector(fpr=0.1),
        GaussianAnomalyDetector(covariance="oas", fpr=0.1),
        GaussianAnomalyDetector(covariance="diag", fpr=0.1),
        GaussianAnomalyDetector(reduction="pca", fpr=0.1),
        GaussianAnomalyDetector(reduction="npca", fpr=0.1),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def correlated(seed, n, channels, latent=3):
    """Rows with a few strong directions, unequal scales and an offset, as pooled features have."""
    mixing = np.random.default_rng(channels)  # the same for every seed: train and test share a distribution
    loadings, scale = mixing.normal(size=(latent, channels)), mixing.uniform(0.1, 2, channels)
    rng = np.random.default_rng(seed)
    return (3 * rng.normal(size=(n, latent)) @ loadings + rng.normal(size=(n, channels))) * scale + 5


# The distance


@given(
    seed=st.integers(0, 1000), n=st.integers(3, 60), channels=st.integers(1, 60), kind=st.sampled_from(["lw", "oas"])
)
@settings(max_examples=60, deadline=None)
def test_distances_equal_the_definition_for_more_rows_or_more_channels(seed, n, channels, kind):
    train, queries = correlated(seed, n, channels), correlated(seed + 1, 20, channels)
    covariance, reference = {"lw": ("ledoit_wolf", LedoitWolf()), "oas": ("oas", OAS())}[kind]
    detector = GaussianAnomalyDetector(covariance=covariance).fit(train)
    # 1e-6: the reference inverts a covariance whose condition number reaches 1e6 or so at n = 3.
    naive = naive_mahalanobis(train, queries, covariance)
    np.testing.assert_allclose(detector.anomaly_score(queries), naive, rtol=1e-6)
    np.testing.assert_allclose(
        detector.anomaly_score(queries) ** 2, reference.fit(train).mahalanobis(queries), rtol=1e-6
    )
    # Far outside the span of the rows as well.
    far = queries + 100 * np.random.default_rng(seed).normal(size=queries.shape)
    np.testing.assert_allclose(detector.anomaly_score(far), naive_mahalanobis(train, far, covariance), rtol=1e-6)


def test_wide_features_equal_ledoit_wolf():
    train, queries = correlated(0, 80, 400), correlated(1, 30, 400)
    squared = GaussianAnomalyDetector().fit(train).anomaly_score(queries) ** 2
    np.testing.assert_allclose(squared, LedoitWolf().fit(train).mahalanobis(queries), rtol=1e-6)


def test_identity_is_euclidean_and_diag_is_standardised_euclidean():
    train, queries = correlated(2, 50, 6), correlated(3, 10, 6)
    centred = queries - train.mean(axis=0)
    euclidean = GaussianAnomalyDetector(covariance="identity").fit(train).anomaly_score(queries)
    np.testing.assert_allclose(euclidean, np.linalg.norm(centred, axis=1), rtol=1e-12)
    standardised = GaussianAnomalyDetector(covariance="diag").fit(train).anomaly_score(queries)
    np.testing.assert_allclose(standardised, np.linalg.norm(centred / train.std(axis=0), axis=1), rtol=1e-12)


@given(seed=st.integers(0, 1000), channels=st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_empirical_distances_are_invariant_to_affine_maps(seed, channels):
    rng = np.random.default_rng(seed)
    train, queries = correlated(seed, 40, channels), correlated(seed + 1, 10, channels)
    turn, _ = np.linalg.qr(rng.normal(size=(channels, channels)))
    matrix, shift = turn * rng.uniform(0.01, 100, channels), rng.normal(size=channels)
    plain = GaussianAnomalyDetector(covariance="empirical").fit(train).anomaly_score(queries)
    mapped = GaussianAnomalyDetector(covariance="empirical").fit(train @ matrix + shift)
    # Covariances square the condition number (up to 1e4 x that of the data): 1e-6 of 1e-16 is left.
    np.testing.assert_allclose(mapped.anomaly_score(queries @ matrix + shift), plain, rtol=1e-6)


@given(seed=st.integers(0, 1000), channels=st.integers(1, 20), extra=st.integers(1, 50))
@settings(max_examples=25, deadline=None)
def test_mean_squared_distance_of_the_fitting_set_is_the_number_of_channels(seed, channels, extra):
    train = correlated(seed, channels + extra, channels)
    squared = GaussianAnomalyDetector(covariance="empirical").fit(train).anomaly_score(train) ** 2
    np.testing.assert_allclose(squared.mean(), channels, rtol=1e-8)


def test_offset_of_the_features_costs_no_digits():
    train, queries = correlated(4, 60, 10), correlated(5, 10, 10)
    plain = GaussianAnomalyDetector().fit(train).anomaly_score(queries)
    moved = GaussianAnomalyDetector().fit(train + 2.0**20).anomaly_score(queries + 2.0**20)
    np.testing.assert_allclose(moved, plain, rtol=1e-7)  # the features themselves lose 2^20 / 2^52


# Reductions


@given(variances=st.lists(st.floats(0.01, 100), min_size=1, max_size=12), threshold=st.floats(0.05, 0.99))
@settings(max_examples=100, deadline=None)
def test_pca_and_npca_overlap_in_two_components_and_cover_all(variances, threshold):
    falling = np.sort(variances)[::-1]
    share = np.cumsum(falling) / falling.sum()
    components = np.arange(len(falling))
    pca, npca = components[_kept(falling, "pca", threshold)], components[_kept(falling, "npca", threshold)]
    j = int(pca[-1])
    assert share[j] > threshold
    assert j == 0 or share[j - 1] <= threshold
    assert np.intersect1d(pca, npca).tolist() == [j - 1, j][int(j == 0) :]
    assert np.union1d(pca, npca).tolist() == components.tolist()


@pytest.mark.parametrize("shape", [(200, 30), (25, 60)])
@pytest.mark.parametrize("reduction", ["pca", "npca"])
def test_reduction_is_a_gaussian_on_principal_components(shape, reduction):
    train, queries = correlated(6, *shape), correlated(7, 15, shape[1])
    detector = GaussianAnomalyDetector(reduction=reduction, variance_threshold=0.9).fit(train)
    pca = PCA(min(shape[0] - 1, shape[1]), svd_solver="full").fit(train)  # the last of n components is arbitrary
    kept = _kept(pca.explained_variance_, reduction, 0.9)
    reduced, moved = pca.transform(train)[:, kept], pca.transform(queries)[:, kept]
    np.testing.assert_allclose(detector.anomaly_score(queries), naive_mahalanobis(reduced, moved), rtol=1e-8)
    assert detector.levels_[0].dimensions == reduced.shape[1]


def test_npca_ignores_the_null_space_and_pca_the_small_directions():
    train = correlated(8, 20, 50)
    _, _, directions = np.linalg.svd(train - train.mean(axis=0))
    mean = train.mean(axis=0, keepdims=True)
    for reduction, ignored, seen in (
        ("npca", directions[19:], directions[15]),
        ("pca", directions[15:], directions[0]),
    ):
        detector = GaussianAnomalyDetector(reduction=reduction, variance_threshold=0.9).fit(train)
        np.testing.assert_allclose(detector.anomaly_score(mean + ignored), 0, atol=1e-10)
        assert detector.anomaly_score(mean + seen) > 1e-3


def test_anomalies_in_small_directions_are_found_by_the_full_covariance_and_npca():
    """The paper's point on a toy: defects in the directions that normal data hardly use."""
    train, normal = correlated(9, 300, 30), correlated(10, 200, 30)
    _, deviations, directions = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)
    defect = np.random.default_rng(11).normal(size=(200, 10)) @ directions[-10:] * 6 * deviations[-1] / np.sqrt(300)
    labels = np.repeat([0, 1], 200)

    def auroc(**options):
        scores = GaussianAnomalyDetector(**options).fit(train).anomaly_score(np.r_[normal, normal + defect])
        return roc_auc_score(labels, scores)

    full, npca, pca = auroc(), auroc(reduction="npca"), auroc(reduction="pca", variance_threshold=0.9)
    diag, euclidean = auroc(covariance="diag"), auroc(covariance="identity")
    assert min(full, npca) > 0.8 > 0.7 > diag > euclidean
    assert max(pca, euclidean) < 0.55


# Levels


def test_levels_are_averaged_after_the_square_root():
    levels = {"stem": correlated(12, 60, 4), "deep": correlated(13, 60, 9)}
    queries = {"deep": correlated(14, 7, 9), "stem": correlated(15, 7, 4)}  # another order
    detector = GaussianAnomalyDetector().fit(levels)
    single = {name: GaussianAnomalyDetector().fit(levels[name]).anomaly_score(queries[name]) for name in levels}
    np.testing.assert_allclose(detector.level_scores(queries), np.stack([single["stem"], single["deep"]], axis=1))
    np.testing.assert_allclose(detector.score_samples(queries), -(single["stem"] + single["deep"]) / 2)
    as_list = GaussianAnomalyDetector().fit([torch.from_numpy(levels["stem"]).float(), levels["deep"]])
    assert list(as_list.levels_) == [0, 1]
    scores = as_list.anomaly_score([queries["stem"], queries["deep"]])
    np.testing.assert_allclose(scores, detector.anomaly_score(queries), rtol=1e-5)  # one level came in float32
    assert detector.n_features_in_ == as_list.n_features_in_ == 13


def test_a_list_of_rows_is_one_matrix():
    rows = correlated(16, 20, 3)
    np.testing.assert_array_equal(
        GaussianAnomalyDetector().fit(rows.tolist()).anomaly_score(rows),
        GaussianAnomalyDetector().fit(rows).anomaly_score(rows),
    )


# The working point


def known_gaussian(channels, levels=1):
    """A detector that knows the distribution: normal with a random covariance; and a sampler of it."""
    rng = np.random.default_rng(channels)
    factor = np.linalg.cholesky(np.cov(rng.normal(size=(channels, 3 * channels))) + 0.1 * np.eye(channels))
    detector = GaussianAnomalyDetector().fit([rng.normal(size=(9, channels))] * levels)
    detector.levels_ = dict.fromkeys(detector.levels_, _Gaussian(np.ones(channels), channels, factor))
    return detector, lambda n: 1 + rng.normal(size=(n, channels)) @ factor.T


@pytest.mark.parametrize("channels", [1, 5, 40])
@pytest.mark.parametrize("fpr", [0.2, 0.01])
def test_known_gaussian_exceeds_the_threshold_at_the_rate_asked_for(channels, fpr):
    detector, sample = known_gaussian(channels)
    exceeding = (detector.anomaly_score([sample(40_000)]) > detector.threshold(fpr)).mean()
    assert abs(exceeding - fpr) < 4 * np.sqrt(fpr * (1 - fpr) / 40_000)  # four binomial standard deviations


def test_threshold_of_the_mean_is_exact_for_levels_that_agree_and_cautious_for_independent_ones():
    detector, sample = known_gaussian(5, levels=3)
    same = sample(40_000)
    assert detector.threshold(0.05) == pytest.approx(detector.threshold(0.05, level=1))
    assert abs((detector.anomaly_score([same] * 3) > detector.threshold(0.05)).mean() - 0.05) < 0.005
    assert (detector.anomaly_score([sample(40_000) for _ in range(3)]) > detector.threshold(0.05)).mean() < 0.02


def test_calibrated_threshold_keeps_the_rate_where_chi_square_does_not():
    train, normal = correlated(17, 60, 40), correlated(18, 40_000, 40)
    detector = GaussianAnomalyDetector(covariance="empirical", fpr=0.05).fit(train)
    assert (detector.predict(normal) == -1).mean() > 0.5  # 60 rows for 40 channels: the model is too sure of itself
    thresholds = [detector.threshold(normals=rows) for rows in normal[:10_000].reshape(100, 100, 40)]
    fresh = detector.anomaly_score(normal[10_000:])
    rates = [(fresh > threshold).mean() for threshold in thresholds]  # rank ceil(101 x 0.95) = 96 of 100
    # Exchangeable scores: 5 / 101 on average; the spread of one rate is about 0.022, of their mean a tenth of it.
    assert abs(np.mean(rates) - 5 / 101) < 0.01
    detector.calibrate(normal[:10_000])
    assert abs((detector.predict(normal[10_000:]) == -1).mean() - 0.05) < 0.01
    assert detector.offset_ == -detector.threshold(normals=normal[:10_000])
    assert detector.fit(train).offset_ == -detector.threshold()  # a new fit forgets the calibration


def test_calibration_of_one_level_and_its_least_number_of_normals():
    detector = GaussianAnomalyDetector().fit([correlated(19, 50, 3), correlated(20, 50, 4)])
    normals = [correlated(21, 99, 3), correlated(22, 99, 4)]
    # 99 rows and 1 %: exactly the largest one.
    assert detector.threshold(0.01, normals=normals) == detector.anomaly_score(normals).max()
    assert detector.threshold(0.01, 1, normals=normals) == detector.level_scores(normals)[:, 1].max()
    with pytest.raises(ValueError, match=r"fpr of 0\.01 needs at least 99 held-out normals; got 98"):
        detector.threshold(0.01, normals=[level[:98] for level in normals])


def test_prediction_is_consistent_with_scores():
    train, queries = correlated(23, 100, 5), 5 + 1.5 * (correlated(24, 50, 5) - 5)
    detector = GaussianAnomalyDetector(fpr=0.1).fit(train)
    decisions = detector.decision_function(queries)
    np.testing.assert_array_equal(decisions, detector.score_samples(queries) - detector.offset_)
    np.testing.assert_array_equal(detector.predict(queries) == -1, detector.anomaly_score(queries) > -detector.offset_)
    assert set(detector.predict(queries)) == {-1, 1}


def test_identity_has_no_threshold_until_it_is_calibrated():
    train = correlated(25, 50, 3)
    detector = GaussianAnomalyDetector(covariance="identity", fpr=0.1).fit(train)
    with pytest.raises(ValueError, match="identity' implies no threshold"):
        detector.predict(train)
    assert (detector.calibrate(train).predict(train) == -1).sum() == 4  # 50 - ceil(51 x 0.9)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"covariance": "full"},
            "covariance is 'full'; allowed: 'ledoit_wolf', 'empirical', 'oas', 'diag', 'identity'",
        ),
        ({"reduction": "ica"}, "reduction is 'ica'; allowed: None, 'pca', 'npca'"),
        ({"variance_threshold": 1.0}, "variance_threshold is 1.0; it must lie between 0 and 1"),
        ({"fpr": 0}, "fpr is 0; it must lie between 0 and 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianAnomalyDetector(**options).fit(correlated(0, 20, 3))


CONSTANT = np.c_[correlated(0, 20, 3), np.full(20, 0.1)]
DEPENDENT = correlated(0, 20, 3) @ np.c_[np.eye(3), [0.3, 0.3, 0.4]]


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        (correlated(0, 20, 20), {"covariance": "empirical"}, "n=20 rows with C=20 channels is singular"),
        (CONSTANT, {"covariance": "empirical"}, "n=20 rows with C=4 channels is singular: 1 of the channels never"),
        (CONSTANT, {"covariance": "diag"}, "1 of the channels never vary"),
        (DEPENDENT, {"covariance": "empirical"}, "a combination of channels never varies"),
        (np.ones((20, 4)), {}, "n=20 rows with C=4 channels is singular"),
        (np.ones((5, 40)), {}, "n=5 rows with C=40 channels is singular: there is nothing to shrink by"),
        (np.ones((5, 40)), {"reduction": "npca"}, "all rows are equal"),
        # Two rows are mirror images about their mean: Ledoit and Wolf's formula sees no noise and shrinks by nothing.
        (correlated(0, 2, 40), {}, "n=2 rows with C=40 channels is singular"),
        (correlated(0, 2, 3), {}, "n=2 rows with C=3 channels is singular"),
    ],
)
def test_singular_covariances_are_refused(train, options, message):
    with pytest.raises(ValueError, match=message):
        GaussianAnomalyDetector(**options).fit(train)


def test_shrinkage_copes_with_constant_and_dependent_channels():
    for train in (CONSTANT, DEPENDENT):
        assert np.isfinite(GaussianAnomalyDetector().fit(train).anomaly_score(train)).all()


@pytest.mark.parametrize("options", [{}, {"covariance": "identity"}, {"reduction": "pca"}])
def test_a_distance_that_overflows_is_no_normal_row(options):
    model = GaussianAnomalyDetector(**options).fit(correlated(0, 60, 4))
    with pytest.raises(ValueError, match="features of row 1 are too large"):
        model.anomaly_score(np.array([[1.0] * 4, [1e160, -1e160, 1e160, 1e160]]))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({}, "same number of rows"),
        ([np.ones((3, 2)), np.ones((4, 2))], r"same number of rows.*\(4, 2\)"),
        ([np.ones((1, 2)), np.ones((1, 2))], "at least 2 to fit"),
        ({"stem": np.full((4, 2), np.nan)}, "level 'stem' contains NaN"),
        ({"stem": np.ones((4, 2, 5, 5))}, "dim 4"),
        (np.ones((4, 2, 5)), "dim 3"),
    ],
)
def test_bad_levels_are_named(levels, message):
    with pytest.raises(ValueError, match=message):
        GaussianAnomalyDetector().fit(levels)


def test_queries_that_do_not_fit_are_named():
    detector = GaussianAnomalyDetector().fit({"a": correlated(0, 20, 3), "b": correlated(1, 20, 4)})
    with pytest.raises(ValueError, match=r"X has the levels \['a'\]; the fit had \['a', 'b'\]"):
        detector.anomaly_score({"a": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"X has the levels \[0\]; the fit had \['a', 'b'\]"):
        detector.anomaly_score(np.ones((2, 7)))
    with pytest.raises(ValueError, match=r"'b': \(2, 3\).* the fit had .*'b': 4"):
        detector.anomaly_score({"a": np.ones((2, 3)), "b": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"level 'c' is unknown; the fit had \['a', 'b'\]"):
        detector.threshold(level="c")
    with pytest.raises(ValueError, match=r"fpr is 1.5"):
        detector.threshold(1.5)
