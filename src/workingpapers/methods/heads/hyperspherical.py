"""Hyperspherical embedding: train with the normalised softmax loss, recognise novel classes by cosine prototypes.

Classes never seen in training are usually recognised in an embedding trained on pairs or triplets. Here the embedding
is trained as an ordinary classifier whose features and class weights both live on the unit sphere, without any pairs:

    z_i = f_i / |f_i|  (n,);   w_c = W_c / |W_c|;   L = -1/B sum_i log softmax_c(<w_c, z_i> / sigma)[y_i]

Then W is dropped, and a novel class is represented by its few labelled examples, its support set S_c:

    p_c = normalise(mean of z_i over S_c);   prediction = argmax_c <p_c, z>      (or a vote of the nearest supports)

A p_c can also be written into the classifier as a new weight row (`NormalizedLinear.imprint`). In the *disjoint*
scenario only novel classes are candidates, in the *joint* scenario novel and seen ones. There, learned rows for the
seen classes beside prototypes for the novel ones favour the seen classes; `evaluate_novel` uses prototypes for all.

Source: Pereira et al., "Hyperspherical embedding for novel class classification", arXiv 2102.03243 (no published code).
The loss is that of Zhai and Wu, "Classification is a strong baseline for deep metric learning", BMVC 2019, whose
temperature 0.05 is the default; imprinting is that of Qi et al., "Low-shot learning with imprinted weights", CVPR 2018.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import hmean
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.metrics import pairwise_distances_argmin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.methods.heads.common import FLOATS, HeadClassifier, unit_length


class NormalizedLinear(nn.Module):
    """Cosine logits: features (..., n) to scale * <w_c, z> (..., K) with unit weights and features, no bias.

    Args:
        in_features: n.
        num_classes: K.
        scale: 1 / sigma; 20, the published temperature of 0.05. Near 1 the loss can't become small.
        learn_scale: train the scale (by its logarithm, so that it stays positive) rather than keep it fixed.

    Attributes:
        weight: (K, n), normalised in the forward pass; only its directions matter.
        log_scale: scalar, a parameter if it is learned and a buffer otherwise.

    Raises:
        ValueError: a size below 1, or a scale that is not positive.
    """

    log_scale: Tensor

    def __init__(self, in_features: int, num_classes: int, scale: float = 20.0, learn_scale: bool = False) -> None:
        super().__init__()
        if min(in_features, num_classes) < 1:
            raise ValueError(f"sizes must be 1 or more; got {in_features=}, {num_classes=}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale!r}; it must be positive and finite")
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))  # directions uniform on the sphere
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits; computed in the weight's precision, also under autocast."""
        if features.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"features are {tuple(features.shape)}; the last axis must be {self.weight.shape[1]}")
        with torch.autocast(features.device.type, enabled=False):
            unit = unit_length(features.to(self.weight.dtype))
            return self.log_scale.exp() * F.linear(unit, unit_length(self.weight))

    @torch.no_grad()
    def imprint(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Append one row for each novel class: the spherical centroid of its embeddings.

        The weight becomes a new parameter with K + C rows; make optimisers that hold the old one anew.

        Args:
            embeddings: (m, n), of any length.
            labels: (m,) integers, in any numbering of their own.

        Returns:
            (C,) the distinct labels in ascending order; row K + i is the class of the i-th.

        Raises:
            ValueError: shapes that do not fit, no rows, values that are not finite, or a class that sums to zero.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weight.shape[1] or labels.shape != embeddings.shape[:1]:
            shapes = f"embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}"
            raise ValueError(f"{shapes} do not fit; allowed: (m, {self.weight.shape[1]}) and (m,)")
        classes, rows = np.unique(labels.cpu().numpy(), return_inverse=True)
        unit = normalize(embeddings.to("cpu", torch.float64).numpy())
        centroids = torch.from_numpy(_directions(_class_sums(unit, rows, len(classes)), classes))
        grown = torch.cat([self.weight, centroids.to(self.weight)])
        self.weight = nn.Parameter(grown, requires_grad=self.weight.requires_grad)
        return torch.from_numpy(classes).to(labels.device)


class NormalizedSoftmaxLoss(nn.Module):
    """The normalised softmax loss, with its class weights: embeddings (B, n) and labels (B,) to a scalar in nats.

    Give its parameters to the optimiser together with the backbone's.

    Args:
        num_classes: K.
        embedding_dim: n.
        temperature: sigma, 0.05 as published by Zhai and Wu.
        margin: subtracted from the cosine of the true class (0: none, as published; 0.35 is usual for CosFace).
        label_smoothing: share of the target spread over all classes (0, as published).

    Attributes:
        classifier: the `NormalizedLinear` with scale 1 / temperature.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        temperature: float = 0.05,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; it must be positive and finite")
        if not 0 <= margin < 2:
            raise ValueError(f"margin is {margin!r}; it must lie in [0, 2), the range of cosine differences")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing!r}; it must lie in [0, 1)")
        self.classifier = NormalizedLinear(embedding_dim, num_classes, scale=1 / temperature)
        self.temperature, self.margin, self.label_smoothing = temperature, margin, label_smoothing

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the batch; labels are 0..K-1."""
        logits = self.classifier(embeddings)
        shift = self.margin / self.temperature * F.one_hot(labels, logits.shape[1])
        return F.cross_entropy(logits - shift, labels, label_smoothing=self.label_smoothing)


class HypersphericalClassifier(ClassNamePrefixFeaturesOutMixin, TransformerMixin, HeadClassifier):
    """The normalised softmax on feature vectors (N, D) of a frozen backbone, behind a trained linear embedding.

    `predict` knows the classes of `fit`; for novel ones, fit a `PrototypeClassifier` on `transform`ed features.

    Args:
        embedding_dim: n, the size of the embedding (128).
        temperature: sigma, 0.05 as published by Zhai and Wu.
        max_epochs, batch_size, learning_rate, weight_decay, random_state, device: as for `HeadClassifier`.

    Raises:
        ValueError: at fit, an option out of range, or features that are not vectors.
    """

    _takes_tokens = False

    def __init__(
        self,
        *,
        embedding_dim: int = 128,
        temperature: float = 0.05,
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        random_state: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__(
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            random_state=random_state,
            device=device,
        )
        self.embedding_dim = embedding_dim
        self.temperature = temperature

    def _build(self, in_features: int, num_classes: int) -> nn.Module:
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim!r}; it must be 1 or more")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature!r}; it must be positive and finite")
        head = NormalizedLinear(self.embedding_dim, num_classes, scale=1 / self.temperature)
        return nn.Sequential(nn.Linear(in_features, self.embedding_dim), head)

    @torch.no_grad()
    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the embeddings on the unit sphere, (N, embedding_dim): float64 if X is, else float32."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=FLOATS, reset=False)
        first = next(self.module_.parameters())
        projected = self.module_.get_submodule("0")(torch.tensor(features).to(first))
        return unit_length(projected).cpu().numpy().astype(np.result_type(features, np.float32))

    @property
    def _n_features_out(self) -> int:
        return self.module_.get_parameter("0.bias").numel()


class PrototypeClassifier(ClassifierMixin, BaseEstimator):
    """Classify embeddings by the nearest class centroid, or by a vote of the nearest support examples.

    Nothing is trained, so classes can be added at any time (`partial_fit`).

    Args:
        metric: "cosine" (embeddings and centroids are normalised; a zero embedding stays zero) or "euclidean".
        method: "centroid" or "knn".
        n_neighbors: voters of "knn" (1); at most the number of support examples vote.

    Attributes:
        classes_: (K,) labels seen so far.
        class_count_: (K,) support examples of each; support_: (m, n) and support_labels_: (m,), "knn" only.
        centroids_: (K, n), "centroid" only.
    """

    support_: NDArray[np.float64]
    support_labels_: NDArray[Any]
    _sums: NDArray[np.float64]

    def __init__(
        self,
        *,
        metric: Literal["cosine", "euclidean"] = "cosine",
        method: Literal["centroid", "knn"] = "centroid",
        n_neighbors: int = 1,
    ) -> None:
        self.metric, self.method, self.n_neighbors = metric, method, n_neighbors

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to the support embeddings X (m, n) and their labels y (m,).

        Raises:
            ValueError: one class only, values that are not finite, an option outside its range, or (cosine) a class
                whose unit embeddings sum to zero.
        """
        self.__dict__.pop("classes_", None)  # a fit that fails leaves nothing fitted
        self.partial_fit(X, y)
        if len(self.classes_) < 2:
            raise ValueError(f"PrototypeClassifier needs at least two classes; y holds one class: {self.classes_[0]}")
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Add support examples of novel or known classes; any split into batches gives the fit of the whole.

        Args:
            X: (m, n) embeddings.
            y: (m,) labels; a batch may hold a single class.
            classes: every label allowed in this batch; None allows all. New classes need not be announced.

        Raises:
            ValueError: as `fit`, or labels outside `classes`.
        """
        if self.metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric is {self.metric!r}; allowed: 'cosine', 'euclidean'")
        if self.method not in ("centroid", "knn"):
            raise ValueError(f"method is {self.method!r}; allowed: 'centroid', 'knn'")
        first = not hasattr(self, "classes_")
        embeddings, labels = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(labels)
        unknown = [] if classes is None else np.setdiff1d(labels, classes).tolist()
        if unknown:
            raise ValueError(f"y holds labels that classes does not: {unknown}")
        embeddings = normalize(embeddings) if self.metric == "cosine" else embeddings
        if self.method == "knn":
            self._add_neighbors(embeddings, labels, first)
        else:
            self._add_to_centroids(embeddings, labels, first)
        return self

    def _add_neighbors(self, embeddings: NDArray[np.float64], labels: NDArray[Any], first: bool) -> None:
        support = embeddings if first else np.concatenate([self.support_, embeddings])
        names = labels if first else np.concatenate([self.support_labels_, labels])
        self._neighbors = KNeighborsClassifier(min(self.n_neighbors, len(support))).fit(support, names)
        self.support_, self.support_labels_ = support, names
        self.classes_, self.class_count_ = np.unique(names, return_counts=True)

    def _add_to_centroids(self, embeddings: NDArray[np.float64], labels: NDArray[Any], first: bool) -> None:
        known = labels[:0] if first else self.classes_
        classes = np.union1d(known, labels)
        rows = np.searchsorted(classes, labels)
        sums, count = _class_sums(embeddings, rows, len(classes)), np.bincount(rows, minlength=len(classes))
        if not first:
            old = np.searchsorted(classes, known)
            sums[old] += self._sums
            count[old] += self.class_count_
        centroids = _directions(sums, classes) if self.metric == "cosine" else sums / count[:, None]
        self.classes_, self.class_count_, self._sums, self.centroids_ = classes, count, sums, centroids

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the label of each row, (m,)."""
        check_is_fitted(self, "classes_")
        embeddings = validate_data(self, X, dtype=np.float64, reset=False)
        # Among unit vectors the nearest has the largest cosine.
        embeddings = normalize(embeddings) if self.metric == "cosine" else embeddings
        if self.method == "knn":
            return self._neighbors.predict(embeddings)
        return self.classes_[pairwise_distances_argmin(embeddings, self.centroids_)]


def evaluate_novel(
    embeddings: ArrayLike,
    labels: ArrayLike,
    novel: ArrayLike,
    *,
    scenario: Literal["disjoint", "joint"] = "disjoint",
    shots: int = 5,
    episodes: int = 10,
    classifier: PrototypeClassifier | None = None,
    random_state: int | None = None,
) -> dict[str, float]:
    """Return the accuracies of few-shot classification in an embedding, as means over random episodes.

    Each episode draws `shots` support examples of every candidate class; all other rows of these classes are queries.
    The joint scenario gives seen classes prototypes from as many examples as novel ones.

    Args:
        embeddings: (N, n) of images that the embedding was not trained on, of seen and novel classes.
        labels: (N,) class of each row.
        novel: the labels that were absent from training; in the joint scenario every other label counts as seen.
        scenario: "disjoint" (only novel classes are candidates) or "joint" (novel and seen).
        shots: support examples of each class (5).
        episodes: random draws (10).
        classifier: a `PrototypeClassifier`; it is cloned. None takes spherical centroids.
        random_state: seed of the draws.

    Returns:
        "novel": accuracy on novel queries; in the joint scenario also "seen" and their "harmonic_mean", which is
            high only if both are.

    Raises:
        ValueError: an option out of range, novel labels that don't occur, no seen class in the joint scenario, fewer
            than two candidates, or a class without a query (`shots` examples or fewer).
    """
    checked, y = check_X_y(embeddings, labels, dtype=np.float64)
    names = np.unique(np.asarray(novel))
    candidates = _candidates(y, names, scenario)
    if shots < 1 or episodes < 1:
        raise ValueError(f"shots and episodes must be 1 or more; got {shots=}, {episodes=}")
    rare = [c for c in candidates.tolist() if (y == c).sum() <= shots]
    if rare:
        raise ValueError(f"classes with {shots} examples or fewer leave no query beside {shots} shots: {rare}")
    rng = check_random_state(random_state)
    scores = []
    for _ in range(episodes):
        support = np.concatenate([rng.choice(np.flatnonzero(y == c), shots, replace=False) for c in candidates])
        query = np.setdiff1d(np.flatnonzero(np.isin(y, candidates)), support)
        model = clone(classifier or PrototypeClassifier()).fit(checked[support], y[support])
        right, is_novel = model.predict(checked[query]) == y[query], np.isin(y[query], names)
        score = {"novel": float(right[is_novel].mean())}
        if scenario == "joint":
            score["seen"] = float(right[~is_novel].mean())
            score["harmonic_mean"] = float(hmean([score["seen"], score["novel"]]))
        scores.append(score)
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _candidates(y: NDArray[Any], novel: NDArray[Any], scenario: str) -> NDArray[Any]:
    """Return the classes that compete in a scenario."""
    if scenario not in ("disjoint", "joint"):
        raise ValueError(f"scenario is {scenario!r}; allowed: 'disjoint', 'joint'")
    missing, seen = np.setdiff1d(novel, y).tolist(), np.setdiff1d(y, novel)
    if missing:
        raise ValueError(f"novel names labels that don't occur: {missing}")
    if len(novel) < (2 if scenario == "disjoint" else 1):
        raise ValueError(f"the {scenario} scenario needs more novel classes; got {novel.tolist()}")
    if scenario == "joint" and len(seen) == 0:
        raise ValueError("the joint scenario needs seen classes beside the novel ones; every label is novel")
    return novel if scenario == "disjoint" else np.unique(y)


def _class_sums(embeddings: NDArray[np.float64], rows: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    sums = np.zeros((count, embeddings.shape[1]))
    np.add.at(sums, rows, embeddings)
    return sums


def _directions(sums: NDArray[np.float64], classes: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sums of unit embeddings at unit length; a class whose embeddings cancel has no centroid."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    bad = classes[~(lengths[:, 0] > 1e-9)].tolist()  # rounding leaves 1e-16 where opposite unit vectors cancel
    if bad:
        raise ValueError(f"the unit embeddings of these classes sum to zero, so they have no centroid: {bad}")
    return sums / lengths
