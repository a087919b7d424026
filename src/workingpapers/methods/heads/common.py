"""What every gradient-trained head shares: one scikit-learn classifier around an `nn.Module`."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

FLOATS = [np.float32, np.float64, np.float16]
TOKENS = 2**14  # read at a time in prediction: few enough that what a head makes of them is no burden


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """A head trained by minibatch gradient descent on the features of a frozen backbone.

    Subclasses say which module (`_build`), which optimisers where it isn't AdamW (`_optimizers`), and whether features
    may be tokens (N, L, D) as well as vectors (N, D) (`_takes_tokens`). Features are moved to the device batch by
    batch, so a memory-mapped float16 array is never copied whole. The learning rates follow a half cosine from their
    start to zero.

    Args:
        max_epochs: passes over the training data.
        batch_size: rows per step; a last batch of fewer rows is kept.
        learning_rate: the peak learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        random_state: seed of the initialisation, the order and any dropout.
        device: torch device; None takes CUDA where there is one and the CPU elsewhere.

    Attributes:
        classes_: (K,) the labels in the order of the probability columns.
        module_: the trained head, in eval mode.
        loss_curve_: mean training loss of each epoch, in nats.
        n_features_in_: size of the last axis of the features.
    """

    def __init__(
        self,
        *,
        max_epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        random_state: int | None = None,
        device: str | None = None,
    ) -> None:
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.device = device

    _takes_tokens = True

    def _build(self, in_features: int, num_classes: int) -> nn.Module:
        """Return the head that maps (B, D) or (B, L, D) features to (B, K) logits."""
        raise TypeError(f"{type(self).__name__} does not define _build")

    def _optimizers(self, module: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the optimisers that together hold every trainable parameter of the head."""
        return [torch.optim.AdamW(module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)]

    def _loss(self, module: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar training loss of a batch: cross-entropy on the head's logits."""
        return F.cross_entropy(module(features), targets)

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train the head on features X (N, D) or (N, L, D), finite floats, and labels y (N,).

        Raises:
            ValueError: features that are not finite, lengths that differ, fewer than two classes, an option out of
                range, or a loss that is no longer finite.
        """
        self.__dict__.pop("module_", None)  # a fit that fails leaves nothing fitted
        for name in ("max_epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
        features, labels = validate_data(self, X, y, allow_nd=True, dtype=FLOATS)
        self._check_axes(features)
        check_classification_targets(labels)
        self.classes_, targets = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs at least two classes; y holds one class: {self.classes_[0]}")
        self.n_features_in_ = features.shape[-1]
        device = _device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with generators, torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
            torch.manual_seed(seed)
            module = self._build(self.n_features_in_, len(self.classes_)).to(device, torch.float32)
            self.loss_curve_ = self._train(module, features, torch.as_tensor(targets), device)
        self.module_ = module.eval()
        return self

    def _train(self, module: nn.Module, X: NDArray[Any], targets: Tensor, device: torch.device) -> list[float]:
        """Run the epochs and return their mean losses."""
        optimizers = self._optimizers(module)
        steps = self.max_epochs * -(-len(X) // self.batch_size)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, max(steps, 1)) for o in optimizers]
        curve = []
        module.train()
        for epoch in range(1, self.max_epochs + 1):
            total = 0.0
            for rows in torch.split(torch.randperm(len(X)), self.batch_size):
                loss = self._loss(module, _batch(X, rows.numpy(), device), targets[rows].to(device))
                value = loss.item()
                if not math.isfinite(value):
                    raise ValueError(
                        f"the loss is {value} in epoch {epoch}: scale the features, or lower learning_rate"
                    )
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                total += value * len(rows)
            curve.append(total / len(X))
        return curve

    @torch.no_grad()
    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the logits: (N, K), or with two classes the (N,) difference of the second's and the first's."""
        logits = self._logits(X)
        return (logits[:, 1] - logits[:, 0]) if len(self.classes_) == 2 else logits

    @torch.no_grad()
    def _logits(self, X: ArrayLike) -> NDArray[np.float32]:
        check_is_fitted(self)
        _check_feature_names(self, X, reset=False)
        features = check_array(X, allow_nd=True, dtype=FLOATS, estimator=self, input_name="X")
        self._check_axes(features)
        if features.shape[-1] != self.n_features_in_:
            given, name = features.shape[-1], type(self).__name__
            raise ValueError(f"X has {given} features, but {name} is expecting {self.n_features_in_} features as input")
        device = next(self.module_.parameters()).device
        step = max(1, min(1024, TOKENS // max(1, math.prod(features.shape[1:-1]))))
        parts = np.split(np.arange(len(features)), range(step, len(features), step))
        return torch.cat([self.module_(_batch(features, rows, device)).float().cpu() for rows in parts]).numpy()

    def _check_axes(self, features: NDArray[Any]) -> None:
        if features.ndim > 2 and not self._takes_tokens:
            raise ValueError(
                f"X has {features.ndim} axes; {type(self).__name__} takes vectors (N, D): pool tokens first"
            )

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the class probabilities (N, K), the softmax of the logits."""
        return torch.softmax(torch.from_numpy(self._logits(X)), dim=1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable label of each row, (N,)."""
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")


def unit_length(x: Tensor) -> Tensor:
    """Return x (..., n) divided by its lengths along the last axis; zeros stay zeros, in half precision too."""
    return F.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny))


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _batch(X: NDArray[Any], rows: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(X[rows]).to(device).float()
