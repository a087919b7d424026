"""Training of recommenders: what is learnt, which epoch is kept, that it can be repeated, saved and loaded."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from workingpapers.methods.recommenders.fmrlrec import FMRLRecRecommender
from workingpapers.methods.recommenders.neural import NeuralRecommender
from workingpapers.methods.recommenders.sequences import Log, last_of
from workingpapers.methods.recommenders.sequential import GRU4RecRecommender, SASRecRecommender
from workingpapers.methods.recommenders.ssl_items import TwoTowerRecommender


def log_of(*histories, items=None, features=None):
    """Return a log of histories given as lists of positions."""
    count = items or 1 + max(max(history, default=0) for history in histories)
    return Log(
        np.array([f"i{i}" for i in range(count)], object),
        np.array([f"u{i}" for i in range(len(histories))], object),
        [np.array(history, np.int64) for history in histories],
        features,
    )


class Transitions(nn.Module):
    """A table of scores of the next item: what a chain of order one needs."""

    def __init__(self, num_items):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_items + 1, num_items))

    def loss(self, ids, labels):
        real = labels != 0
        return nn.functional.cross_entropy(self.table[ids[real]], labels[real] - 1)

    def scores(self, ids):
        return last_of(self.table[ids], ids)


class Chain(NeuralRecommender):
    """Learns which item follows which."""

    def __init__(self, **options):
        super().__init__(**options)

    def _build(self, log):
        return Transitions(len(log.items))


def cycles(users=20, length=9, items=20, features=None):
    """Return a log in which item i + 1 always follows item i."""
    rng = np.random.default_rng(0)
    return log_of(
        *[(rng.integers(items) + np.arange(length)) % items for _ in range(users)], items=items, features=features
    )


def test_training_finds_the_chain_keeps_the_best_epoch_and_can_be_repeated():
    options = {"learning_rate": 0.1, "max_epochs": 12, "patience": 3, "random_state": 3, "batch_size": 8}
    model = Chain(**options).fit(cycles())
    assert (model.score([np.array([i]) for i in range(20)]).argmax(dim=1) == (torch.arange(20) + 1) % 20).all()
    assert max(model.history_) == 1.0
    assert len(model.history_) <= 1 + model.history_.index(1.0) + 3
    again = Chain(**options).fit(cycles())
    assert torch.equal(model.model_.table, again.model_.table)
    assert model.parameters_ == 21 * 20
    assert Chain(max_epochs=3).get_params()["max_epochs"] == 3


def test_the_last_item_of_a_history_is_validated_on_and_not_trained_on():
    seen = []

    class Watched(Chain):
        def _examples(self, log):
            seen.extend(log.histories)
            return super()._examples(log)

    Watched(max_epochs=1, random_state=0).fit(log_of([0, 1, 2, 3], [4, 5], [6], items=7))
    assert [history.tolist() for history in seen] == [[0, 1, 2], [4, 5], [6]]


def test_training_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    Chain(max_epochs=2, random_state=0).fit(cycles())
    assert "training, 2 epochs at most" in capsys.readouterr().err


def test_histories_of_two_train_without_a_validation():
    model = Chain(max_epochs=2, random_state=0).fit(log_of([0, 1], [1, 2]))
    assert model.history_ == []


def test_a_loss_that_is_not_finite_is_named():
    class Broken(Chain):
        def _build(self, log):
            model = Transitions(len(log.items))
            model.table.data.fill_(torch.nan)
            return model

    with pytest.raises(ValueError, match="the loss of epoch 1 is nan"):
        Broken().fit(cycles())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 0}, "max_len is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": np.inf}, "learning_rate is inf"),
        ({"weight_decay": np.nan}, "weight_decay nan"),
        ({"max_len": "50"}, "max_len is '50'; it must be a whole number"),
        ({"dropout": None}, "dropout is None"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Chain(**options).fit(cycles())


def item_table():
    return pd.DataFrame({"kind": [f"k{i % 3}" for i in range(20)], "tags": ["a|b", "c"] * 10, "size": np.arange(20.0)})


SMALL = {"dim": 8, "max_epochs": 1, "random_state": 0}


@pytest.mark.parametrize(
    "make",
    [
        lambda: SASRecRecommender(blocks=1, **SMALL),
        lambda: GRU4RecRecommender(**SMALL),
        lambda: FMRLRecRecommender(sizes=(4, 8), item_features=np.random.default_rng(0).normal(size=(20, 3)), **SMALL),
        lambda: FMRLRecRecommender(sizes=(4, 8), **SMALL),
        lambda: TwoTowerRecommender(kinds={"tags": "multi"}, **SMALL),
    ],
    ids=["sasrec", "gru4rec", "fmrlrec", "fmrlrec-ids", "two-tower"],
)
def test_what_is_loaded_scores_as_what_was_saved(make, tmp_path):
    histories = [np.array([3, 4, 5]), np.array([7])]
    one = make().fit(cycles(features=item_table()))
    one.save(tmp_path / "model")
    other = type(one).load(tmp_path / "model")
    assert torch.equal(one.score(histories), other.score(histories))
    assert one.recommend(histories, 3).tolist() == other.recommend(histories, 3).tolist()
    assert (one.history_, one.parameters_) == (other.history_, other.parameters_)


def test_features_of_every_type_and_drawn_options_are_loaded(tmp_path):
    features = item_table().assign(code=pd.Series([1, None] * 10, dtype=object), series=pd.array([1, 2] * 10, "Int64"))
    one = TwoTowerRecommender(kinds={"tags": "multi"}, **SMALL | {"dim": np.int64(8)}).fit(cycles(features=features))
    GRU4RecRecommender(dim=np.int64(8), batch_size=np.int64(8), max_epochs=1).fit(cycles())
    one.save(tmp_path)
    assert torch.equal(one.score([np.array([1])]), TwoTowerRecommender.load(tmp_path).score([np.array([1])]))


def test_a_cut_model_is_saved_too(tmp_path):
    features = np.random.default_rng(0).normal(size=(20, 3))
    one = FMRLRecRecommender(sizes=(4, 8), item_features=features, **SMALL).fit(cycles()).cut(4)
    one.save(tmp_path)
    assert torch.equal(one.score([np.array([1])]), FMRLRecRecommender.load(tmp_path).score([np.array([1])]))


def test_folders_that_hold_something_else_are_named(tmp_path):
    with pytest.raises(FileNotFoundError):
        Chain.load(tmp_path / "nothing")
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="holds no recommender"):
        Chain.load(tmp_path)
    GRU4RecRecommender(**SMALL).fit(cycles()).save(tmp_path)
    with pytest.raises(ValueError, match="GRU4RecRecommender; expected 'workingpapers recommender 1', Chain"):
        Chain.load(tmp_path)
    for name in ("model.safetensors", "catalogue.parquet"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="are damaged"):
            GRU4RecRecommender.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    held = json.loads((tmp_path / "model.json").read_text())
    for text, message in [
        (json.dumps(held | {"format": "another"}), "holds 'another'"),
        (json.dumps(held).replace('"dim": 8', '"dim": 4'), "are damaged, or of another model"),
        (json.dumps(held).replace('"dim": 8', '"dim": "8"'), "dim is '8'; it must be a whole number"),
        (json.dumps(held).replace('"dim"', '"dimm"'), "holds no recommender: .*'dimm'"),
        (b"\xff\xff", "holds no recommender"),
    ]:
        (tmp_path / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=message):
            GRU4RecRecommender.load(tmp_path)


def test_a_catalogue_that_would_not_come_back_is_not_saved(tmp_path):
    log = cycles(features=item_table())
    pairs = replace(log, items=np.fromiter(((i, 1) for i in range(20)), object), features=None)
    named = replace(log, features=item_table().rename(columns={"size": "item label"}))
    for one, message in ((pairs, r"Parquet does not keep labels such as \(0, 1\)"), (named, "is called 'item label'")):
        model = GRU4RecRecommender(**SMALL).fit(one)
        with pytest.raises(ValueError, match=message):
            model.save(tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_a_fit_that_fails_leaves_no_recommender():
    model = Chain(max_epochs=1, random_state=0).fit(cycles())
    with pytest.raises(ValueError, match="max_len is 0"):
        model.set_params(max_len=0).fit(cycles(items=30))
    with pytest.raises(NotFittedError):
        model.score([np.array([1])])


def test_loading_leaves_the_callers_draws_alone(tmp_path):
    GRU4RecRecommender(**SMALL).fit(cycles()).save(tmp_path)
    before = torch.get_rng_state()
    GRU4RecRecommender.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
