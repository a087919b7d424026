"""Click classifiers keep scikit-learn's contract, learn, survive a file, and export."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from clicks import KINDS, impressions
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from workingpapers.methods.recommenders import estimator
from workingpapers.methods.recommenders.baselines import (
    DCNClassifier,
    DeepFMClassifier,
    FMClassifier,
    IPNNClassifier,
    LinearClassifier,
    MLPClickClassifier,
)
from workingpapers.methods.recommenders.metrics import auc

ALL = [LinearClassifier, FMClassifier, MLPClickClassifier, DeepFMClassifier, IPNNClassifier, DCNClassifier]


@parametrize_with_checks(
    [kind(max_epochs=40, learning_rate=0.02, batch_size=32, patience=40, random_state=0) for kind in ALL[:3]]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    return impressions(4000), impressions(2000, seed=1)


@pytest.mark.parametrize("kind", ALL)
def test_learns_and_comes_back_from_a_folder(kind, data, tmp_path):
    (table, y), (held, held_y) = data
    model = kind(kinds=KINDS, learning_rate=0.01, batch_size=256, max_epochs=15, random_state=0).fit(table, y)
    scores = model.predict_proba(held)[:, 1]
    # Most clicks come from the product of user and item, which factorisation machines take for granted, networks have
    # to find, and first-order models cannot see.
    assert auc(held_y, scores) > {LinearClassifier: 0.6, FMClassifier: 0.75}.get(kind, 0.65)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(kind.load(tmp_path / "model").predict_proba(held)[:, 1], scores)


@pytest.mark.parametrize("named", [True, False])
def test_what_scikit_learn_knows_comes_back_from_a_folder(named, tmp_path):
    X = np.random.default_rng(0).normal(size=(80, 2))
    table = pd.DataFrame(X, columns=["a", "b"]) if named else X
    model = FMClassifier(max_epochs=np.int64(2), random_state=0).fit(table, X[:, 0] > 0)
    model.save(tmp_path)
    loaded = FMClassifier.load(tmp_path)
    assert (loaded.n_features_in_, loaded.history_) == (2, model.history_)
    assert getattr(loaded, "feature_names_in_", np.array([])).tolist() == (["a", "b"] if named else [])
    if not named:
        with pytest.raises(ValueError, match="3 features"):
            loaded.predict(np.zeros((4, 3)))


def test_a_model_that_cannot_be_saved_leaves_no_files(tmp_path):
    model = FMClassifier(max_epochs=1, random_state=np.random.RandomState(0)).fit(
        pd.DataFrame({"a": [0, 1] * 9}), [0, 1] * 9
    )
    with pytest.raises(ValueError, match="cannot be saved"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_exported_program_answers_for_batches_of_any_size(data):
    (table, y), (held, _) = data
    model = MLPClickClassifier(kinds=KINDS, max_epochs=1, random_state=0).fit(table, y)
    program = model.export(held.iloc[:5]).module()
    for n in (0, 1, 37):
        rows = model.schema_.encode(held.iloc[:n])
        found = program(rows.ids, rows.numbers, *rows.lists.values())
        # The export may fuse operations, which rounds differently.
        np.testing.assert_allclose(found.detach().numpy(), model.predict_proba(held.iloc[:n])[:, 1], atol=1e-6)


def test_options_of_a_subclass_and_its_base_are_one_set():
    model = DeepFMClassifier(hidden=(8,), dim=4, table="full")
    assert {"hidden", "dropout", "dim", "table", "random_state"} <= set(model.get_params())
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(TypeError, match="hiden"):
        DeepFMClassifier(hiden=(8,))


def test_unseen_values_missing_cells_and_extra_columns_are_answered_for(data):
    (table, y), _ = data
    model = MLPClickClassifier(kinds=KINDS, max_epochs=1, random_state=0).fit(table, y)
    odd = pd.DataFrame({"number": [np.nan], "item": [123456], "user": [None], "genres": [""], "more": [1]})
    assert np.isfinite(model.predict_proba(odd)).all()
    with pytest.raises(ValueError, match=r"lacks columns \['number'\]"):
        model.predict_proba(odd.drop(columns="number"))


def test_arrow_tables_are_tables(data):
    (table, y), (held, _) = data
    model = FMClassifier(kinds=KINDS, max_epochs=1, random_state=0).fit(pa.Table.from_pandas(table), y)
    np.testing.assert_array_equal(model.predict_proba(pa.Table.from_pandas(held)), model.predict_proba(held))


def test_the_seed_decides_everything(data):
    (table, y), (held, _) = data
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b, c = (
        FMClassifier(kinds=KINDS, max_epochs=1, random_state=seed).fit(table, y).decision_function(held)
        for seed in (1, 1, 2)
    )
    # A GPU adds gradients up in any order.
    assert np.allclose(a, b, rtol=0, atol=1e-5 if torch.cuda.is_available() else 0)
    assert not np.allclose(a, c, atol=1e-3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 0, 0, 0], "needs two classes; got 1 class: "),
        ([0, 1, 2, 3], "Only binary classification"),
        ([0, 1], "X has 4 rows and y 2"),
        ([0.5, 0.25, 1.5, 1.0], "continuous"),
        (["yes", "no", None, "no"], "y has no label in row 2"),
        (
            pd.to_datetime(["2024-01-01", "2024-01-02"] * 2),
            r"labels must be all text, .* there is np.datetime64\('2024",
        ),
        ([date(2024, 1, 1), date(2024, 1, 2)] * 2, r"there is datetime.date\(2024, 1, 1\)"),
        (pd.to_timedelta([1, 2, 1, 2]), "there is np.timedelta64"),
        (np.array(["a", 1, "a", 1], object), "there is 'a' among numbers"),
        (np.array([True, False] * 2, object), "objects such as True; give .* y.astype"),
        ([[0], [1], [0], [1], [0]], "X has 4 rows and y 5"),
        (3, "y is 3; it must hold a label for each row of X"),
    ],
)
def test_bad_labels_are_named(y, message):
    table = pd.DataFrame({"a": list("abab")})
    with pytest.raises(ValueError, match=message):
        FMClassifier().fit(table, y)


def test_bad_options_and_folders_are_named(tmp_path):
    table, y = pd.DataFrame({"a": list("abab")}), [0, 1, 0, 1]
    with pytest.raises(ValueError, match="validation is 1"):
        FMClassifier(validation=1).fit(table, y)
    with pytest.raises(ValueError, match=r"validation is 0\.999; of 300 rows it leaves"):
        FMClassifier(validation=0.999).fit(*impressions(300))
    with pytest.raises(ValueError, match="Unknown table 'foll'"):
        FMClassifier(table="foll").fit(table, y)
    with pytest.raises(FileNotFoundError):
        FMClassifier.load(tmp_path)
    FMClassifier(max_epochs=1).fit(table, y).save(tmp_path)
    with pytest.raises(ValueError, match=r"expected .*MLPClickClassifier"):
        MLPClickClassifier.load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="holds no click model"):
        FMClassifier.load(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["no", "yes"]),
        np.array(["no", "yes"], object),
        np.array([False, True]),
        np.array([2, 5], np.int8),
        np.array([0.0, 1.0], np.float32),
        pd.Categorical(["no", "yes"]),
        pd.array([0, 1], "Int64"),
        pd.array([False, True], "boolean"),
        pd.array(["no", "yes"], "string"),
    ],
    ids=str,
)
def test_labels_come_back_from_folders_and_parquet_files(labels, tmp_path):
    table, y = pd.DataFrame({"a": list("ab") * 20}), labels[np.arange(40) % 2]
    table.assign(y=y).to_parquet(tmp_path / "log.parquet")
    options = {"max_epochs": 1, "validation": 0, "random_state": 0}
    for model in (FMClassifier(**options).fit(table, y), FMClassifier(**options).fit(tmp_path / "log.parquet", "y")):
        model.save(tmp_path)
        loaded = FMClassifier.load(tmp_path)
        assert loaded.classes_.tolist() == model.classes_.tolist() == labels.tolist()
        assert loaded.predict(table).tolist() == model.predict(table).tolist()
        assert loaded.score(table, y) == model.score(table, y) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": "16"}, "dim is '16'; it must be a whole number"),
        ({"dim": 0}, "dim is 0"),
        ({"hidden": 128}, "hidden is 128; it must be a list of whole numbers"),
        ({"hidden": (8, -3)}, r"hidden widths are \(8, -3\)"),
        ({"dropout": "x"}, "dropout is 'x'; it must be a number"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay nan"),
        ({"learning_rate": 1e30}, "no finite logits; try a smaller learning_rate"),
        ({"batch_size": "1024"}, "batch_size is '1024'"),
        ({"kinds": ["item"]}, r"kinds is \['item'\]; it must be a dict"),
        ({"table": 3}, "table is 3; it must be text"),
        ({"table": "unified", "table_options": {"ratio": "0.1"}}, "ratio is '0.1'; it must be a number"),
        ({"random_state": "0"}, "random_state is '0'; it must be a whole number or RandomState or None"),
        ({"device": 0}, "device is 0; it must be text or device or None"),
    ],
)
def test_options_of_a_wrong_type_or_size_are_named(options, message):
    table, y = impressions(60)
    with pytest.raises(ValueError, match=message):
        MLPClickClassifier(**options).fit(table, y)


def test_options_may_be_numbers_of_numpys_as_searches_draw_them():
    table, y = impressions(60)
    options = {"dim": np.int64(4), "batch_size": np.int64(16), "max_epochs": np.int32(1), "hidden": np.array([8])}
    MLPClickClassifier(validation=np.float32(0.25), dropout=np.float32(0.1), **options).fit(table, y)
    for name, drawn in (("hash", {"ratio": np.float64(0.5)}), ("dpq", {"choices": np.int64(8)})):
        FMClassifier(table=name, table_options=drawn, dim=np.int64(4), max_epochs=1).fit(table, y)


def test_a_fit_that_fails_or_is_interrupted_leaves_no_model(data, monkeypatch):
    (table, y), _ = data
    other = table.assign(user="one")
    for option, value in (("learning_rate", 1e30), ("dropout", 7)):
        model = MLPClickClassifier(kinds=KINDS, max_epochs=1).fit(table, y)
        with pytest.raises(ValueError, match=r"loss of epoch 1|dropout"):
            model.set_params(**{option: value}).fit(other, y)
        with pytest.raises(NotFittedError):  # the columns' values are those of the other table by now
            model.predict_proba(table)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(estimator, "train", interrupted)
    model = FMClassifier(kinds=KINDS)
    with pytest.raises(KeyboardInterrupt):
        model.fit(table, y)
    with pytest.raises(NotFittedError):
        model.predict_proba(table)


def test_fits_in_threads_are_those_of_one(data):
    (table, y), (held, _) = data
    options = {"kinds": KINDS, "max_epochs": 1, "random_state": 0, "dropout": 0.5}  # draws all the way

    def fitted(_):
        return MLPClickClassifier(**options).fit(table[:500], y[:500]).decision_function(held)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(fitted, range(8)))
    # A GPU adds gradients up in any order.
    np.testing.assert_allclose(found, [fitted(0)] * 8, rtol=0, atol=1e-5 if torch.cuda.is_available() else 0)


def test_the_default_device_and_the_callers_draws_are_left_alone(data, tmp_path):
    (table, y), (held, _) = data
    options = {"kinds": KINDS, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    wanted = FMClassifier(**options).fit(table, y).decision_function(held)
    torch.set_default_device("meta")
    try:
        model = FMClassifier(**options).fit(table, y)
        model.save(tmp_path)
        before = torch.get_rng_state()
        found = FMClassifier.load(tmp_path).decision_function(held)
    finally:
        torch.set_default_device(None)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_allclose(found, wanted, atol=1e-6)  # compiled loops round differently


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_models_are_trained_where_gradients_are_switched_off(switched_off, data):
    (table, y), (held, _) = data
    options = {"kinds": KINDS, "max_epochs": 1, "random_state": 0, "device": "cpu"}
    with switched_off():
        found = FMClassifier(**options).fit(table, y)
    wanted = FMClassifier(**options).fit(table, y).decision_function(held)
    np.testing.assert_array_equal(found.decision_function(held), wanted)


def test_masked_numbers_are_missing():
    X = np.random.default_rng(0).normal(size=(40, 2))
    masked = np.ma.array(X, mask=X > 1)
    model = FMClassifier(max_epochs=1, random_state=0).fit(masked, [0, 1] * 20)
    np.testing.assert_array_equal(model.predict_proba(masked), model.predict_proba(np.where(X > 1, np.nan, X)))


def test_damaged_weights_are_named(tmp_path):
    FMClassifier(max_epochs=1).fit(pd.DataFrame({"a": list("abab")}), [0, 1, 0, 1]).save(tmp_path)
    weights, text = tmp_path / "model.safetensors", tmp_path / "model.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        FMClassifier.load(tmp_path)
    weights.write_bytes(whole)
    text.write_text(text.read_text().replace('"dim": 16', '"dim": 8'))
    with pytest.raises(ValueError, match=r"model.safetensors is damaged, or of another model"):
        FMClassifier.load(tmp_path)
    text.write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="holds no click model"):
        FMClassifier.load(tmp_path)


def test_what_is_no_table_is_told_what_to_be():
    table, y = pd.DataFrame({"a": list("abab"), "x": [0.5, 1.5, 0.0, 3.0]}), [0, 1, 0, 1]
    model = FMClassifier(max_epochs=1, dim=4)
    for held in (table.to_dict("list"), table.to_dict("records")):
        with pytest.raises(ValueError, match=r"X is a (dict|list), no table; make one of it: pandas.DataFrame\(X\)"):
            model.fit(held, y)
    with pytest.raises(ValueError, match="X holds no rows"):
        model.fit(table[:0], y[:0])
    with pytest.raises(ValueError, match="y is 'clicked', which names a column only where X is a path"):
        model.fit(table, "clicked")
    with pytest.raises(ValueError, match="'a': columns without names must be numbers; of text make a table"):
        model.fit(table.to_numpy(), y)
    model.fit(table, y)
    with pytest.raises(ValueError, match=r"X is no table, but the model goes by its columns: \['a', 'x'\]"):
        model.predict_proba(table.to_numpy())
    with pytest.raises(ValueError, match=r"X is the path 't.parquet'; here rows are needed"):
        model.export("t.parquet")


def test_a_row_without_a_probability_is_named():
    table = pd.DataFrame({"x": [0.5, 1.5, 0.0, 3.0], "z": [1.0, 0.0, 2.0, 5.0]})
    model = FMClassifier(max_epochs=1).fit(table, [0, 1, 0, 1])
    # The square of a sum is infinite, and from it squares are taken away that are so too.
    with pytest.raises(ValueError, match="row 2 has no probability: a number in it is too far from those of training"):
        model.predict_proba(pd.DataFrame({"x": [1.0, 2.0, 1e37], "z": [1.0, 2.0, 1e37]}))
