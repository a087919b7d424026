"""The Fréchet-mean rule against its definition and closed forms, the label metrics, and the theory of loci."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.methods.heads import loki
from workingpapers.methods.heads.loki import (
    FrechetMeanDecoder,
    LokiClassifier,
    distances_from_embeddings,
    distances_from_graph,
    distances_from_hierarchy,
    is_locus_cover,
    locus,
    naive_frechet_mean,
    naive_locus,
    select_next_label,
)

PATH = np.abs(np.subtract.outer(np.arange(11.0), np.arange(11)))  # labels 0..10 in a row


@parametrize_with_checks([LokiClassifier(LogisticRegression()), LokiClassifier(KNeighborsClassifier())])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def simplex(seed, rows, columns):
    return np.random.default_rng(seed).dirichlet(np.full(columns, 0.5), size=rows)


def random_tree(seed, nodes):
    """Edges of a random recursive tree: each node hangs from an earlier one."""
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(child)), child) for child in range(1, nodes)]


def tree_distances(seed, nodes):
    return distances_from_graph(random_tree(seed, nodes), range(nodes))


def spanned_subtree(edges, observed):
    tree = nx.Graph(edges)
    return sorted({n for u in observed for v in observed for n in nx.shortest_path(tree, u, v)})


# The rule


@given(seed=st.integers(0, 1000), labels=st.integers(1, 12), power=st.sampled_from([1, 2, 3]))
@settings(max_examples=40, deadline=None)
def test_predictions_equal_the_definition(seed, labels, power):
    rng = np.random.default_rng(seed)
    distances = distances_from_embeddings(rng.normal(size=(labels, 3)))  # no ties, almost surely
    observed = rng.permutation(labels)[: rng.integers(1, labels + 1)]
    proba = simplex(seed, 20, len(observed))
    predicted = FrechetMeanDecoder(distances, observed, power=power).predict(proba)
    assert predicted.tolist() == naive_frechet_mean(proba, distances, observed, power)


def test_discrete_metric_on_all_labels_is_argmax():
    proba = simplex(0, 200, 7)
    predicted = FrechetMeanDecoder(1 - np.eye(7)).predict(proba)
    np.testing.assert_array_equal(predicted, proba.argmax(axis=1))


def test_complete_graph_never_outputs_an_unobserved_label():
    observed = [4, 1, 6]
    proba = simplex(1, 500, 3)
    predicted = FrechetMeanDecoder(1 - np.eye(8), observed).predict(proba)
    np.testing.assert_array_equal(predicted, np.take(observed, proba.argmax(axis=1)))


def test_path_rounds_the_mean_position():
    p = np.arange(998) / 997  # 997 is prime: 10 p is never halfway between two labels
    predicted = FrechetMeanDecoder(PATH, [0, 10]).predict(np.stack([1 - p, p], axis=1))
    np.testing.assert_array_equal(predicted, np.round(10 * p))


def test_median_stays_at_the_more_probable_end_of_a_path():
    p = np.array([0.1, 0.4, 0.6, 0.9])
    predicted = FrechetMeanDecoder(PATH, [0, 10], power=1).predict(np.stack([1 - p, p], axis=1))
    assert predicted.tolist() == [0, 0, 10, 10]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_embeddings_predict_the_label_nearest_to_the_mean_embedding(seed):
    vectors = np.random.default_rng(seed).normal(size=(30, 4))
    observed, proba = np.arange(6), simplex(seed, 50, 6)
    decoder = FrechetMeanDecoder(distances_from_embeddings(vectors), observed)
    to_mean = ((vectors - (proba @ vectors[observed])[:, None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(decoder.predict(proba), to_mean.argmin(axis=1))
    rest = decoder.scores(proba) - to_mean  # the spread of the observed embeddings: the same for every label
    np.testing.assert_allclose(rest, np.repeat(rest[:, :1], 30, axis=1), atol=1e-10)


@given(scale=st.floats(1e-6, 1e6))
@settings(max_examples=20, deadline=None)
def test_invariant_to_the_scale_of_the_distances(scale):
    distances, proba = distances_from_embeddings(np.random.default_rng(2).normal(size=(40, 3))), simplex(2, 100, 5)
    plain = FrechetMeanDecoder(distances, range(5)).predict(proba)
    np.testing.assert_array_equal(FrechetMeanDecoder(distances * scale, range(5)).predict(proba), plain)


def test_ties_go_to_the_smallest_index():
    decoder = FrechetMeanDecoder(PATH[:, :4][:4], [3, 0])  # halfway between labels 1 and 2
    assert decoder.predict([[0.5, 0.5]]).tolist() == [1]
    assert decoder.scores([[0.5, 0.5]]).tolist() == [[4.5, 2.5, 2.5, 4.5]]


@pytest.mark.parametrize("numbers", [1, 50, 170])  # 1 label, 2 labels and 8 labels at a time
def test_blocks_of_labels_change_nothing(monkeypatch, numbers):
    proba = simplex(3, 20, 4)
    # PATH has ties across blocks: the smallest label must still win. Quarters keep all sums exact.
    proba[:5] = [[0.25, 0.25, 0.25, 0.25], [0.5, 0, 0, 0.5], [0.25, 0.25, 0.5, 0], [0.75, 0.25, 0, 0], [0, 0, 0, 1]]
    whole = FrechetMeanDecoder(PATH, [0, 3, 7, 9])
    scores, predicted = whole.scores(proba), whole.predict(proba)
    monkeypatch.setattr(loki, "BLOCK", numbers)
    np.testing.assert_allclose(whole.scores(proba), scores, rtol=1e-12)
    np.testing.assert_array_equal(whole.predict(proba), predicted)
    np.testing.assert_array_equal(predicted, scores.argmin(axis=1))


def test_rows_of_the_observed_labels_are_enough():
    proba = simplex(4, 20, 3)
    rows = FrechetMeanDecoder(PATH[[2, 9, 5]].astype(np.float32))
    np.testing.assert_array_equal(rows.predict(proba), FrechetMeanDecoder(PATH, [2, 9, 5]).predict(proba))


def test_temperature_undoes_the_missing_scale_of_logits():
    cosines = np.random.default_rng(5).uniform(0.1, 0.3, size=(50, 4))

    def softmax(logits):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    observed = [0, 4, 7, 10]
    cold = FrechetMeanDecoder(PATH, observed, temperature=0.01).scores(softmax(cosines))
    np.testing.assert_allclose(cold, FrechetMeanDecoder(PATH, observed).scores(softmax(100 * cosines)), rtol=1e-9)
    flat = FrechetMeanDecoder(PATH, observed).predict(softmax(cosines))
    assert set(flat) == {5}  # without the scale everything collapses to the centre: the mean of 0, 4, 7, 10 is 5.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 0}, "power is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"observed": [0, 11]}, r"different indices in 0..10; got \[0, 11\]"),
        ({"observed": [3, 3]}, r"different indices in 0..10; got \[3, 3\]"),
        ({"observed": [0.0, 1.0]}, "one or more label indices"),
        ({"observed": []}, "one or more label indices"),
        ({"distances": PATH[:, :3]}, r"got shape \(11, 3\)"),
        ({"distances": np.where(PATH == 10, np.inf, PATH)}, "to inf"),
        ({"distances": 1 - PATH / 10}, "0 or more, and 0 from a label to itself"),  # a similarity
        ({"distances": PATH - 1}, "0 or more"),
    ],
)
def test_bad_decoder_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FrechetMeanDecoder(**{"distances": PATH, "observed": [0, 5], **options})


@pytest.mark.parametrize(
    ("proba", "message"),
    [
        ([[0.5, 0.5]], "2 columns; there are 3 observed"),
        ([[0.2, 0.3, 0.5], [1.0, 2.0, 0.5]], "row 1 sums to 3.5"),  # one-vs-rest scores
        ([[2.0, -1.0, 0.0]], "row 0 sums to 1"),  # logits
        ([[np.nan, 0.5, 0.5]], "NaN"),
    ],
)
def test_what_is_no_probability_is_refused(proba, message):
    with pytest.raises(ValueError, match=message):
        FrechetMeanDecoder(PATH, [0, 5, 9]).predict(proba)


# Label metrics


@given(seed=st.integers(0, 1000), nodes=st.integers(2, 15))
@settings(max_examples=20, deadline=None)
def test_graph_distances_equal_those_of_networkx(seed, nodes):
    rng = np.random.default_rng(seed)
    extra = [tuple(rng.choice(nodes, 2, replace=False).tolist()) for _ in range(nodes)]
    edges = [(u, v, float(rng.uniform(0.5, 3))) for u, v in random_tree(seed, nodes) + extra]  # parallel edges too
    graph = nx.MultiGraph()
    graph.add_weighted_edges_from(edges)
    expected = dict(nx.all_pairs_dijkstra_path_length(graph))
    labels = rng.permutation(nodes)[:4].tolist()
    distances = distances_from_graph(edges, labels)
    np.testing.assert_allclose(distances, [[expected[u][v] for v in labels] for u in labels], rtol=1e-12)
    # scipy.sparse holds one entry per edge: leave out the parallel ones.
    u, v, length = zip(*{tuple(sorted(edge[:2])): edge for edge in edges}.values(), strict=True)
    adjacency = csr_array((length, (u, v)), shape=(nodes, nodes))
    plain = distances_from_graph(zip(u, v, length, strict=True), range(nodes))
    np.testing.assert_allclose(distances_from_graph(adjacency), plain, rtol=1e-12)
    np.testing.assert_array_equal(distances_from_graph(adjacency, labels), plain[np.ix_(labels, labels)])


def test_hierarchy_counts_the_edges_up_and_down():
    paths = [("animals", "cat"), ("animals", "dog"), ("food", "fruit", "apple"), ("animals",), ()]
    distances = distances_from_hierarchy(paths)

    def steps(a, b):
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return len(a) + len(b) - 2 * shared

    np.testing.assert_array_equal(distances, [[steps(a, b) for b in paths] for a in paths])
    # The same name under two parents is two labels.
    assert distances_from_hierarchy([("a", "other"), ("b", "other")])[0, 1] == 4
    assert distances_from_hierarchy([("alone",)]).tolist() == [[0]]


def test_embedding_distances():
    vectors = np.random.default_rng(6).normal(size=(8, 5)) + 3
    plain = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    np.testing.assert_allclose(distances_from_embeddings(vectors), plain, atol=1e-12)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    implied = distances_from_embeddings(vectors, unit_norm=True)
    np.testing.assert_allclose(implied**2, 2 - 2 * unit @ unit.T, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: distances_from_graph([("a", "b"), ("c", "d")], "abcd"), "no path between 'a' and 'c'"),
        (lambda: distances_from_graph([("a", "b")], "abz"), "no path between 'a' and 'z'"),
        (lambda: distances_from_graph(csr_array(np.diag([1, 0], 1))), "no path between 0 and 2"),
        (lambda: distances_from_graph([("a", "b")]), "needs `labels`"),
        (lambda: distances_from_graph([("a", "b", 0)], "ab"), "'a' to 'b' has 0"),
        (lambda: distances_from_graph([("a", "b", np.nan)], "ab"), "'a' to 'b' has nan"),
        (lambda: distances_from_graph(nx.path_graph("ab").edges(data=True), "ab"), "'a' to 'b' has {}"),
        (lambda: distances_from_graph([("a", "b")], "aba"), "label 'a' occurs twice"),
        (lambda: distances_from_graph([("a", "b")], []), "labels is empty"),
        (lambda: distances_from_graph(csr_array((2, 3))), r"got shape \(2, 3\)"),
        (lambda: distances_from_graph(csr_array((2, 2)), [0, 2]), r"labels \[0, 2\]"),
        (lambda: distances_from_hierarchy(["cat", "dog"]), "must be a tuple such as .* got 'cat'"),
        (lambda: distances_from_hierarchy([("a",), ("a",)]), "occurs twice"),
        (lambda: distances_from_embeddings([[1.0, 0], [0, 0]], unit_norm=True), "embedding 1 is zero"),
        (lambda: distances_from_embeddings([[1.0, np.inf]]), "infinity"),
    ],
)
def test_bad_label_spaces_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Loci


@given(seed=st.integers(0, 1000), nodes=st.integers(2, 9), weighted=st.booleans())
@settings(max_examples=25, deadline=None)
def test_tree_locus_is_the_spanned_subtree_and_equals_the_definition(seed, nodes, weighted):
    rng = np.random.default_rng(seed)
    edges = random_tree(seed, nodes)
    lengths = rng.uniform(0.2, 5, nodes) if weighted else np.ones(nodes)
    distances = distances_from_graph([(*e, d) for e, d in zip(edges, lengths, strict=False)], range(nodes))
    observed = rng.permutation(nodes)[: rng.integers(1, nodes + 1)]
    assert loki._is_tree(distances)
    assert locus(distances, observed).tolist() == spanned_subtree(edges, observed.tolist())
    assert locus(distances, observed).tolist() == naive_locus(distances, observed).tolist()


def test_predictions_on_a_tree_reach_exactly_its_spanned_subtree():
    distances, observed = tree_distances(7, 12), [3, 8, 11]
    predicted = FrechetMeanDecoder(distances, observed).predict(simplex(8, 20_000, 3))
    assert sorted(set(predicted.tolist())) == locus(distances, observed).tolist()


@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_predictions_never_leave_the_locus_of_any_metric(seed):
    distances = distances_from_embeddings(np.random.default_rng(seed).normal(size=(12, 2)))
    predicted = FrechetMeanDecoder(distances, range(3)).predict(simplex(seed, 2000, 3))
    assert not loki._is_tree(distances)
    assert set(predicted.tolist()) <= set(locus(distances, range(3)).tolist())


def test_locus_covers():
    star_of_paths = distances_from_graph([(0, 1), (1, 2), (0, 3), (3, 4), (0, 5)], range(6))
    assert is_locus_cover(star_of_paths, [2, 4, 5])  # the leaves
    assert not is_locus_cover(star_of_paths, [2, 4])
    complete = 1 - np.eye(5)
    assert locus(complete, [1, 3]).tolist() == [1, 3]
    assert is_locus_cover(complete, range(5))
    leaves = distances_from_hierarchy([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])  # no inner node is a label
    assert 1 not in FrechetMeanDecoder(leaves, [0, 2]).predict(simplex(9, 500, 2))
    assert is_locus_cover([[0.0]], [0])


def test_selection_takes_the_farthest_label_and_covers_the_tree():
    assert select_next_label(PATH, [4]) == 10
    assert select_next_label(PATH, [4, 10]) == 0
    with pytest.raises(ValueError, match="all 11 labels are reachable"):
        select_next_label(PATH, [0, 10])


def test_active_selection_outgrows_random_selection():
    gains = []
    for seed in range(10):
        distances, rng = tree_distances(seed, 60), np.random.default_rng(seed)
        active = rng.choice(60, 2, replace=False).tolist()
        at_random = [*active, *rng.permutation(np.setdiff1d(np.arange(60), active))[:6].tolist()]
        for _ in range(6):
            active.append(select_next_label(distances, active))
            gains.append(len(locus(distances, active)) - len(locus(distances, at_random[: len(active)])))
    assert min(gains) >= -3  # the order may help random picks now and then,
    assert np.mean(gains) > 5  # never on average


@pytest.mark.parametrize("function", [locus, naive_locus, is_locus_cover, select_next_label])
def test_bad_metrics_and_observed_labels_are_named(function):
    with pytest.raises(ValueError, match=r"\(N, N\); got shape \(2, 11\)"):
        function(PATH[:2], [0])
    with pytest.raises(ValueError, match="different indices"):
        function(PATH, [11])
    with pytest.raises(ValueError, match="0 from a label to itself"):
        function(PATH + 1, [0])


# The classifier


def path_data(rng, positions):
    """Noisy points on a quarter circle, one angle per label."""
    angle = positions / 10 * np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.02 * rng.normal(size=(len(positions), 2))


def test_classifier_predicts_labels_that_it_never_saw():
    rng = np.random.default_rng(10)
    names = np.array([f"label {i}" for i in (3, 1, 4, 10, 5, 9, 2, 6, 8, 7, 0)])  # neither sorted nor along the path
    place = np.array([int(name.split()[1]) for name in names])
    distances = np.abs(np.subtract.outer(place, place)).astype(float)
    train = rng.choice([0, 5, 10], 300)
    test = rng.integers(0, 11, 300)
    at = np.argsort(place)  # name of each place along the path
    model = LokiClassifier(LogisticRegression(), distances, names)
    model.fit(path_data(rng, train), names[at[train]])
    predicted = model.predict(path_data(rng, test))
    rounded = np.array([int(name.split()[1]) for name in predicted])
    argmax = model.estimator_.predict(path_data(rng, test))
    known = np.array([int(name.split()[1]) for name in argmax])
    assert np.mean((rounded - test) ** 2) < 0.7 * np.mean((known - test) ** 2)
    assert set(predicted) > set(argmax)
    # Columns follow estimator_.classes_ (sorted), rows follow `labels`.
    assert list(model.classes_[model.observed_]) == list(model.estimator_.classes_) == sorted(names[at[[0, 5, 10]]])
    assert model.scores(path_data(rng, test)).shape == (300, 11)


def test_classifier_takes_a_fitted_estimator():
    rng = np.random.default_rng(11)
    y = np.repeat([0, 10], 50)
    X = path_data(rng, y)
    fitted = LogisticRegression().fit(X, y)
    model = LokiClassifier(FrozenEstimator(fitted), PATH, range(11)).fit(X, y)
    expected = FrechetMeanDecoder(PATH, [0, 10]).predict(fitted.predict_proba(X))
    np.testing.assert_array_equal(model.predict(X), expected)


def test_a_fit_that_fails_leaves_the_one_before():
    rng = np.random.default_rng(12)
    X, y = path_data(rng, np.repeat([0, 10], 50)), np.repeat([0, 10], 50)
    model = LokiClassifier(LogisticRegression(), PATH, range(11)).fit(X, y)
    expected = model.predict(X)
    with pytest.raises(ValueError, match=r"`labels` does not name: \[12\]"):
        model.fit(X[::-1], np.repeat([0, 12], 50))  # the new estimator with the old decoder would be wrong
    np.testing.assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": LinearSVC()}, r"must have predict_proba; LinearSVC\(\)"),
        ({"labels": None}, "together, or neither"),
        ({"distances": None}, "together, or neither"),
        ({"labels": range(10)}, r"N = 10 labels; got \(11, 11\)"),
        ({"labels": range(1, 12)}, r"`labels` does not name: \[0\]"),
        ({"labels": [0, 0, *range(2, 11)]}, "label 0 occurs twice"),
        ({"power": -1}, "power is -1"),
    ],
)
def test_bad_classifier_options_are_named(options, message):
    model = LokiClassifier(**{"estimator": LogisticRegression(), "distances": PATH, "labels": range(11), **options})
    with pytest.raises(ValueError, match=message):
        model.fit(np.eye(4), [0, 10, 0, 10])
