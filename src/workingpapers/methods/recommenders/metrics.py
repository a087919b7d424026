"""How good predicted clicks and ranked lists are; always over full catalogues, for samples can reverse the order."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import log_loss as _log_loss
from sklearn.metrics import roc_auc_score
from torch import Tensor


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return how often a click scores higher than no click: the area under the ROC curve.

    Raises:
        ValueError: labels of one class, or scores that are not finite.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    if len(np.unique(y)) != 2:
        raise ValueError(f"the area under the ROC curve needs two classes; the labels hold {np.unique(y).tolist()}")
    return float(roc_auc_score(y, s))


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the mean negative log-likelihood of 0/1 labels in nats, probabilities kept 1e-7 away from 0 and 1."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return float(_log_loss(np.asarray(labels), p, labels=[0, 1]))


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Return the AUC within each group (user), averaged by the group's rows; groups of one class don't count.

    Source: Zhou et al., "Deep Interest Network", KDD 2018, equation 5, where impressions are the weights.

    Raises:
        ValueError: no group holds both classes, or scores that are not finite.
    """
    y, s, g = np.asarray(labels), np.asarray(scores, np.float64), np.asarray(groups)
    if not np.isfinite(s).all():  # NaN has a place in an order, too
        raise ValueError("scores hold NaN or infinity")
    _, group = np.unique(g, return_inverse=True)
    order = np.lexsort((s, group))
    y, s, group = y[order].astype(np.float64), s[order], group[order]
    size = np.bincount(group)
    start = np.concatenate([[0], size.cumsum()[:-1]])
    rank = _tied_ranks(s, group) - start[group]
    positives = np.bincount(group, y)
    negatives = size - positives
    mixed = (positives > 0) & (negatives > 0)
    if not mixed.any():
        raise ValueError("no group holds both a click and no click")
    wins = np.bincount(group, rank * y) - positives * (positives + 1) / 2
    areas = wins[mixed] / (positives * negatives)[mixed]
    return float(np.average(areas, weights=size[mixed]))


def _tied_ranks(s: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1-based ranks of values sorted by group and value; ties share the mean of theirs."""
    new = np.ones(len(s), bool)
    new[1:] = (s[1:] != s[:-1]) | (group[1:] != group[:-1])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(s)) - 1
    mean: NDArray[np.float64] = ((first + last) / 2 + 1)[np.cumsum(new) - 1]
    return mean


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Return the sum of predicted probabilities over the number of clicks: 1 is right, above 1 promises too much."""
    clicks = float(np.sum(labels))
    if not clicks:
        raise ValueError("calibration needs at least one click")
    return float(np.sum(np.asarray(probabilities, np.float64))) / clicks


def ranks(scores: Tensor, targets: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return at which place (0 is first) each target stands in the full catalogue; ties count half.

    Args:
        scores: (B, N) of every item; changed in place where `seen` is given.
        targets: (B,) the item that was taken next.
        seen: (B, L) items to leave out of the ranking, padded with -1; the target itself always stays.

    Raises:
        ValueError: scores that are not finite.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    own = scores.gather(1, targets[:, None])
    if seen is not None:
        row, column = (seen >= 0).nonzero(as_tuple=True)
        scores[row, seen[row, column]] = -torch.inf
        scores.scatter_(1, targets[:, None], own)
    above, equal = (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1
    return above + equal / 2


def recall_at(rank: Tensor, k: int) -> float:
    """Return the share of targets among the first k (hit rate, for one target each)."""
    return float((rank < k).float().mean())


def ndcg_at(rank: Tensor, k: int) -> float:
    """Return the mean of 1 / log2(rank + 2) of targets among the first k, else 0: NDCG with one target each."""
    return float(torch.where(rank < k, 1 / torch.log2(rank.float() + 2), 0.0).mean())
