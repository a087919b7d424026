"""What every gradient-trained head inherits."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from workingpapers.methods.heads.common import TOKENS, HeadClassifier


class MeanLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x.mean(dim=1) if x.ndim == 3 else x)


class Linear(HeadClassifier):
    """A linear head on vectors or on the mean of tokens."""

    def _build(self, in_features, num_classes):
        return MeanLinear(in_features, num_classes)


@parametrize_with_checks([Linear(max_epochs=60, learning_rate=0.05)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def data(seed=0, shape=(90, 4)):
    rng = np.random.default_rng(seed)
    y = np.arange(shape[0]) % 3
    X = rng.normal(size=shape) + 2 * np.eye(3, shape[-1])[y].reshape(len(y), *[1] * (len(shape) - 2), shape[-1])
    return X, y


def test_converges_to_logistic_regression():
    X, y = data()
    y = np.r_[y[30:], y[:30][::-1]]  # classes that overlap, so that the optimum without regularisation is finite
    head = Linear(max_epochs=500, learning_rate=0.1, weight_decay=0.0, batch_size=90, random_state=0).fit(X, y)
    peer = LogisticRegression(C=1e6, max_iter=1000, tol=1e-8).fit(X, y)  # practically unregularised
    # 500 steps of a decaying AdamW end within 1e-3 of the optimum that L-BFGS finds.
    np.testing.assert_allclose(head.predict_proba(X), peer.predict_proba(X), atol=1e-3)


@pytest.mark.parametrize("shape", [(90, 4), (90, 7, 4), (90, 4, 4)])
def test_vectors_and_tokens(shape):
    X, y = data(shape=shape)
    head = Linear(max_epochs=30, learning_rate=0.05, random_state=0).fit(X, y)
    assert head.n_features_in_ == 4
    assert head.score(X, y) > 0.7
    assert head.predict_proba(X).shape == (90, 3)


def test_the_seed_decides_everything_and_the_global_generator_is_left_alone():
    X, y = data()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, other = (Linear(max_epochs=3, random_state=seed).fit(X, y).predict_proba(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_features_are_used_without_a_copy_of_the_whole():
    X, y = data()
    half = X.astype(np.float16)
    a = Linear(max_epochs=5, random_state=0).fit(half, y).predict_proba(half)
    b = Linear(max_epochs=5, random_state=0).fit(half.astype(np.float32), y).predict_proba(half.astype(np.float32))
    np.testing.assert_array_equal(a, b)


def test_predictions_read_some_tokens_at_a_time():
    X, y = data(shape=(90, 1000, 4))
    head, sizes = Linear(max_epochs=1).fit(X, y), []
    head.module_.register_forward_hook(lambda module, args, out: sizes.append(args[0].shape[:2].numel()))
    head.predict(X)
    assert max(sizes) <= TOKENS
    assert sum(sizes) == 90 * 1000


def test_bad_input_is_named():
    X, y = data()
    with pytest.raises(ValueError, match="at least two classes; y holds one class: 0"):
        Linear().fit(X, np.zeros(90, int))
    with pytest.raises(ValueError, match="NaN"):
        Linear().fit(np.where(X > 2, np.nan, X), y)
    with pytest.raises(ValueError, match="X has 3 features, but Linear is expecting 4"):
        Linear(max_epochs=1).fit(X, y).predict(X[:, :3])
    vectors = Linear(max_epochs=1).fit(X, y)
    vectors._takes_tokens = False
    for use in (vectors.predict, lambda tokens: vectors.fit(tokens, y)):
        with pytest.raises(ValueError, match=r"X has 3 axes; Linear takes vectors \(N, D\): pool tokens first"):
            use(X[:, None])
    for name in ("max_epochs", "batch_size"):
        for value in (0, -1, 2.5, "3"):
            with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be a whole number, 1 or more"):
                Linear(**{name: value}).fit(X, y)


def test_a_loss_that_is_no_longer_finite_is_an_error_and_leaves_nothing_fitted():
    X, y = data()
    head = Linear(max_epochs=3)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 1: scale the features"):
        head.fit(X * 1e200, y)  # beyond float32
    with pytest.raises(NotFittedError):
        head.predict(X)
    head.fit(X, y)
    with pytest.raises(ValueError, match="the loss is"):
        head.fit(X * 1e200, np.array(["a", "b", "c"])[y])  # the old weights with the new labels would be wrong
    with pytest.raises(NotFittedError):
        head.predict(X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_modes_change_nothing(mode):
    X, y = data()
    expected = Linear(max_epochs=3, random_state=0).fit(X, y).predict_proba(X)
    with mode():
        np.testing.assert_array_equal(Linear(max_epochs=3, random_state=0).fit(X, y).predict_proba(X), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert Linear(max_epochs=3, random_state=0).fit(X, y).predict_proba(X).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)
