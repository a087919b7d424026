"""One Gaussian per feature level, fitted to normal images: anomalies lie far away in its Mahalanobis distance.

No network is trained. A frozen classifier's feature maps are averaged over space; per level l, from n normal images:

    mu_l = mean of z_l (C_l,);   S_l = (1 - rho) S_emp + rho tr(S_emp) / C_l I   (C_l, C_l), S_emp dividing by n
    M_l(x) = sqrt((z_l - mu_l)^T S_l^-1 (z_l - mu_l));   anomaly score = mean of M_l over the levels

The shrinkage rho is Ledoit and Wolf's: with a few hundred images and up to 1792 channels S_emp alone is singular.
Square roots are taken before the mean, or wide levels would drown the narrow ones. What tells normal from anomalous
lies mostly in the directions of *small* normal variance: "npca", the reverse of PCA, drops those of large variance.

Two facts make the fit cheap. rho needs only tr(S_emp), ||S_emp||_F and the lengths of the rows, which no rotation
changes; and the centred rows span at most n directions, outside of which S_l is a multiple of the identity. So when
2 n < C all is computed in an orthonormal basis Q (C, n) of the rows:

    M^2 = || L^-1 Q^T d ||^2 + || d - Q Q^T d ||^2 / a,   d = z - mu,   a = rho tr(S_emp) / C,   L L^T = Q^T S Q

Source: Rippel, Mertens and Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for Anomaly
Detection", ICPR 2020, arXiv 2005.14140; Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004; Chen et al., "Shrinkage algorithms for MMSE covariance estimation", 2010 (OAS).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, qr, solve_triangular, svd
from scipy.sparse import issparse
from scipy.stats import chi2
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

Array = NDArray[np.float64]
COVARIANCES = ("ledoit_wolf", "empirical", "oas", "diag", "identity")
REDUCTIONS = (None, "pca", "npca")


class GaussianAnomalyDetector(OutlierMixin, BaseEstimator):
    """Mahalanobis distance to normal data, averaged over feature levels; fitted in closed form in float64.

    X is one matrix (n, C), or several levels as a list or a dict of matrices (n, C_l); feature maps are averaged over
    space first. Features go in as they are: standardising them would change what the shrinkage shrinks to.

    Args:
        covariance: "ledoit_wolf" (as published) and "oas" shrink to a multiple of the identity by their formulas;
            "empirical" needs more rows than dimensions; "diag" keeps the variances (standardised Euclidean distance),
            "identity" nothing (Euclidean distance). All divide by n.
        reduction: None keeps all channels; "pca" the leading components up to the one at which the share of variance
            exceeds the threshold; "npca" that one, the one before and all behind. The Gaussian is fitted to what is
            left. Directions without variance are dropped, so at most n - 1 components exist.
        variance_threshold: that share, 0.99 as published.
        fpr: false-positive rate of `predict` on normal data, 1e-3.

    Attributes:
        levels_: name of each level (0, 1, ... unless a dict named them) to its Gaussian: `mean` (C,) and
            `dimensions`, the degrees of freedom: C, or the number of components kept.
        n_features_in_: channels, of all levels together.
        offset_: minus the threshold at `fpr`; a lower `score_samples` is an anomaly.
    """

    def __init__(
        self,
        *,
        covariance: Literal["ledoit_wolf", "empirical", "oas", "diag", "identity"] = "ledoit_wolf",
        reduction: Literal["pca", "npca"] | None = None,
        variance_threshold: float = 0.99,
        fpr: float = 1e-3,
    ) -> None:
        self.covariance = covariance
        self.reduction = reduction
        self.variance_threshold = variance_threshold
        self.fpr = fpr

    def fit(self, X: Any, y: None = None) -> Self:
        """Fit one Gaussian per level to normal data X; y is ignored.

        Raises:
            ValueError: features that are not finite, levels of different lengths, fewer than two rows, a covariance
                that is singular (named with n and C), or an option outside its range.
        """
        for name, value, allowed in (
            ("covariance", self.covariance, COVARIANCES),
            ("reduction", self.reduction, REDUCTIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        for name, share in (("variance_threshold", self.variance_threshold), ("fpr", self.fpr)):
            if not 0 < share < 1:
                raise ValueError(f"{name} is {share!r}; it must lie between 0 and 1")
        self.levels_ = {
            name: _fit_gaussian(features, self.covariance, self.reduction, self.variance_threshold)
            for name, features in self._matrices(X, reset=True).items()
        }
        self._calibrated: float | None = None
        return self

    def _matrices(self, X: Any, reset: bool) -> dict[Hashable, Array]:
        """Return the levels by name, checked and in float64."""
        if isinstance(X, dict) and not issparse(X):  # scipy's dok matrices are dicts
            named = X
        elif isinstance(X, list | tuple) and X and np.ndim(X[0]) > 1:
            named = dict(enumerate(X))
        else:
            named = {0: validate_data(self, X, dtype=np.float64, reset=reset, ensure_min_samples=2 if reset else 1)}
        if not reset and set(named) != set(self.levels_):
            raise ValueError(f"X has the levels {list(named)}; the fit had {list(self.levels_)}")
        levels = {name: check_array(named[name], dtype=np.float64, input_name=f"level {name!r}") for name in named}
        shapes = {name: level.shape for name, level in levels.items()}
        rows = {count for count, _ in shapes.values()}
        if len(rows) != 1 or (reset and min(rows) < 2):
            raise ValueError(f"X needs levels with the same number of rows, at least 2 to fit; got shapes {shapes}")
        if reset:
            self.n_features_in_ = sum(channels for _, channels in shapes.values())
        elif any(shape[1] != len(self.levels_[name].mean) for name, shape in shapes.items()):
            fitted = {name: len(gaussian.mean) for name, gaussian in self.levels_.items()}
            raise ValueError(f"X has levels of shapes {shapes}; the fit had {fitted} channels")
        return levels

    def level_scores(self, X: Any) -> Array:
        """Return the distance from each level's mean, (n, K) in the order of `levels_`; higher is more anomalous.

        Raises:
            ValueError: levels or channels other than at fit, or features so large that their distance is no number.
        """
        check_is_fitted(self)
        levels = self._matrices(X, reset=False)
        with np.errstate(over="ignore", invalid="ignore"):
            scores = np.stack([gaussian.distances(levels[name]) for name, gaussian in self.levels_.items()], axis=1)
        lost = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(lost):  # NaN would count as normal
            raise ValueError(f"the features of row {lost[0]} are too large: their squared distance overflows")
        return scores

    def anomaly_score(self, X: Any) -> Array:
        """Return the mean over the levels of the distances, (n,); higher is more anomalous."""
        return self.level_scores(X).mean(axis=1)

    def score_samples(self, X: Any) -> Array:
        """Return minus the anomaly score, (n,); higher is more normal, as everywhere in scikit-learn."""
        return -self.anomaly_score(X)

    def threshold(self, fpr: float | None = None, level: Hashable = None, *, normals: Any = None) -> float:
        """Return the anomaly score that a share `fpr` of normal data exceeds.

        Without `normals` the Gaussian model says so: M_l^2 follows chi-square with `dimensions` degrees of freedom.
        That is exact for Gaussian data and known parameters only; with about as few rows as channels the true rate is
        far off, higher with the empirical covariance and usually lower with a shrunk one. The mean over several
        levels gets the mean of their thresholds: exact when the levels agree on what is far, too high when they are
        independent.

        With `normals` nothing is assumed: of m held-out rows the score at rank ceil((m + 1) (1 - fpr)), which a new
        normal exceeds with a probability of at most `fpr`.

        Args:
            fpr: false-positive rate between 0 and 1; None takes the estimator's.
            level: name of one level; None means the mean over the levels.
            normals: held-out normal data in the form of X, at least 1 / fpr - 1 rows.

        Raises:
            ValueError: `fpr` out of range, an unknown level, too few normals, or covariance="identity" without
                normals (Euclidean distances have no chi-square law).
        """
        check_is_fitted(self)
        share = self.fpr if fpr is None else fpr
        if not 0 < share < 1:
            raise ValueError(f"fpr is {share!r}; it must lie between 0 and 1")
        if level is not None and level not in self.levels_:
            raise ValueError(f"level {level!r} is unknown; the fit had {list(self.levels_)}")
        names = list(self.levels_) if level is None else [level]
        if normals is not None:
            columns = [list(self.levels_).index(name) for name in names]
            return _upper_quantile(self.level_scores(normals)[:, columns].mean(axis=1), share)
        if self.covariance == "identity":
            raise ValueError("covariance='identity' implies no threshold; give held-out normals, or call calibrate")
        return float(np.mean([np.sqrt(chi2.isf(share, self.levels_[name].dimensions)) for name in names]))

    def calibrate(self, normals: Any) -> Self:
        """Take the threshold of `predict` from held-out normal data instead of chi-square (see `threshold`)."""
        self._calibrated = self.threshold(normals=normals)
        return self

    @property
    def offset_(self) -> float:
        """Minus the threshold at `fpr`: of the calibration if there was one, else of chi-square."""
        check_is_fitted(self)
        return -(self.threshold() if self._calibrated is None else self._calibrated)

    def decision_function(self, X: Any) -> Array:
        """Return score_samples(X) - offset_, (n,); negative is an anomaly."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return 1 for normal rows and -1 for anomalies, (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


@dataclass(frozen=True)
class _Gaussian:
    """A Gaussian as its scores need it: L^-1 in an orthonormal basis, one standard deviation outside of it."""

    mean: Array  # (C,)
    dimensions: int  # degrees of freedom of the squared distance
    factor: Array  # (r, r) lower Cholesky factor of the covariance in the basis, or (r,) standard deviations
    basis: Array | None = None  # (C, r) orthonormal columns; None: the channels themselves
    outside: float = np.inf  # standard deviation of each direction outside the basis; inf ignores them

    def distances(self, X: Array) -> Array:
        """Return the Mahalanobis distance of each row of X (m, C), (m,)."""
        centred = X - self.mean
        inside = centred if self.basis is None else centred @ self.basis
        if self.factor.ndim == 1:
            white = (inside / self.factor).T
        else:
            white = solve_triangular(self.factor, inside.T, lower=True, check_finite=False)
        squared = np.einsum("cm,cm->m", white, white)
        if self.basis is not None and np.isfinite(self.outside):
            rest = (centred - inside @ self.basis.T) / self.outside
            squared += np.einsum("mc,mc->m", rest, rest)
        return np.sqrt(squared)


def _fit_gaussian(X: Array, covariance: str, reduction: str | None, threshold: float) -> _Gaussian:
    """Fit a Gaussian to the rows of X (n, C)."""
    count, channels = X.shape
    mean = X.mean(axis=0)
    mean += (X - mean).mean(axis=0)  # again: a large offset costs the first one digits
    rows, basis = X - mean, None
    if reduction is not None:
        basis = _components(rows, reduction, threshold)
        rows = rows @ basis
    dimensions = rows.shape[1]
    constant = (np.ptp(rows, axis=0) == 0).sum()
    if covariance in ("empirical", "diag") and constant:
        raise _singular(count, channels, f"{constant} of the channels never vary")
    if covariance == "empirical" and count <= dimensions:
        raise _singular(count, channels, f"{dimensions} dimensions need more rows")
    if covariance in ("diag", "identity"):
        deviation = rows.std(axis=0) if covariance == "diag" else np.ones(dimensions)
        return _Gaussian(mean, dimensions, deviation, basis)
    spanned = basis is None and 2 * count < channels  # fewer rows: the basis costs more than it saves
    if spanned:
        basis, triangle = qr(rows.T, mode="economic", check_finite=False)
        rows = triangle.T
    matrix = rows.T @ rows / count
    shrinkage = _shrinkage(covariance, matrix, rows, count, dimensions)
    floor = shrinkage * np.trace(matrix) / dimensions
    if spanned and floor <= _rounding(channels) * np.diagonal(matrix).max():
        raise _singular(count, channels, "there is nothing to shrink by")
    matrix *= 1 - shrinkage
    matrix.flat[:: len(matrix) + 1] += floor
    factor = _factor(matrix, count, channels)
    return _Gaussian(mean, dimensions, factor, basis, np.sqrt(floor) if spanned else np.inf)


def _shrinkage(covariance: str, matrix: Array, rows: Array, count: int, dimensions: int) -> float:
    """Return rho of Ledoit-Wolf or OAS; `matrix` is the covariance of `rows` in any basis that holds all of them."""
    if covariance == "empirical":
        return 0.0
    trace, square = np.trace(matrix), np.vdot(matrix, matrix)
    spread = square - trace**2 / dimensions  # squared distance of S from its multiple of the identity
    if spread <= 0:
        return 0.0 if covariance == "ledoit_wolf" else 1.0
    if covariance == "oas":
        return min(1.0, float((square + trace**2) / (count + 1) / spread))
    fourth = (np.einsum("nc,nc->n", rows, rows) ** 2).mean()
    return float(np.clip((fourth - square) / count / spread, 0, 1))


def _factor(matrix: Array, count: int, channels: int) -> Array:
    """Return the lower Cholesky factor, or refuse a singular matrix."""
    try:
        factor = cholesky(matrix, lower=True, check_finite=False)
    except LinAlgError:
        raise _singular(count, channels, "a combination of channels never varies") from None
    # A pivot is what the channels before it leave of a channel's variance.
    left = np.diagonal(factor) ** 2 / np.diagonal(matrix)
    if left.min() < _rounding(len(matrix)):
        raise _singular(count, channels, "a combination of channels never varies")
    return factor


def _components(rows: Array, reduction: str, threshold: float) -> Array:
    """Return the principal directions that PCA or NPCA keeps, (C, r), of centred rows (n, C)."""
    count, channels = rows.shape
    _, deviations, directions = svd(rows, full_matrices=False, check_finite=False)
    rank = min(int((deviations > _rounding(max(rows.shape)) * deviations[0]).sum()), count - 1)
    if rank == 0:
        raise _singular(count, channels, "all rows are equal")
    return directions[:rank][_kept(deviations[:rank] ** 2, reduction, threshold)].T


def _kept(variances: Array, reduction: str, threshold: float) -> slice:
    """Return which of the components, in the order of falling variance, stay: up to j or from j - 1."""
    share = np.cumsum(variances) / variances.sum()
    straddling = min(int(np.searchsorted(share, threshold, side="right")), len(share) - 1)
    return slice(0, straddling + 1) if reduction == "pca" else slice(max(straddling - 1, 0), None)


def _rounding(terms: int) -> float:
    """Return the relative size of what rounding can leave of a zero after sums of so many terms."""
    return 10 * terms * float(np.finfo(np.float64).eps)


def _singular(count: int, channels: int, why: str) -> ValueError:
    return ValueError(
        f"the covariance of n={count} rows with C={channels} channels is singular: {why}; "
        "use more rows, covariance='ledoit_wolf' or 'oas', or drop the channels"
    )


def _upper_quantile(scores: Array, fpr: float) -> float:
    """Return the score that a new exchangeable one exceeds with a probability of at most `fpr`."""
    rank = int(np.ceil((len(scores) + 1) * (1 - fpr) - 1e-9))  # 1e-9: the product may round up past an integer
    if rank > len(scores):
        need = int(np.ceil(1 / fpr - 1 - 1e-9))
        raise ValueError(f"an fpr of {fpr} needs at least {need} held-out normals; got {len(scores)}")
    return float(np.sort(scores)[rank - 1])


def naive_mahalanobis(train: Array, queries: Array, covariance: str = "ledoit_wolf") -> Array:
    """Return the distances of `queries` (m, C) from `train` (n, C) by the definition: an inverse and a loop over rows.

    Args:
        train: normal rows.
        queries: rows to score.
        covariance: "ledoit_wolf", "oas" or "empirical", by scikit-learn's estimators.
    """
    estimators = {"ledoit_wolf": LedoitWolf, "oas": OAS, "empirical": EmpiricalCovariance}
    fitted = estimators[covariance](store_precision=False).fit(train)
    precision = np.linalg.inv(fitted.covariance_)
    return np.array([np.sqrt((z - fitted.location_) @ precision @ (z - fitted.location_)) for z in queries])
