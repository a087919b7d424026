"""Features of a data set's images from a frozen backbone, computed once and read from the cache afterwards.

A `View` says what is taken: `pooled`, `tokens` and `levels` make the usual ones. The cache's key is a digest of the
data, the model, the view and the versions of torch and of this package, so whatever changes is computed anew. Features
are stored as float16: half the disk, and a relative error of 2^-11, far below what separates two images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import workingpapers
from workingpapers.data.cache import cached_array
from workingpapers.data.images import Encoded, large_ones, picked
from workingpapers.data.types import Backbone, LabelledData, View
from workingpapers.errors import UserError
from workingpapers.progress import Progress

PIXELS_PER_BATCH = 2_000_000  # 40 images of 224 px: under 1 GB of activations with the usual models
MOST_READERS = 8  # images that are decoded at a time: a photograph takes 100 MB meanwhile


def _pooled(backbone: Backbone, batch: Tensor) -> Tensor:
    return backbone.pooled(batch)


def _grid(backbone: Backbone, batch: Tensor) -> Tensor:
    return backbone.tokens(batch)[1]


def _levels(backbone: Backbone, batch: Tensor) -> Tensor:
    return torch.cat([level.float().mean((2, 3)) for level in backbone.levels(batch)], dim=1)


def pooled(size: int) -> View:
    """Return the view of one vector per image, (N, D), at `size` pixels."""
    return View("pooled", size, _pooled)


def tokens(size: int) -> View:
    """Return the view of the last map's grid tokens, (N, h*w, D), row by row, at `size` pixels; no prefix tokens."""
    return View("tokens", size, _grid)


def levels(size: int) -> View:
    """Return the view of every level's spatial mean, side by side: (N, C_1 + ... + C_K). See `split_levels`."""
    return View("levels", size, _levels)


def split_levels(features: NDArray[Any], backbone: Backbone, size: int) -> list[NDArray[Any]]:
    """Return the features of the view `levels(size)` as one array (N, C_l) per level of `backbone`.

    Raises:
        ValueError: features of another width than the backbone's levels have together.
    """
    widths = _level_widths(backbone, size)
    if features.ndim != 2 or features.shape[1] != sum(widths):
        raise ValueError(f"features are {features.shape}; the levels of {backbone.name!r} need (N, {sum(widths)})")
    return np.split(features, np.cumsum(widths)[:-1], axis=1)


def _level_widths(backbone: Backbone, size: int) -> list[int]:
    """Return the channels of every level; they are cached, so that cached features need no model."""
    most = 64

    def probe() -> Iterator[NDArray[np.int64]]:
        with torch.inference_mode():
            widths = [level.shape[1] for level in backbone.levels(torch.zeros(1, 3, size, size))]
        yield np.array([len(widths), *widths, *[0] * (most - len(widths) - 1)], dtype=np.int64)

    key = hashlib.sha256(json.dumps([backbone.fingerprint, size, "widths"]).encode()).hexdigest()[:32]
    stored = cached_array(key, "feature-shapes", shape=(most,), dtype=np.int64, compute=probe)
    return [int(width) for width in stored[1 : 1 + stored[0]]]


@large_ones()
def extract(data: LabelledData, backbone: Backbone, view: View, *, progress: Progress = True) -> NDArray[np.floating]:
    """Return the features of all images, in their order: a read-only float16 memory map (N, ...).

    Data that are features already are returned as they are, as float32, where they have the view's shape: (N, D) for
    "pooled", (N, L, D) for "tokens".

    Args:
        data: images, or features that somebody computed.
        backbone: the frozen model.
        view: what to take of it, and at which size.
        progress: as for `progress.counted`, told after each batch.

    Raises:
        UserError: no images, features of another shape than the view's, or features that are not finite in float16.
    """
    if data.images is None:
        return _given(data, view)
    if len(data.images) == 0:
        raise UserError(f"Data set {data.name!r} has no images.")
    versions = [workingpapers.__version__, ".".join(torch.__version__.split(".")[:2])]
    identity = [data.fingerprint, backbone.fingerprint, view.name, view.size, view.version, *versions]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    about = {"data": data.name, "model": backbone.name, "view": view.name, "size": view.size, "versions": versions}
    shape = (len(data.images), *_shape(key, data, backbone, view, about))
    return cached_array(
        key,
        "features",
        shape=shape,
        dtype=np.float16,
        compute=lambda: _batches(data, backbone, view),
        about=about,
        progress=progress,
        title=f"{data.name} with {backbone.name}",
    )


def _given(data: LabelledData, view: View) -> NDArray[np.floating]:
    """Return a data set's own features for a view that they fit."""
    dimensions = {"pooled": 2, "tokens": 3}.get(view.name)
    if data.features is None or data.features.ndim != dimensions:
        found = "neither images nor features" if data.features is None else f"features {data.features.shape}"
        wanted = {2: "vectors (N, D) or images", 3: "tokens (N, L, D) or images", None: "images"}[dimensions]
        raise UserError(f"Data set {data.name!r} has {found}; the view {view.name!r} needs {wanted}.")
    return np.asarray(data.features, dtype=np.float32)


def _shape(key: str, data: LabelledData, backbone: Backbone, view: View, about: dict[str, object]) -> tuple[int, ...]:
    """Return the shape of one image's features; it is cached too, so that a hit needs no model."""
    rank = 8

    def probe() -> Iterator[NDArray[np.int64]]:
        shape = _compute(data, backbone, view, range(1)).shape[1:]
        yield np.array([len(shape), *shape, *[0] * (rank - len(shape) - 1)], dtype=np.int64)

    stored = cached_array(key, "feature-shapes", shape=(rank,), dtype=np.int64, compute=probe, about=about)
    return tuple(int(side) for side in stored[1 : 1 + stored[0]])


def _read(data: LabelledData, backbone: Backbone, view: View, rows: range) -> Tensor:
    assert data.images is not None
    images = picked(data.images, rows)
    try:
        if not isinstance(images, Encoded):
            return backbone.preprocess(images, view.size)
        # One by one, since a batch of photographs would take gigabytes; decoding lets go of the interpreter's lock.
        with ThreadPoolExecutor(min(MOST_READERS, _cores())) as pool:
            return torch.cat(list(pool.map(lambda i: backbone.preprocess([images[i]], view.size), range(len(rows)))))
    except ValueError as error:
        raise ValueError(f"{data.name}, from image {rows[0]} on: {error}") from error


def _compute(data: LabelledData, backbone: Backbone, view: View, rows: range) -> NDArray[np.float16]:
    return _checked(_run(backbone, view, _read(data, backbone, view, rows)), data, backbone, rows)


def _run(backbone: Backbone, view: View, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return view.read(backbone, batch).float().cpu()


def _checked(features: Tensor, data: LabelledData, backbone: Backbone, rows: range) -> NDArray[np.float16]:
    """Return the features of the images `rows` as float16, or say which images have none."""
    if len(features) != len(rows):
        raise UserError(f"Model {backbone.name!r} gives {len(features)} rows for {len(rows)} images.")
    half = features.half()
    bad = ~torch.isfinite(half).flatten(1).all(dim=1)
    if bad.any():
        finite = torch.isfinite(features[bad]).all()
        what = "features beyond float16's largest number, 65504" if finite else "features that are not finite"
        first = rows[int(bad.nonzero()[0])]
        raise UserError(
            f"Model {backbone.name!r} gives {what} for {int(bad.sum())} of the images {rows[0]} to {rows[-1]} "
            f"of {data.name!r}; the first is image {first}."
        )
    return half.numpy()


def _batches(data: LabelledData, backbone: Backbone, view: View) -> Iterator[NDArray[np.float16]]:
    """Yield the features batch by batch; one thread reads the next batch while the model computes this one."""
    total = len(data)
    step = max(1, min(256, PIXELS_PER_BATCH // view.size**2))
    parts = [range(start, min(start + step, total)) for start in range(0, total, step)]
    with _all_cores(), ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(_read, data, backbone, view, parts[0])
        for i, rows in enumerate(parts):
            batch = upcoming.result()
            if i + 1 < len(parts):
                upcoming = reader.submit(_read, data, backbone, view, parts[i + 1])
            yield _checked(_run(backbone, view, batch), data, backbone, rows)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let torch use every core that this process may use, whatever the runs around it were told."""
    before = torch.get_num_threads()
    torch.set_num_threads(_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
