"""The usual recommenders against definitions: counts, cosines, causality, the full softmax, a chain to learn."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from workingpapers.methods.recommenders.sequences import Log, padded
from workingpapers.methods.recommenders.sequential import (
    ALSRecommender,
    CausalTransformer,
    ContentRecommender,
    GRU4RecRecommender,
    GRUBody,
    ItemKNNRecommender,
    PopularityRecommender,
    SASRecRecommender,
    TiedSequenceModel,
    matrix,
)


def random_log(users=12, items=9, seed=0):
    rng = np.random.default_rng(seed)
    return Log(
        np.arange(items).astype(object),
        np.arange(users).astype(object),
        [rng.integers(items, size=rng.integers(1, 8)) for _ in range(users)],
    )


def chain(users=200, items=20):
    """Return a log of pairs, in which item i + 3 follows item i; pairs are too short to be validated on."""
    histories = [np.array([user, user + 3]) % items for user in range(users)]
    return Log(np.arange(items).astype(object), np.arange(users).astype(object), histories)


def test_popularity_is_a_count():
    log = random_log()
    scores = PopularityRecommender().fit(log).score([np.array([1]), np.array([2, 3])])
    wanted = [sum(list(history).count(item) for history in log.histories) for item in range(9)]
    assert scores.tolist() == [wanted, wanted]


@pytest.mark.parametrize(("neighbours", "shrink"), [(100, 0.0), (3, 10.0)])
def test_item_knn_equals_its_definition(neighbours, shrink):
    log, history = random_log(), np.array([2, 5, 2])
    people = [{u for u, h in enumerate(log.histories) if item in h} for item in range(9)]
    similarity = np.array([[len(a & b) / max(np.sqrt(len(a) * len(b)) + shrink, 1e-9) for b in people] for a in people])
    np.fill_diagonal(similarity, 0)
    for row in similarity:
        if neighbours < len(row):
            row[row < sorted(row)[-neighbours]] = 0
    scores = ItemKNNRecommender(neighbours=neighbours, shrink=shrink).fit(log).score([history])
    np.testing.assert_allclose(scores[0], similarity[:, 2] + similarity[:, 5], atol=1e-6)  # float32


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch):
    log, histories = random_log(items=9), [np.array([i]) for i in range(9)]
    whole = ItemKNNRecommender(neighbours=4).fit(log).score(histories)
    monkeypatch.setattr("workingpapers.methods.recommenders.sequential.BLOCK", 2)
    assert torch.equal(ItemKNNRecommender(neighbours=4).fit(log).score(histories), whole)


def test_content_equals_its_definition():
    log, features = random_log(items=4), np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.5]])
    scores = ContentRecommender(item_features=features).fit(log).score([np.array([0, 3, 0]), np.array([2])])
    half = np.sqrt(0.5)  # cosine of 45 degrees
    np.testing.assert_allclose(scores, [[1, 2 * half, 0, 1], [0, 0, 0, 0]], atol=1e-6)  # float32


@pytest.mark.parametrize("features", [np.zeros((3, 2)), np.zeros(4), np.full((4, 1), np.nan)])
def test_bad_content_is_named(features):
    with pytest.raises(ValueError, match=r"must be finite and \(4, D\)"):
        ContentRecommender(item_features=features).fit(random_log(items=4))


@pytest.mark.parametrize("kind", [PopularityRecommender, ItemKNNRecommender, SASRecRecommender, GRU4RecRecommender])
def test_people_with_nothing_or_one_item_and_long_histories(kind):
    """Nobody's history is too short to be in the log, nor too long to be asked for."""
    rng = np.random.default_rng(0)
    histories = [np.zeros(0, np.int64), np.array([3]), *(rng.integers(9, size=n) for n in (2, 3, 40))]
    log = Log(np.arange(9).astype(object), np.arange(5).astype(object), histories)
    neural = kind in (SASRecRecommender, GRU4RecRecommender)
    model = kind(**({"dim": 8, "max_len": 6, "max_epochs": 1, "random_state": 0} if neural else {})).fit(log)
    long = histories[-1]
    assert torch.isfinite(model.score([np.array([3]), long])).all()
    if neural:  # what lies before the latest six is not read
        torch.testing.assert_close(model.score([long]), model.score([long[-6:]]))


def test_the_matrix_holds_ones():
    assert matrix([np.array([1, 1]), np.array([0])], 3).toarray().tolist() == [[0, 1, 0], [1, 0, 0]]


def bodies():
    torch.manual_seed(0)
    return [CausalTransformer(8, 6, 2, 2, 0.0), GRUBody(8)]


@pytest.mark.parametrize("body", bodies(), ids=["transformer", "gru"])
def test_states_depend_on_the_past_alone(body):
    x = torch.randn(2, 6, 8, requires_grad=True)
    # A random direction: along ones a final norm has no gradient.
    (gradient,) = torch.autograd.grad((body(x)[:, 2] * torch.randn(8)).sum(), x)
    assert (gradient[:, 3:] == 0).all()
    assert (gradient[:, :3] != 0).any(dim=2).all()


@pytest.mark.parametrize("body", bodies(), ids=["transformer", "gru"])
def test_padding_changes_nothing_and_the_loss_is_the_full_softmax(body):
    torch.manual_seed(1)
    model = TiedSequenceModel(9, body, 8).eval()
    rows = [np.array([3, 1, 4]), np.array([2, 6, 5, 3, 8])]
    together = model.scores(padded(rows, 6))
    for row, history in enumerate(rows):
        # Matrices of other shapes add in another order: float32 rounding.
        torch.testing.assert_close(model.scores(padded([history], 6))[0], together[row], rtol=1e-4, atol=1e-6)
    ids = padded([row[:-1] for row in rows], 6)
    labels = padded([row[1:] for row in rows], 6)
    wanted = []
    for row in rows:
        for i in range(1, len(row)):
            scores = model.scores(padded([row[:i]], 6))[0]
            wanted.append(F.cross_entropy(scores, torch.tensor(row[i])))
    torch.testing.assert_close(model.loss(ids, labels), torch.stack(wanted).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [SASRecRecommender, GRU4RecRecommender])
def test_networks_learn_a_chain(kind):
    model = kind(dim=16, learning_rate=0.02, max_epochs=15, batch_size=20, random_state=0).fit(chain())
    best = model.score([np.array([i]) for i in range(20)]).argmax(dim=1)
    assert (best == (torch.arange(20) + 3) % 20).sum() >= 18  # guesses are right once in twenty


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads to divide 16"):
        SASRecRecommender(dim=16, heads=3).fit(chain())


@pytest.mark.parametrize(
    ("kind", "shown"), [(ItemKNNRecommender, "finding neighbours"), (ALSRecommender, "alternating least squares")]
)
def test_fitting_shows_how_far_it_is_where_it_takes_long(kind, shown, monkeypatch, capsys):
    if kind is ALSRecommender:
        pytest.importorskip("implicit")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    kind().fit(random_log())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    kind().fit(random_log())
    out, err = capsys.readouterr()
    assert out == ""
    assert shown in err
    assert ("9/9" if kind is ItemKNNRecommender else "15/15") in err


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"shrink": -1}, {"shrink": float("nan")}])
def test_bad_neighbours_are_named(options):
    with pytest.raises(ValueError, match="need 1 or more, 0 or more"):
        ItemKNNRecommender(**options).fit(random_log())


@pytest.mark.skipif(importlib.util.find_spec("implicit") is not None, reason="implicit is installed")
def test_als_says_what_it_needs():
    with pytest.raises(ValueError, match=r"pip install 'workingpapers\[implicit\]'"):
        ALSRecommender().fit(random_log())


def test_als_tells_two_tastes_apart():
    pytest.importorskip("implicit")
    rng = np.random.default_rng(0)
    histories = [rng.permutation(5)[:4] + 5 * (user % 2) for user in range(40)]
    log = Log(np.arange(10).astype(object), np.arange(40).astype(object), histories)
    scores = ALSRecommender(factors=2, random_state=0).fit(log).score([np.array([0, 1]), np.array([7, 8])])
    assert (scores[0, :5].min() > scores[0, 5:].max(), scores[1, 5:].min() > scores[1, :5].max()) == (True, True)
