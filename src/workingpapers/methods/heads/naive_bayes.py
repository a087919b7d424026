"""Tied Gaussian naive Bayes, the generative linear probe.

A linear probe is usually logistic regression. This one is generative: each class is a Gaussian, all classes share one
variance per dimension, and the fit is a single pass of means and variances. It is linear too:

    mu_k = mean of class k;   v = sum_k pi_k var_k;   pi_k = m_k / m
    score_k(x) = log pi_k - 1/2 sum_j (x_j - mu_kj)^2 / v_j + const
               = w_k . x + b_k      with  w_k = mu_k / v,   b_k = log pi_k - 1/2 sum_j mu_kj^2 / v_j

Its error approaches its own limit with O(log n) examples in n dimensions where logistic regression needs O(n): with few
labels the generative probe can win, with many the discriminative one usually overtakes it.

Source: Zheng et al., "Revisiting Discriminative vs. Generative Classifiers: Theory and Implications", ICML 2023,
arXiv 2302.02334, section 5 and the authors' published code (its variances, priors and smoothing).
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import nn


class TiedGaussianNB(ClassifierMixin, BaseEstimator):
    """Naive Bayes with one variance per dimension, pooled over the classes: a linear classifier in closed form.

    Not `sklearn.naive_bayes.GaussianNB`, whose variances differ by class (a quadratic boundary) and which is far worse
    with few examples. The posteriors are over-confident when dimensions are dependent; calibrate them before using
    their log loss.

    Args:
        var_smoothing: what is added to every class variance (1e-9, as published). A dimension that never varies within
            a class would otherwise get an infinite weight.
        smoothing: "absolute" adds `var_smoothing` itself, as published; "relative" adds `var_smoothing` times the
            largest variance of any dimension of the first batch, as scikit-learn's GaussianNB does.
        priors: (K,) class probabilities in the order of `classes_`; None takes the training frequencies.

    Attributes:
        classes_: (K,) labels; class_count_: (K,) summed weights; class_prior_: (K,).
        theta_: (K, n) class means; var_: (n,) pooled variance, smoothing included.
        coef_, intercept_: (K, n) and (K,), so that scores are X @ coef_.T + intercept_ (one row for two classes:
            the second class's minus the first's, as scikit-learn's linear classifiers do).
    """

    def __init__(
        self,
        *,
        var_smoothing: float = 1e-9,
        smoothing: Literal["absolute", "relative"] = "absolute",
        priors: ArrayLike | None = None,
    ) -> None:
        self.var_smoothing = var_smoothing
        self.smoothing = smoothing
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to X (m, n) and labels y (m,); a weight of 2 counts a row twice.

        Raises:
            ValueError: fewer than two classes, values that are not finite, or an option outside its range.
        """
        for name in ("classes_", "coef_"):  # a fit that fails leaves nothing fitted
            self.__dict__.pop(name, None)
        return self.partial_fit(X, y, classes=y, sample_weight=sample_weight)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Update the fit with a batch; any split into batches gives the fit of the whole.

        Args:
            X: (m, n) features.
            y: (m,) labels.
            classes: (K,) every label that any batch will hold; needed at the first call only.
            sample_weight: (m,) non-negative weights; None weighs every row 1.

        Raises:
            ValueError: labels outside `classes`, or a first call without `classes`.
        """
        first = not hasattr(self, "classes_")
        features, labels = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(labels)
        if first:
            self._start(features, classes)
        unknown = np.setdiff1d(labels, self.classes_).tolist()
        if unknown:
            raise ValueError(f"y holds labels that classes does not: {unknown}; classes: {self.classes_.tolist()}")
        weight = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        self._merge(features, np.searchsorted(self.classes_, labels), weight)
        self._finish()
        return self

    def _start(self, X: NDArray[np.float64], classes: ArrayLike | None) -> None:
        if classes is None:
            raise ValueError("the first call of partial_fit needs `classes`, every label that will be seen")
        if self.smoothing not in ("absolute", "relative"):
            raise ValueError(f"smoothing is {self.smoothing!r}; allowed: 'absolute', 'relative'")
        if not self.var_smoothing >= 0:
            raise ValueError(f"var_smoothing is {self.var_smoothing!r}; it must be 0 or more")
        self.classes_ = np.unique(np.asarray(classes))
        count = len(self.classes_)
        if count < 2:
            raise ValueError(f"TiedGaussianNB needs at least two classes; got one class: {self.classes_[0]}")
        scale = X.var(axis=0).max() if self.smoothing == "relative" else 1.0
        self.epsilon_ = self.var_smoothing * scale
        self.class_count_ = np.zeros(count)
        self.theta_ = np.zeros((count, X.shape[1]))
        self._scatter = np.zeros((count, X.shape[1]))  # sum of squared deviations from the class mean

    def _merge(self, X: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]) -> None:
        """Merge a batch into the running means and scatters (Chan, Golub and LeVeque, 1979)."""
        indicator = csr_array((weight, (y, np.arange(len(X)))), shape=(len(self.classes_), len(X)))
        count = indicator.sum(axis=1)
        seen = count > 0
        mean = np.zeros_like(self.theta_)
        mean[seen] = (indicator @ X)[seen] / count[seen, None]
        deviation = X - mean[y]  # centred first: sums of raw squares would cancel
        scatter = indicator @ np.square(deviation, out=deviation)
        total = self.class_count_ + count
        share = np.divide(count, total, out=np.zeros_like(total), where=total > 0)
        shift = mean - self.theta_
        self._scatter += scatter + (self.class_count_ * share)[:, None] * shift**2
        self.theta_ += share[:, None] * shift
        self.class_count_ = total

    def _finish(self) -> None:
        """Turn counts, means and scatters into the linear classifier."""
        total = self.class_count_.sum()
        if total == 0:
            raise ValueError("sample_weight is zero for every row")
        # Pooling with the training frequencies, whatever the priors are: sum_k (m_k / m) (scatter_k / m_k + eps).
        self.var_ = self._scatter.sum(axis=0) / total + self.epsilon_
        self.class_prior_ = self.class_count_ / total if self.priors is None else self._checked_priors()
        # A dimension with no variance at all (only without smoothing) carries no evidence.
        precision = np.divide(1.0, self.var_, out=np.zeros_like(self.var_), where=self.var_ > 0)
        self._weights = self.theta_ * precision
        with np.errstate(divide="ignore"):  # a class not seen yet has prior 0 and score -inf
            self._biases = np.log(self.class_prior_) - 0.5 * (self.theta_ * self._weights).sum(axis=1)
        binary = len(self.classes_) == 2
        self.coef_ = np.diff(self._weights, axis=0) if binary else self._weights
        self.intercept_ = np.diff(self._biases) if binary else self._biases

    def _checked_priors(self) -> NDArray[np.float64]:
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != self.classes_.shape or (priors < 0).any() or not np.isclose(priors.sum(), 1.0):
            raise ValueError(f"priors must be {len(self.classes_)} probabilities that sum to 1; got {self.priors!r}")
        return priors

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the scores (m, K), or with two classes the (m,) log odds of the second."""
        check_is_fitted(self, "coef_")
        features = validate_data(self, X, dtype=np.float64, reset=False)
        scores = features @ self.coef_.T + self.intercept_
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the log posteriors, (m, K)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return log_softmax(scores, axis=1)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the posteriors, (m, K)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row, (m,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def to_linear(self) -> nn.Linear:
        """Return the same classifier as a layer with K outputs, to initialise or to continue as a linear probe."""
        check_is_fitted(self, "coef_")
        linear = nn.Linear(self.theta_.shape[1], len(self.classes_))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(self._weights))
            linear.bias.copy_(torch.from_numpy(self._biases))
        return linear


def naive_log_posterior(
    X: NDArray[np.float64], y: NDArray[np.int64], queries: NDArray[np.float64], eps: float = 1e-9
) -> NDArray[np.float64]:
    """Return the log posteriors (q, K) of `queries` by the definition: a loop over classes and Gaussian densities.

    Args:
        X: (m, n) training features.
        y: (m,) labels 0..K-1, each of which occurs.
        queries: (q, n) features to score.
        eps: what is added to every class variance.
    """
    classes, count = np.unique(y, return_counts=True)
    prior = count / len(y)
    variance = sum(p * (X[y == k].var(axis=0) + eps) for k, p in zip(classes, prior, strict=True))
    joint = np.empty((len(queries), len(classes)))
    for k, p in enumerate(prior):
        mean = X[y == classes[k]].mean(axis=0)
        log_density = -0.5 * np.log(2 * np.pi * variance) - (queries - mean) ** 2 / (2 * variance)
        joint[:, k] = np.log(p) + log_density.sum(axis=1)
    return log_softmax(joint, axis=1)
