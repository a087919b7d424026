"""The data of `anomaly`: what counts as normal, what entries see, and how their scores are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from workingpapers.data.datasets import load_dataset
from workingpapers.data.features import extract, split_levels
from workingpapers.data.models import Later, load_model
from workingpapers.data.splits import stratified, subset
from workingpapers.data.types import Backbone, LabelledData
from workingpapers.errors import UserError
from workingpapers.tasks.anomaly.settings import FALSE_ALARMS
from workingpapers.tasks.anomaly.views import VIEWS, size
from workingpapers.tasks.protocol import (
    Conditions,
    Entry,
    Prepared,
    load_task,
    prepared_features,
    views_of,
)
from workingpapers.tasks.returned import check_returned

FOLDS = 5  # for the scores that normal images get from detectors that have not seen them
FEWEST = 5  # training images: four for a seed, of which three remain when one is left out
SHARE = 0.8  # of either part that a seed draws, at most
MASK_SIDE = 128  # pixels; larger masks are read at this size, or an AUROC would rank hundreds of millions of pixels
LAYOUT = (
    "Allowed: a folder with train/good, test/good and test/DEFECT; an .npz with features, labels and part; or any "
    "data whose training part holds the normal class alone. `papers data` lists the packaged ones."
)


@dataclass(frozen=True)
class Examples:
    """The training part, as an entry sees it: normal images, by their features. It returns a `Detector`.

    Attributes:
        levels: for the need "levels" a float32 array (n, C_l) per depth of the backbone; for "maps" one float16 array
            (n, C, h, w); for "pixels" one float32 array (n, 768).
        seed: of everything random.
    """

    levels: list[NDArray[Any]]
    seed: int

    def __len__(self) -> int:
        return len(self.levels[0])

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Return some of the examples."""
        return replace(self, levels=[level[rows] for level in self.levels])

    def folds(self) -> Iterator[tuple[Examples, Examples]]:
        """Yield five times four fifths and the other fifth, shuffled; fewer folds for fewer than five examples."""
        order = np.random.default_rng([self.seed, 2]).permutation(len(self))
        for held in np.array_split(order, min(FOLDS, len(self))):
            yield self.take(np.setdiff1d(order, held)), self.take(np.sort(held))


class Scorer(Protocol):
    """Something fitted that scores images by their features."""

    def score(self, levels: list[NDArray[Any]]) -> NDArray[np.floating]:
        """Return one number per image (m,), or one per place (m, h, w) if it localises; higher is more anomalous."""


class Detector(NamedTuple):
    """What an entry returns.

    Attributes:
        model: scores images.
        threshold: image score above which it calls an image anomalous, set for the nominal 5 % of false alarms.
    """

    model: Scorer
    threshold: float


@dataclass(frozen=True)
class Problem:
    """A training part and a held-back part.

    Attributes:
        train: what the entry sees.
        levels: features of the m held-back images, in the same form.
        anomalous: (m,) which of them are anomalous; the entry never sees it.
        masks: their m masks (H, W) of anomalous pixels; None where the data have none.
    """

    train: Examples
    levels: list[NDArray[Any]]
    anomalous: NDArray[np.bool_]
    masks: list[NDArray[np.bool_]] | None


class Pool(NamedTuple):
    """The images that any seed may draw from.

    Attributes:
        data: with labels 0 for normal and 1 for anomalous, and without masks.
        masks: one for each image, read when called with its row; None where there are none.
        normal: the data set's name for normal images.
    """

    data: LabelledData
    masks: Callable[[int], NDArray[np.bool_]] | None
    normal: str


def pool(conditions: Conditions) -> Pool:
    """Return what any seed may draw from: at most twice the budget, the same for all seeds.

    Normal is the class that the training part holds; all others, which only the test part has, are anomalous.

    Raises:
        UserError: data without parts, anomalies in the training part, fewer than five images in it, or a test part
            without normal or without anomalous images.
    """
    data = load_dataset(conditions.data, label=conditions.label)
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    train, test = _parts(data)
    kind = data.labels[train[0]]
    anomalous = (data.labels != kind).astype(np.int64)
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [
            train[stratified(rng, anomalous[train], 2 * budget.train)],
            test[stratified(rng, anomalous[test], 2 * budget.test)],
        ]
    )
    masks = data.masks
    chosen = replace(subset(replace(data, labels=anomalous), rows), class_names=("normal", "anomalous"), masks=None)
    return Pool(chosen, None if masks is None else lambda i: masks[int(rows[i])], data.class_names[kind])


def _parts(data: LabelledData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of training and test part, or say why they don't make a problem of anomaly detection."""
    if data.part is None:
        raise UserError(
            f"{data.name} has no parts; to detect anomalies takes a training part of normal examples and a test part "
            f"of normal and anomalous ones. {LAYOUT}"
        )
    train, test = np.flatnonzero(data.part == "train"), np.flatnonzero(data.part == "test")
    counts = np.bincount(data.labels[train], minlength=len(data.class_names))
    kinds = np.flatnonzero(counts)
    if len(kinds) > 1:
        found = ", ".join(f"{data.class_names[k]!r} ({counts[k]})" for k in kinds[:5])
        raise UserError(
            f"{data.name}: the training part holds {len(kinds)} classes: {found}{' ...' if len(kinds) > 5 else ''}; "
            f"it must not contain anomalies. {LAYOUT}"
        )
    name = data.class_names[kinds[0]]
    if len(train) < FEWEST:
        raise UserError(f"{data.name} has {len(train)} training examples; to learn what is normal takes {FEWEST}.")
    normal = int((data.labels[test] == kinds[0]).sum())
    if normal == 0 or normal == len(test):
        raise UserError(
            f"{data.name}: the test part has {normal} normal ({name!r}) and {len(test) - normal} anomalous examples; "
            "at least one of each is needed."
        )
    return train, test


def prepare(conditions: Conditions, entries: list[Entry]) -> Prepared:
    """Compute and cache the features that the entries need.

    Raises:
        UserError: data or model cannot be used, or an entry needs something else than a view.
    """
    needs = views_of(entries, VIEWS)
    data, _, normal = pool(conditions)
    remarks = list(data.remarks)
    if normal != "normal":
        remarks.append(f"Normal is the training part's class, {normal!r}; all other classes count as anomalous.")
    if data.images is None:  # features that somebody computed already: no model is needed
        return prepared_features(conditions, entries, data, remarks, lambda need: features(data, None, need))
    backbone = load_model(conditions.model)
    for need in needs:
        features(data, backbone, need)
    return Prepared(data.fingerprint, backbone.fingerprint, tuple(remarks), Later(backbone))


def features(data: LabelledData, backbone: Backbone | None, need: str) -> list[NDArray[Any]]:
    """Return the features of a need, as `Examples.levels` holds them, from the cache or computed.

    Data that are features already serve as they are: vectors (N, D), or the mean of tokens (N, L, D), are one level,
    and tokens are maps of L places.

    Raises:
        UserError: the need is of images or tokens, and the data have neither.
    """
    if data.images is None and data.features is not None:
        given = data.features
        if need == "levels":
            return [given if given.ndim == 2 else given.mean(axis=1)]
        if need == "maps" and given.ndim == 3:
            return [given.transpose(0, 2, 1)[:, :, None]]
        wanted = "images, or features (N, L, D) of several places," if need == "maps" else "images"
        raise UserError(f"{data.name} has features {given.shape} where {wanted} are needed.")
    assert backbone is not None
    view, model = VIEWS[need](backbone)
    found = extract(data, model, view)
    return split_levels(found, model, size(model)) if need == "levels" else [found]


def load(conditions: Conditions, entry: Entry, seed: int, prepared: Prepared) -> Problem:
    """Draw a seed's training and held-back parts: the budget's number, at most four fifths of each, so seeds differ.

    Raises:
        UserError: the data are others than those that were prepared.
    """
    data, masks, _ = pool(conditions)
    prepared.check_data(data.name, data.fingerprint)
    assert data.part is not None
    budget = load_task(conditions.task).setting(conditions.setting).budgets[conditions.budget]
    rng = np.random.default_rng([seed, 1])
    kept, held = np.flatnonzero(data.part == "train"), np.flatnonzero(data.part == "test")
    kept = kept[stratified(rng, data.labels[kept], min(budget.train, round(SHARE * len(kept))))]
    held = held[stratified(rng, data.labels[held], min(budget.test, round(SHARE * len(held))))]
    found = features(data, prepared.model, entry.needs[0])
    inner, outer = (
        [level[rows].astype(np.float32) if level.ndim == 2 else level[rows] for level in found] for rows in (kept, held)
    )
    return Problem(
        Examples(inner, seed),
        outer,
        data.labels[held] == 1,
        None if masks is None else [masks(int(i)) for i in held],
    )


def image_scores(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return one score per image (m,): the highest of its places where there is one per place (m, h, w)."""
    return scores if scores.ndim == 1 else scores.max(axis=(1, 2))


def calibrated(fit: Callable[[Examples], Scorer], train: Examples) -> Detector:
    """Fit to all training images, with the threshold from scores of images left out.

    For data of any kind: the training images are scored by detectors fitted to the four fifths that they are not in,
    and of those m scores the one at rank ceil((m + 1) 0.95) is the threshold. Were the detectors the same as the final
    one, a new normal image would exceed it with a probability of at most 5 %; as they have seen fewer images, their
    scores are a little high, and so is the threshold. Where training images are near copies of each other (crops of
    one photograph, say) it is too low: an image left out has copies among those kept, a new one has none. With fewer
    than 19 images it is the highest score. The extra fits are part of what the entry takes: without them it would have
    no threshold.

    Args:
        fit: fits a scorer to examples.
        train: the training part.
    """
    left_out = [image_scores(fit(inner).score(outer.levels)) for inner, outer in train.folds()]
    return Detector(fit(train), upper_quantile(np.concatenate(left_out), FALSE_ALARMS))


def upper_quantile(scores: NDArray[np.floating], share: float) -> float:
    """Return the score at rank ceil((m + 1) (1 - share)) of m, or the highest if m is too small for that."""
    rank = int(np.ceil((len(scores) + 1) * (1 - share) - 1e-9))  # 1e-9: the product may round up past an integer
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def detection_metrics(problem: Problem, detector: Detector) -> dict[str, float]:
    """Return image AUROC, error of the false-alarm rate and, with masks and a detector that localises, pixel AUROC.

    All in per cent. Masks that mark no pixel at all, or every pixel, define no pixel AUROC: it is left out.

    Raises:
        UserError: what the entry returned is no detector, or its scores or threshold are none.
    """
    from sklearn.metrics import roc_auc_score

    check_returned(detector, "a Detector", "model", "threshold")
    found = np.asarray(detector.model.score(problem.levels))
    if found.ndim not in (1, 3) or len(found) != len(problem.anomalous) or not np.isfinite(found).all():
        raise UserError(
            f"The entry's detector returned scores of shape {found.shape}, {np.isfinite(found).sum()} of them finite; "
            f"needed: finite numbers ({len(problem.anomalous)},), one for each image, or (m, h, w), one for each place."
        )
    if np.isnan(detector.threshold):
        raise UserError("The entry's detector has the threshold NaN; needed: the score above which it flags an image.")
    scores = image_scores(found)
    flagged = 100 * np.mean(scores[~problem.anomalous] > detector.threshold)
    metrics = {
        "image-auroc": 100 * roc_auc_score(problem.anomalous, scores),
        "false-alarm-error": abs(flagged - 100 * FALSE_ALARMS),
    }
    if problem.masks is not None and found.ndim == 3:
        marked = [mask.mean() for mask in problem.masks]
        if 0 < sum(marked) < len(marked):
            metrics["pixel-auroc"] = 100 * pixel_auroc(found, problem.masks)
    return metrics


def pixel_auroc(maps: NDArray[np.floating], masks: Sequence[NDArray[np.bool_]]) -> float:
    """Return the area under the ROC curve over the pixels of all images, 0 to 1.

    Score maps are interpolated bilinearly to their image's mask; masks with a side above 128 pixels are first reduced
    to that by taking the nearest pixels.

    Args:
        maps: (m, h, w) scores; higher is more anomalous.
        masks: m masks (H, W), of any sizes.
    """
    import torch
    from sklearn.metrics import roc_auc_score
    from torch.nn import functional as F

    truth, scores = [], []
    for grid, mask in zip(torch.from_numpy(np.asarray(maps, dtype=np.float32)), masks, strict=True):
        factor = max(1.0, max(mask.shape) / MASK_SIDE)
        rows, columns = (max(1, round(side / factor)) for side in mask.shape)
        at = [
            ((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip((rows, columns), mask.shape, strict=True)
        ]
        truth.append(mask[np.ix_(*at)].ravel())
        resized = F.interpolate(grid[None, None], (rows, columns), mode="bilinear", align_corners=False)
        scores.append(resized.numpy().ravel())
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))
