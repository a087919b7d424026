"""The data of `probe`: what is drawn for training, what is held back, and how predictions are scored."""

import dataclasses
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from workingpapers.data.datasets import load_dataset
from workingpapers.data.splits import stratified, subset
from workingpapers.errors import UserError
from workingpapers.tasks.probe import examples as parts
from workingpapers.tasks.probe.examples import (
    FEWEST_PER_CLASS,
    Examples,
    Problem,
    accuracy,
    calibration_error,
    classification_metrics,
    pool,
    prepare,
    probabilities,
)
from workingpapers.tasks.protocol import Budget, Conditions, Context, load_task

TASK = load_task("probe")
PROBE = TASK.entries["logistic-regression"]
QUICK = TASK.setting("standard").budgets["quick"]


def load(conditions, entry, seed):
    """Return a seed's problem, prepared as the runner prepares it."""
    return parts.load(conditions, entry, seed, prepare(conditions, [entry]))


def table(tmp_path, labels, part=None, tokens=None):
    """Write features that say who they are: the first is the row's number, so splits can be read off them."""
    rows = np.arange(len(labels), dtype=np.float64)
    X = np.stack([rows, np.asarray(labels, dtype=np.float64)], axis=1)
    X = X if tokens is None else np.repeat(X[:, None], tokens, axis=1)
    arrays = {"features": X, "labels": labels} | ({} if part is None else {"part": part})
    np.savez(tmp_path / "own.npz", **arrays)
    return Conditions("probe", "standard", str(tmp_path / "own.npz"), "pixels")


def rows_of(X):
    """Return the row numbers that features of `table` hold."""
    return X.reshape(len(X), -1)[:, 0].astype(int)


def examples(y, seed=0, **more):
    y = np.asarray(y)
    return Examples(np.arange(len(y), dtype=np.float32)[:, None], y, int(y.max()) + 1, seed, **more)


# Drawing


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    count=st.integers(1, 150),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_stratified_draws_each_class_in_its_proportion(counts, count, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    rows = stratified(rng, y, count)
    assert np.array_equal(rows, np.unique(rows))
    for label, size in enumerate(counts):
        drawn = np.count_nonzero(y[rows] == label)
        exact = min(1.0, count / len(y)) * size
        assert drawn == max(min(2, size), round(exact))


def test_stratified_draws_at_random():
    y = np.zeros(1000, dtype=int)
    first, second = (stratified(np.random.default_rng(seed), y, 500) for seed in (0, 1))
    assert 200 < len(np.intersect1d(first, second)) < 300  # half of 500, within seven standard deviations of 8
    np.testing.assert_array_equal(first, stratified(np.random.default_rng(0), y, 500))


def test_a_subset_has_everything_of_its_rows(tmp_path):
    part = np.array(["train", "test"] * 30)
    data = load_dataset(table(tmp_path, np.arange(60) % 3, part).data)
    rows = np.array([5, 3, 40])
    some = subset(data, rows)
    np.testing.assert_array_equal(rows_of(some.features), rows)
    np.testing.assert_array_equal(some.labels, data.labels[rows])
    np.testing.assert_array_equal(some.part, part[rows])
    assert len({some.fingerprint, data.fingerprint, subset(data, rows[::-1]).fingerprint}) == 3
    digits = load_dataset("digits")
    picked = subset(digits, rows)
    assert len(picked.images) == 3
    np.testing.assert_array_equal(np.stack(list(picked.images)), np.stack([digits.images[i] for i in (5, 3, 40)]))
    np.testing.assert_array_equal(picked.images[2], digits.images[40])


def test_the_pool_is_twice_the_budget_and_the_same_for_every_seed(tmp_path):
    conditions = table(tmp_path, np.arange(20_000) % 4)
    first, second = pool(conditions), pool(conditions)
    assert len(first) == 2 * (QUICK.train + QUICK.test)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.features, second.features)


def test_the_pool_keeps_official_parts_apart(tmp_path):
    part = np.repeat(["train", "test"], [10_000, 5_000])
    data = pool(table(tmp_path, np.arange(15_000) % 4, part))
    assert np.count_nonzero(data.part == "train") == 2 * QUICK.train
    assert np.count_nonzero(data.part == "test") == 2 * QUICK.test
    assert np.array_equal(data.part == "test", rows_of(data.features) >= 10_000)


def test_a_rare_class_stays_large_enough_to_be_split(tmp_path):
    """Its share of the pool would be less than one example."""
    labels = np.repeat([0, 1, 2], [20_000, 20_000, FEWEST_PER_CLASS])
    conditions = table(tmp_path, labels)
    assert np.count_nonzero(pool(conditions).labels == 2) == FEWEST_PER_CLASS
    problem = load(conditions, PROBE, 0)
    assert np.count_nonzero(problem.train.y == 2) >= 2
    assert np.count_nonzero(problem.labels == 2) >= 2


@pytest.mark.parametrize("tokens", [None, 3])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_back_never_trains(tmp_path, seed, tokens):
    labels = np.random.default_rng(0).integers(0, 4, 500)
    conditions = table(tmp_path, labels, tokens=tokens)
    problem = load(conditions, TASK.entries["moment-probing"] if tokens else PROBE, seed)
    inner, outer = rows_of(problem.train.X), rows_of(problem.inputs)
    assert np.intersect1d(inner, outer).size == 0
    assert len(np.union1d(inner, outer)) == 500
    np.testing.assert_array_equal(problem.train.y, labels[inner])
    np.testing.assert_array_equal(problem.labels, labels[outer])
    for label in range(4):  # 30 % of each class
        assert np.count_nonzero(problem.labels == label) == round(0.3 * np.count_nonzero(labels == label))


def test_official_test_examples_never_train(tmp_path):
    part = np.random.default_rng(1).permutation(np.repeat(["train", "test"], [300, 100]))
    conditions = table(tmp_path, np.arange(400) % 4, part)
    drawn = []
    for seed in range(5):
        problem = load(conditions, PROBE, seed)
        assert set(part[rows_of(problem.train.X)]) == {"train"}
        assert set(part[rows_of(problem.inputs)]) == {"test"}
        assert (len(problem.train), len(problem.labels)) == (240, 80)  # four fifths, so that seeds differ
        drawn.append(tuple(rows_of(problem.inputs)))
    assert len(set(drawn)) == 5


def test_a_seed_always_draws_the_same_and_seeds_differ(tmp_path):
    conditions = table(tmp_path, np.arange(300) % 3)
    problems = [load(conditions, PROBE, seed) for seed in (0, 0, 1)]
    first, again, other = [(tuple(rows_of(p.train.X)), tuple(rows_of(p.inputs))) for p in problems]
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_entries_of_a_seed_get_the_same_rows_whatever_they_read(tmp_path):
    conditions = table(tmp_path, np.arange(300) % 3, tokens=2)
    pooled, tokens = (load(conditions, TASK.entries[name], 0) for name in ("logistic-regression", "moment-probing"))
    np.testing.assert_array_equal(rows_of(pooled.train.X), rows_of(tokens.train.X))
    np.testing.assert_array_equal(pooled.labels, tokens.labels)
    assert pooled.train.X.shape[1:] == (2,)
    assert tokens.train.X.shape[1:] == (2, 2)
    assert pooled.train.X.dtype == np.float32


def test_budgets_bound_what_a_seed_draws(tmp_path):
    problem = load(table(tmp_path, np.arange(20_000) % 4), PROBE, 0)
    assert (len(problem.train), len(problem.labels)) == (QUICK.train, QUICK.test)


def test_entries_get_nothing_that_holds_held_back_examples(tmp_path):
    problem = load(table(tmp_path, np.arange(200) % 2), PROBE, 0)
    held = set(rows_of(problem.inputs))
    assert set(vars(problem.train)) == {"X", "y", "classes", "seed", "distances"}
    for array in (problem.train.X, problem.train.y):
        assert len(array) == len(problem.train) == 140
        assert array.base is None or array.base.size == array.size  # no window into the whole data set
    assert held.isdisjoint(rows_of(problem.train.X))
    assert {field.name for field in dataclasses.fields(Context)} == {"seed", "budget", "curves"}


@pytest.mark.parametrize("setting", [name for name, s in TASK.settings.items() if s.model])
def test_measures_hand_entries_training_examples_only(tmp_path, setting):
    labels = np.arange(200) % 5
    problem = load(table(tmp_path, labels), PROBE, 0)
    distances = 1.0 - np.eye(5)
    problem = dataclasses.replace(problem, train=dataclasses.replace(problem.train, distances=distances))
    seen = []

    def fit(train):
        seen.append(train)
        return TASK.entries["nearest-mean"].fit(train, None)

    TASK.setting(setting).measure(fit, problem, Context(0, QUICK))
    training = set(rows_of(problem.train.X))
    assert all(isinstance(train, Examples) and set(rows_of(train.X)) <= training for train in seen)
    assert seen


# What cannot be used


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0] * 10 + [1] * 4 + [2] * 10, r"classes with fewer than 5 examples .*: 1 \(4\)\."),
        (np.repeat(np.arange(8), 2), r"0 \(2\), 1 \(2\), 2 \(2\), 3 \(2\), 4 \(2\) \.\.\."),
    ],
)
def test_classes_too_small_to_split_are_named(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        pool(table(tmp_path, np.asarray(labels)))


def test_a_class_without_training_examples_is_named(tmp_path):
    part = np.repeat(["train", "test", "test"], 20)
    with pytest.raises(UserError, match=r"without an example to train on: 2\."):
        pool(table(tmp_path, np.repeat([0, 1, 0, 1, 2], [10, 10, 10, 10, 20]), part))


def test_features_serve_no_entry_that_reads_images(tmp_path):
    conditions = table(tmp_path, np.arange(60) % 2)
    prepared = prepare(conditions, list(TASK.entries.values())[:1])
    assert prepared.data_fingerprint
    (remark,) = prepared.remarks
    assert remark.startswith("The model pixels is not used: ")
    for name in ("pixels-svm", "hog-svm", "random-weights-svm", "s2-scaling", "off-the-shelf"):
        with pytest.raises(UserError, match=r"own\.npz has features \(60, 2\) where images are needed\."):
            load(conditions, TASK.entries[name], 0)


def test_entries_that_read_images_are_left_out_of_boards_of_features(tmp_path):
    conditions = table(tmp_path, np.arange(60) % 2)
    conditions = dataclasses.replace(conditions, model=TASK.setting("standard").model)
    prepared = prepare(conditions, TASK.select("standard"))
    assert prepared.left_out == ("pixels-svm", "hog-svm", "random-weights-svm")
    assert prepared.remarks == (
        f"{conditions.data} has features (60, 2) where images are needed. "
        "Left out: pixels-svm, hog-svm, random-weights-svm.",
    )
    with pytest.raises(UserError, match="where images are needed"):  # the baseline of that setting reads images itself
        prepare(dataclasses.replace(conditions, setting="multi-scale"), TASK.select("multi-scale"))
    assert prepare(Conditions("probe", "standard", "digits", "pixels"), [TASK.entries["pixels-svm"]]).left_out == ()


def test_a_label_efficiency_curve_needs_three_labels_a_class(tmp_path):
    part = np.repeat(["train", "test"], [4, 40])
    problem = load(table(tmp_path, np.arange(44) % 2, part), PROBE, 0)
    with pytest.raises(UserError, match="at least three training examples of each class; the smallest has 2"):
        TASK.setting("label-efficiency").measure(lambda train: None, problem, Context(0, QUICK))


# Splits of the training part


@pytest.mark.parametrize("seed", [0, 7])
def test_split_holds_back_a_fifth_of_each_class(seed):
    data = examples(np.repeat([0, 1, 2], [50, 20, 2]), seed)
    inner, held = data.split()
    assert np.bincount(held.y).tolist() == [10, 4, 1]
    assert np.bincount(inner.y).tolist() == [40, 16, 1]
    np.testing.assert_array_equal(np.sort(np.concatenate([rows_of(inner.X), rows_of(held.X)])), np.arange(72))
    np.testing.assert_array_equal(data.y[rows_of(held.X)], held.y)
    np.testing.assert_array_equal(rows_of(data.split()[1].X), rows_of(held.X))
    assert not np.array_equal(rows_of(dataclasses.replace(data, seed=seed + 1).split()[1].X), rows_of(held.X))


def test_split_ignores_classes_that_are_held_back_by_the_setting():
    inner, held = examples([0, 0, 3, 3]).split()
    assert (inner.y.tolist(), held.y.tolist()) == ([0, 3], [0, 3])


def test_nothing_is_split_off_a_class_of_one():
    assert examples([0, 0, 0, 1]).split() is None


@given(counts=st.lists(st.integers(3, 70), min_size=2, max_size=4), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_growing_sets_are_nested_and_balanced_and_end_with_all(counts, seed):
    data = examples(np.repeat(np.arange(len(counts)), counts), seed)
    grown = list(data.growing())
    *few, (size, everything) = grown
    assert size == len(data)
    assert everything is data
    assert [n for n, _ in few] == [c * len(counts) for c in (2, 5, 10, 20, 50) if c < min(counts)]
    for n, part in few:
        assert len(part) == n
        assert set(np.bincount(part.y)) == {n // len(counts)}
        np.testing.assert_array_equal(data.y[rows_of(part.X)], part.y)
    for (_, smaller), (_, larger) in pairwise(few):
        assert set(rows_of(smaller.X)) < set(rows_of(larger.X))


def test_a_label_efficiency_curve_by_hand():
    """A classifier that knows only the first labels it was given: its accuracy is what the measure makes of it."""
    y = np.arange(40) % 2
    problem = Problem(examples(y), np.zeros((4, 1)), np.array([0, 0, 0, 1]))
    answers = {4: [1, 1, 1, 1], 10: [0, 0, 1, 0], 20: [0, 0, 0, 0], 40: [0, 0, 0, 1]}  # 25, 50, 75 and 100 %
    context = Context(0, QUICK)

    def fit(train):
        found = np.eye(2)[answers[len(train)]]
        return SimpleNamespace(classes_=np.arange(2), predict_proba=lambda X: found)

    metrics = TASK.setting("label-efficiency").measure(fit, problem, context)
    assert metrics == {"convergence": 50, "mean-accuracy": 62.5, "fewest-accuracy": 25}
    assert context.curves["accuracy by training examples"] == [(4, 25), (10, 50), (20, 75), (40, 100)]


# Scores


def naive_calibration_error(confidence, correct, bins=15):
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b == min(int(c * bins), bins - 1)]
        if inside:
            gap = abs(np.mean([confidence[i] for i in inside]) - np.mean([correct[i] for i in inside]))
            total += len(inside) / len(confidence) * gap
    return total


@given(
    pairs=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80),
    bins=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_calibration_error_equals_the_definition(pairs, bins):
    confidence, correct = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    found = calibration_error(confidence, correct, bins)
    assert found == pytest.approx(naive_calibration_error(confidence, correct, bins), abs=1e-12)
    assert 0 <= found <= 1


@pytest.mark.parametrize(
    ("confidence", "correct", "error"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [False, False], 1.0),
        ([0.75] * 4, [True, True, True, False], 0.0),
        ([0.9] * 5 + [0.5] * 5, [True] * 5 + [False] * 5, (0.1 + 0.5) / 2),
        ([0.61, 0.65], [True, False], 0.13),  # one bin, (9/15, 10/15): their mean 0.63 against 0.5
    ],
)
def test_calibration_error_by_hand(confidence, correct, error):
    assert calibration_error(np.array(confidence), np.array(correct)) == pytest.approx(error)


def classifier(classes, columns):
    return SimpleNamespace(classes_=np.array(classes), predict_proba=lambda X: np.array(columns, dtype=float))


def test_probabilities_stand_in_the_columns_of_their_classes():
    train = Examples(np.zeros((2, 1)), np.array([1, 3]), classes=4, seed=0)
    problem = Problem(train, np.zeros((3, 1)), np.array([1, 3, 0]))
    lacking = classifier([1, 3], [[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    expected = [[0, 0.7, 0, 0.3], [0, 0.2, 0, 0.8], [0, 0.6, 0, 0.4]]
    np.testing.assert_array_equal(probabilities(problem, lacking), expected)
    assert accuracy(problem, lacking) == pytest.approx(200 / 3)


@pytest.mark.parametrize("classes", [[-1, 0], [0, 2], [0, 0], ["0", "1"], [False, True], [[0, 1]]])
def test_classes_that_are_no_labels_are_refused(classes):
    problem = Problem(examples([0, 1]), np.zeros((2, 1)), np.array([0, 1]))
    with pytest.raises(UserError, match=r"classes_ .* labels are different ones of 0 to 1\."):
        probabilities(problem, classifier(classes, [[0.5, 0.5], [0.5, 0.5]]))


def test_a_classifier_that_changes_what_it_is_given_spoils_no_other():
    def spoil(X):
        X[:] = 0
        return np.array([[1.0, 0.0]])

    problem = Problem(examples([0, 1]), np.ones((1, 1)), np.array([0]))
    assert accuracy(problem, SimpleNamespace(classes_=np.array([0, 1]), predict_proba=spoil)) == 100
    assert problem.inputs.tolist() == [[1]]


def test_classification_metrics_by_hand():
    labels = np.array([0, 0, 0, 1])
    problem = Problem(examples([0, 1]), np.zeros((4, 1)), labels)
    found = classification_metrics(problem, classifier([0, 1], [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]))
    assert found["accuracy"] == pytest.approx(75)
    assert found["macro-f1"] == pytest.approx(100 * f1_score(labels, [0, 0, 1, 1], average="macro"))
    assert found["macro-f1"] == pytest.approx(100 * (0.8 + 2 / 3) / 2)
    assert found["ece"] == pytest.approx(100 * (0.1 + 0.3) / 2)


def test_a_constant_guess_has_the_scores_of_a_constant_guess():
    problem = Problem(examples([0, 1]), np.zeros((4, 1)), np.array([0, 1, 1, 1]))
    found = classification_metrics(problem, classifier([0, 1], [[1, 0]] * 4))
    assert found == {"accuracy": 25, "macro-f1": pytest.approx(20), "ece": 75}


def test_the_label_column_reaches_the_table(tmp_path):
    frame = pd.DataFrame({"a": np.arange(40.0), "kind": ["x", "y"] * 20})
    frame.to_csv(tmp_path / "own.csv", index=False)
    conditions = Conditions("probe", "standard", str(tmp_path / "own.csv"), "pixels", label="kind")
    assert pool(conditions).class_names == ("x", "y")


def test_budgets_are_the_same_for_all_entries_of_a_setting():
    """Entries are handed the setting's budget and have none of their own."""
    for setting in TASK.settings.values():
        assert set(setting.budgets) == {"quick", "full"}
        assert all(isinstance(b, Budget) and b.name == name for name, b in setting.budgets.items())
    assert not any("budget" in field.name for field in dataclasses.fields(next(iter(TASK.entries.values()))))
