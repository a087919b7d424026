"""Fit and score time of the Gaussian detector beside the obvious implementation and scikit-learn's.

    python benchmarks/gaussian.py

All in one process on one thread, on the same rows: fit to n rows with C channels, score n others. The three give the
same distances (checked) and take turns; printed are the medians and their ratios to the detector's.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from threadpoolctl import threadpool_limits

from workingpapers.methods.anomaly.gaussian import GaussianAnomalyDetector, naive_mahalanobis

Array = NDArray[np.float64]
SHAPES = [(400, 1792), (1000, 448)]  # (n, C): EfficientNet-B4's widest level and the widest of its stages
REPEATS = 5


def detector(train: Array, queries: Array) -> Array:
    return GaussianAnomalyDetector().fit(train).anomaly_score(queries)


def scikit_learn(train: Array, queries: Array) -> Array:
    squared: Array = LedoitWolf().fit(train).mahalanobis(queries)
    return np.sqrt(squared)


def rows(seed: int, n: int, channels: int) -> Array:
    """Correlated rows: a spectrum that falls as 1 / k, as pooled features have."""
    spectrum = 1 / np.sqrt(np.arange(1, channels + 1))
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(channels, channels)))[0]
    correlated: Array = (np.random.default_rng(seed).normal(size=(n, channels)) * spectrum) @ turn
    return correlated


def seconds(run: Callable[[Array, Array], Array], train: Array, queries: Array) -> float:
    start = perf_counter()
    run(train, queries)
    return perf_counter() - start


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, one thread, median of {REPEATS}")
    print(f"{'n':>6} {'C':>6}  {'detector':>10}  {'sklearn LedoitWolf':>20}  {'inverse and loop':>20}")
    contestants = [detector, scikit_learn, naive_mahalanobis]
    for n, channels in SHAPES:
        train, queries = rows(1, n, channels), rows(2, n, channels)
        for run in contestants:  # warms up too
            np.testing.assert_allclose(run(train, queries), detector(train, queries), rtol=1e-6)
        rounds = [[seconds(run, train, queries) for run in contestants] for _ in range(REPEATS)]
        base, *others = np.median(rounds, axis=0)
        cells = "  ".join(f"{time:11.3f} s {time / base:5.1f}x" for time in others)
        print(f"{n:6d} {channels:6d}  {base:8.3f} s  {cells}")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
