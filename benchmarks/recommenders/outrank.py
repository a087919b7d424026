"""Time OutRank's ranking against scikit-learn's mutual information and the authors' package, on planted columns.

    python benchmarks/recommenders/outrank.py [--rows 100000] [--official FOLDER]

FOLDER is one into which `pip install --no-deps --target FOLDER outrank numba llvmlite` was run, for the package is no
dependency of this project. Rows are in random order, all rankings get the same integer codes, and the same places of
the planted columns are asked for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif

from workingpapers.methods.tables.outrank import OutRankSelector, cardinality_aware_mi

PLANTED = 3


def planted(rows: int, noise: int = 27) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return columns and labels: three columns that tell something, and noise of 2 to 20,000 values."""
    rng = np.random.default_rng(0)
    strong = rng.integers(20, size=(rows, PLANTED))
    logit = ((strong - 9.5) * np.array([0.25, 0.15, 0.08])).sum(axis=1)
    labels = rng.random(rows) < 1 / (1 + np.exp(-logit))
    values = np.geomspace(2, 20_000, noise).astype(int)
    others = [rng.integers(v, size=rows) for v in values]
    return np.column_stack([strong, *others]).astype(np.int32), labels.astype(np.int32)


def timed(work: Callable[[], NDArray[np.float64]]) -> tuple[NDArray[np.float64], float]:
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


def official(X: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.float64]:
    from outrank.algorithms.feature_ranking.ranking_mi_numba import mutual_info_estimator_numba

    return np.array([mutual_info_estimator_numba(y, np.ascontiguousarray(x), np.float32(1), True) for x in X.T])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--official")
    given = parser.parse_args()
    X, y = planted(given.rows)
    ways: dict[str, Callable[[], NDArray[np.float64]]] = {
        "OutRankSelector": lambda: OutRankSelector(PLANTED).fit(X, y).scores_,
        "... null='expected'": lambda: OutRankSelector(PLANTED, null="expected").fit(X, y).scores_,
        "cardinality_aware_mi": lambda: np.array([cardinality_aware_mi(x, y) for x in X.T]),
        "mutual_info_classif": lambda: mutual_info_classif(X, y, discrete_features=True),
    }
    if given.official:
        sys.path.insert(0, given.official)
        official(X[:100], y[:100])  # compiles
        ways["outrank package"] = lambda: official(X, y)
    print(f"{given.rows:,} rows, {X.shape[1]} columns, {PLANTED} of them planted")
    found = {name: timed(work) for name, work in ways.items()}
    base = found["OutRankSelector"][1]
    for name, (scores, seconds) in found.items():
        places = np.argsort(np.argsort(-scores))[:PLANTED] + 1
        print(f"  {name:21} {seconds:7.2f} s ({seconds / base:5.1f}x)  planted columns at places {places.tolist()}")
    if given.official:
        apart = np.abs(found["outrank package"][0] - found["cardinality_aware_mi"][0]).max()
        print(f"  largest difference of a score from the package's: {apart:.1e}")


if __name__ == "__main__":
    main()
