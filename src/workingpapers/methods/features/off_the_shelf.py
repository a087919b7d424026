"""Off-the-shelf features: a frozen network, L2 normalisation, a linear SVM, several views.

The ancestor of every linear probe. f(x) in R^D is a hidden layer of a network trained for something else.

    CNN-SVM      z = f / ||f||_2, a linear SVM on z
    CNNaug-SVM   V views of each image, z_v = L2(sign(f_v) |f_v|^p); every training view is a sample with its image's
                 label; a test image is scored by sum_v (w_k . z_v + b_k)

L2 normalisation is scikit-learn's `Normalizer`. The paper's second half, retrieval, is in `patch_retrieval`.

The SVM here is scikit-learn's LinearSVC: one-vs-rest and squared hinge, which scales to many views, where the paper has
the plain hinge and one-vs-one votes. C, the angle of the rotations and the border they bring in are choices made here.

Source: Sharif Razavian et al., "CNN Features off-the-shelf: an Astounding Baseline for Recognition", CVPR Workshops
2014, arXiv 1403.6382, section 3; the whitening is that of section 4.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from sklearn.utils import check_random_state
from sklearn.utils.extmath import row_norms
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data
from torch import Tensor
from torch.nn import functional as F

FLOATS = [np.float64, np.float32]
SEARCHED_C = np.logspace(-2, 3, 6)


class SignedPower(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """The component-wise transform sign(f) |f|^p.

    Below 1 it compresses bursts (the signed root, for classification); above 1 it stresses the large components (the
    paper's retrieval uses 2).

    Args:
        p: the exponent, above 0; 0.5, the signed root.
    """

    def __init__(self, *, p: float = 0.5) -> None:
        self.p = p

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Check features X (N, D); there is nothing to learn.

        Raises:
            ValueError: features that are not finite, or an exponent that is not above 0.
        """
        validate_data(self, X, dtype=FLOATS)
        _check_power("p", self.p)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the transformed features, (N, D)."""
        check_is_fitted(self, "n_features_in_")
        return _signed_power(validate_data(self, X, dtype=FLOATS, reset=False), self.p)


class PCAWhitener(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Project on the principal components, scale each to unit variance and normalise every row again.

    Fit it on images that are not the queries. N of them have N - 1 directions at most in which they vary.

    Args:
        n_components: how many components are kept; None keeps all that have variance. The paper keeps 500.
        eps: added to every variance before the square root, in squared units of the features; 1e-12, next to nothing;
            more damps the smallest ones.
        renormalize: whether every row gets unit L2 length at the end; True, as in the paper.

    Attributes:
        pca_: the fitted PCA.
        scale_: (n_components,) what each component is divided by.
    """

    def __init__(self, *, n_components: int | None = None, eps: float = 1e-12, renormalize: bool = True) -> None:
        self.n_components = n_components
        self.eps = eps
        self.renormalize = renormalize

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit to features X (N, D).

        Raises:
            ValueError: fewer than two rows, features that are not finite, more components than have variance, or an
                option outside its range.
        """
        features = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if not self.eps >= 0:
            raise ValueError(f"eps is {self.eps!r}; it must be 0 or more")
        self.pca_ = PCA(self.n_components, svd_solver="full").fit(features)
        variance = self.pca_.explained_variance_
        # A direction without variance would be rounding errors here and, divided by almost 0, drown all others later.
        varied = variance[variance > np.finfo(float).eps * variance[0]]
        if len(varied) < (1 if self.n_components is None else len(variance)):
            raise ValueError(f"only {len(varied)} components have variance; n_components is {self.n_components}")
        self.scale_ = np.sqrt(varied + self.eps)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the whitened features, (N, n_components)."""
        check_is_fitted(self)
        features = self.pca_.transform(validate_data(self, X, dtype=np.float64, reset=False))
        white = features[:, : len(self.scale_)] / self.scale_
        return normalize(white) if self.renormalize else white

    @property
    def _n_features_out(self) -> int:
        return len(self.scale_)


def multi_view(images: Tensor, *, area: float = 4 / 9, degrees: float = 10.0) -> Tensor:
    """Return 16 views of each image, (B, 3, H, W) to (B, 16, 3, H, W), every one at the image's own size.

    The order is: the full image, its crops (centre, top left, top right, bottom left, bottom right), the rotations by
    `-degrees` and `degrees` (clockwise when positive), and the mirror images of these eight. What a rotation brings in
    at the corners is the image reflected at its border. Batch the calls: the result is 16 times the input.

    Args:
        images: floating point.
        area: the share of the image's area that a crop shows, above 0 and up to 1; 4/9, as in the paper.
        degrees: the angle of the rotations; 10, a choice made here.

    Raises:
        ValueError: images of another shape or type, NaN or infinity in them, or an area outside its range.
    """
    check_images(images)
    if not 0 < area <= 1:
        raise ValueError(f"area is {area!r}; it must be above 0 and at most 1")
    if not math.isfinite(degrees):
        raise ValueError(f"degrees is {degrees!r}; it must be finite")
    side = math.sqrt(area)
    places = [(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)]
    crops = [window(images, side, x * (1 - side), y * (1 - side)) for x, y in places]
    rotations = [_rotated(images, sign * math.radians(degrees)) for sign in (-1, 1)]
    views = torch.stack([images, *crops, *rotations], dim=1)
    return torch.cat([views, views.flip(-1)], dim=1)


def check_images(images: Tensor) -> None:
    """Refuse what is not a finite floating-point batch (B, 3, H, W), with a ValueError."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be floating point, (B, 3, H, W); got {tuple(images.shape)}, {images.dtype}")
    if not torch.isfinite(images).all():
        raise ValueError("the images hold NaN or infinity")


def window(images: Tensor, side: float, x: float, y: float) -> Tensor:
    """Return the window of relative side `side` around (x, y), coordinates from -1 to 1, at the full size."""
    return _warp(images, [[side, 0, x], [0, side, y]])


def _rotated(images: Tensor, angle: float) -> Tensor:
    """Return the images turned clockwise by `angle` in radians, without a change of aspect ratio."""
    ratio = images.shape[-2] / images.shape[-1]
    cos, sin = math.cos(angle), math.sin(angle)
    return _warp(images, [[cos, sin * ratio, 0], [-sin / ratio, cos, 0]])


def _warp(images: Tensor, matrix: list[list[float]]) -> Tensor:
    """Sample the images bilinearly at an affine map (2, 3) of the output's coordinates."""
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    theta = exact.new_tensor(matrix).expand(len(exact), 2, 3)
    grid = F.affine_grid(theta, list(exact.shape), align_corners=False)
    return F.grid_sample(exact, grid, padding_mode="reflection", align_corners=False).to(images.dtype)


class OffTheShelfClassifier(ClassifierMixin, BaseEstimator):
    """L2-normalised features and a linear SVM, over one view or several views of each image.

    Features are (N, D), one view, or (N, V, D), V views as from `multi_view`; the views of training and test may
    differ in number. Every training view is one sample; the decision values of a test image's views are summed.
    Multiplying any view's features by a positive factor changes nothing. LinearSVC keeps a copy of the training data
    of 16 bytes a number: 1.3 GB for 4,000 images of 16 views and 1,280 features.

    Args:
        C: inverse strength of the SVM's penalty; "auto" (the default) tries the powers of ten from 0.01 to 1000 on a
            quarter of each class's images, keeps the most accurate (the smallest of equals) and fits it again to all
            images. All views of an image are on the same side of that split.
        power: exponent p of the signed power before the normalisation; 1.0 leaves the features as they are.
        random_state: seed of the split that `C="auto"` makes; the SVM itself is deterministic.

    Attributes:
        classes_: (K,) labels.
        C_: the C of the final fit.
        svm_: the fitted LinearSVC.
        n_features_in_: D.
    """

    def __init__(
        self, *, C: float | str = "auto", power: float = 1.0, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.C = C
        self.power = power
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to features X, (N, D) or (N, V, D), and the labels y (N,) of the images.

        Raises:
            ValueError: features that are not finite, lengths that differ, one class, no class of two images when C is
                searched, or an option outside its range.
        """
        _check_power("power", self.power)
        if self.C != "auto" and (isinstance(self.C, str) or not 0 < self.C < math.inf):
            raise ValueError(f"C is {self.C!r}; allowed: 'auto' or a finite number above 0")
        labels = column_or_1d(validate_data(self, y=y), warn=True)
        views = self._normalised_views(X, reset=True)
        check_consistent_length(views, labels)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"OffTheShelfClassifier needs at least two classes; y holds one class: {self.classes_[0]}")
        self.C_ = self._search(views, targets) if isinstance(self.C, str) else self.C
        self.svm_ = _fit_svm(views, targets, self.C_)
        return self

    def _normalised_views(self, X: ArrayLike, reset: bool) -> NDArray[Any]:
        """Return the features as (N, V, D), each view raised to `power` and of unit length."""
        views = _signed_power(checked_views(self, X, reset), self.power)
        # What `normalize` does, but for it leaves rows shorter than 1e-6 in float32 as they are.
        lengths = row_norms(views.reshape(-1, views.shape[-1])).reshape(*views.shape[:2], 1)
        return views / np.where(lengths > 0, lengths, 1)

    def _search(self, views: NDArray[Any], targets: NDArray[np.int64]) -> float:
        """Return the C of the highest accuracy on held-out images, the smallest of equals."""
        held_out = _held_out_images(targets, check_random_state(self.random_state))
        accuracies = []
        for C in SEARCHED_C:
            svm = _fit_svm(views[~held_out], targets[~held_out], C)
            predicted = svm.classes_[_best(_summed_decision(svm, views[held_out]))]
            accuracies.append(np.mean(predicted == targets[held_out]))
        return float(SEARCHED_C[np.argmax(accuracies)])

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the decision values summed over the views: (N, K), or (N,) of the second class where K is 2."""
        check_is_fitted(self)
        return _summed_decision(self.svm_, self._normalised_views(X, reset=False))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the softmax of the summed decision values, (N, K).

        It orders the classes as `decision_function` does but it is not calibrated: an SVM's decision values are no
        log odds, and each further view sharpens the result. Two classes get the logistic function of their value.
        """
        scores = self.decision_function(X)
        return softmax(np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores, axis=1)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label of the highest summed decision value of each image, (N,)."""
        best = _best(self.decision_function(X))
        return self.classes_[best]


def checked_views(estimator: BaseEstimator, X: ArrayLike, reset: bool) -> NDArray[Any]:
    """Return features (N, D) or (N, V, D) as (N, V, D), checked by scikit-learn as N V rows of D features."""
    array = np.asarray(X)
    if array.ndim != 3:
        return validate_data(estimator, X, dtype=FLOATS, reset=reset)[:, None]
    rows = validate_data(estimator, array.reshape(-1, array.shape[-1]), dtype=FLOATS, reset=reset)
    return rows.reshape(array.shape)


def _check_power(name: str, power: float) -> None:
    if not 0 < power < math.inf:
        raise ValueError(f"{name} is {power!r}; it must be finite and above 0")


def _signed_power(features: NDArray[Any], p: float) -> NDArray[Any]:
    return features if p == 1 else np.sign(features) * np.abs(features) ** p


def _held_out_images(targets: NDArray[np.int64], rng: np.random.RandomState) -> NDArray[np.bool_]:
    """Return a mask (N,) of a quarter of each class's images, at least one of a class of two or more."""
    held_out = np.zeros(len(targets), dtype=bool)
    for k in np.unique(targets):
        images = rng.permutation(np.flatnonzero(targets == k))
        held_out[images[: max(len(images) // 4, min(len(images) - 1, 1))]] = True
    if not held_out.any():
        raise ValueError("C='auto' holds images out, and no class has two: give more images or a number as C")
    return held_out


def _fit_svm(views: NDArray[Any], targets: NDArray[np.int64], C: float) -> LinearSVC:
    """Fit the SVM to views (N, V, D), each with its image's target."""
    # The primal solver converges at any C. The intercept is penalised too: a scale of 10 makes that 100 times less.
    svm = LinearSVC(C=C, dual=False, intercept_scaling=10.0)
    return svm.fit(views.reshape(-1, views.shape[-1]), np.repeat(targets, views.shape[1]))


def _summed_decision(svm: LinearSVC, views: NDArray[Any]) -> NDArray[np.float64]:
    # The sum over views of a linear function is the function of the summed views, with V intercepts.
    scores = views.sum(axis=1, dtype=np.float64) @ svm.coef_.T + views.shape[1] * svm.intercept_
    return scores.ravel() if scores.shape[1] == 1 else scores


def _best(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
