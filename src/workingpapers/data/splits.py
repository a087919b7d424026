"""Parts of data sets: drawn by class, and taken without reading an image."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workingpapers.data.images import picked
from workingpapers.data.types import LabelledData


def by_class(y: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the row numbers of each class that occurs, in the order of the labels."""
    return [np.flatnonzero(y == label) for label in np.unique(y)]


def some(rng: np.random.Generator, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the row numbers, drawn at random."""
    return rng.permutation(rows)[:count]


def stratified(rng: np.random.Generator, y: NDArray[np.int64], count: int, least: int = 2) -> NDArray[np.int64]:
    """Return about `count` row numbers, sorted, each class in its proportion and with at least `least` rows."""
    if not len(y):
        return np.zeros(0, np.int64)
    share = min(1.0, count / len(y))
    parts = [some(rng, rows, max(min(least, len(rows)), round(share * len(rows)))) for rows in by_class(y)]
    return np.sort(np.concatenate(parts))


def subset(data: LabelledData, rows: NDArray[np.int64]) -> LabelledData:
    """Return some examples of a data set; images stay unread."""
    return replace(
        data,
        labels=data.labels[rows],
        images=None if data.images is None else picked(data.images, rows),
        features=None if data.features is None else data.features[rows],
        part=None if data.part is None else data.part[rows],
        fingerprint=f"{data.fingerprint}-{_digest(rows)}",
    )


def _digest(rows: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes()).hexdigest()[:16]
