"""Metrics against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from workingpapers.methods.recommenders.metrics import auc, calibration, gauc, log_loss, ndcg_at, ranks, recall_at


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_gauc_is_the_weighted_mean_of_each_groups_auc(seed):
    rng = np.random.default_rng(seed)
    y, g = rng.integers(2, size=60), rng.integers(8, size=60)
    s = rng.integers(5, size=60) / 4  # ties
    groups = [g == k for k in np.unique(g) if len(np.unique(y[g == k])) == 2]
    expected = np.average([roc_auc_score(y[m], s[m]) for m in groups], weights=[m.sum() for m in groups])
    np.testing.assert_allclose(gauc(y, s, g), expected, rtol=1e-12)


def test_one_group_is_the_auc():
    y, s = [0, 1, 1, 0, 1], [0.1, 0.4, 0.35, 0.8, 0.9]
    assert gauc(y, s, ["u"] * 5) == pytest.approx(auc(y, s))


def test_labels_of_one_class_are_refused():
    with pytest.raises(ValueError, match="two classes"):
        auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="no group"):
        gauc([1, 0], [0.1, 0.2], ["u", "v"])
    with pytest.raises(ValueError, match="scores hold NaN"):
        gauc([0, 1], [np.nan, 0.2], ["u", "u"])
    with pytest.raises(ValueError, match="at least one click"):
        calibration([0, 0], [0.1, 0.2])


def test_log_loss_and_calibration():
    assert log_loss([1, 0], [0.8, 0.4]) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert log_loss([1], [0.0]) == pytest.approx(-np.log(1e-7))  # never infinite
    assert calibration([1, 0, 0, 1], [0.5, 0.5, 0.25, 0.25]) == pytest.approx(0.75)


def test_ranks_leave_out_what_was_seen():
    scores = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.2, 0.2, 0.2, 0.1]])
    targets = torch.tensor([1, 0])
    assert ranks(scores.clone(), targets).tolist() == [2.0, 1.0]  # the tie of three puts it in the middle
    seen = torch.tensor([[0, 1, -1], [-1, -1, -1]])
    assert ranks(scores.clone(), targets, seen).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="NaN"):
        ranks(torch.tensor([[float("nan"), 1.0]]), torch.tensor([1]))


def test_ndcg_and_recall_against_scikit_learn():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(20, 30)), rng.integers(30, size=20)
    places = ranks(torch.from_numpy(scores), torch.from_numpy(targets))
    relevance = np.eye(30)[targets]
    assert ndcg_at(places, 10) == pytest.approx(ndcg_score(relevance, scores, k=10), abs=1e-6)
    top = np.argsort(-scores, axis=1)[:, :10]
    assert recall_at(places, 10) == pytest.approx((top == targets[:, None]).any(1).mean())
