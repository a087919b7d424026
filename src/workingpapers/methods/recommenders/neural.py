"""Recommenders of the next item whose networks are trained: the loop, the epoch that is kept, save and load."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Protocol, Self, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, BufferReader, parquet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from workingpapers.errors import first_line
from workingpapers.methods.recommenders.columns import from_arrow
from workingpapers.methods.recommenders.metrics import ndcg_at
from workingpapers.methods.recommenders.options import MergedOptions, as_json, check_options
from workingpapers.methods.recommenders.sequences import (
    Histories,
    Log,
    SequenceRecommender,
    Split,
    leave_last_out,
    padded,
    windows,
)
from workingpapers.methods.recommenders.training import chosen_device, seeded, training_progress

FORMAT = "workingpapers recommender 1"
OPTION, LABEL = "options.", "item label"  # prefix of tensors that are options; column of the saved catalogue


class Sequential(Protocol):
    """A network as `NeuralRecommender` trains it."""

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""

    def scores(self, ids: Tensor) -> Tensor:
        """Return the scores of all items after each history, (B, V)."""


class NeuralRecommender(MergedOptions, SequenceRecommender):
    """A recommender whose network is trained by AdamW; subclasses define `_build`.

    The last item of every training history with three or more is held out; the epoch with the best NDCG@10 on these
    over the full catalogue is kept. On a terminal a bar shows how far training is, from two seconds on.

    Args:
        dim: d, the width of the vectors (64).
        max_len: L, items of a history that are read, the latest (50).
        dropout: rate (0.2).
        learning_rate, weight_decay: of AdamW (1e-3 and 0.01, its usual ones).
        batch_size: windows of a step (64).
        max_epochs: most passes over the log (30).
        patience: epochs without a better NDCG@10 after which training stops (5).
        random_state: seed of the initialisation and the order.
        device: torch device; None takes CUDA where there is one and the CPU elsewhere.

    Attributes:
        model_: the trained network, in eval mode.
        history_: validation NDCG@10 of each epoch.
        features_: of the catalogue, as the log has them.
    """

    clip = 5.0  # norm to which gradients are cut

    def __init__(
        self,
        *,
        dim: int = 64,
        max_len: int = 50,
        dropout: float = 0.2,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        max_epochs: int = 30,
        patience: int = 5,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.dim = dim
        self.max_len = max_len
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.random_state = random_state
        self.device = device

    def _build(self, log: Log) -> nn.Module:
        """Return the network, which follows `Sequential`."""
        raise TypeError(f"{type(self).__name__} does not define _build")

    def _examples(self, log: Log) -> tuple[Tensor, Tensor]:
        """Return ids and labels of all training examples, whose first dimension is drawn from."""
        return windows(log.histories, self.max_len)

    def _check(self) -> None:
        whole = {name: getattr(self, name) for name in ("dim", "max_len", "batch_size", "max_epochs", "patience")}
        for name, value in whole.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be 0 or more and below 1")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and weight_decay {self.weight_decay}; they must be finite, the "
                "first above 0 and the second 0 or more"
            )

    def _fit(self, log: Log) -> None:
        self._check()
        self.features_ = log.features
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        split = leave_last_out(log) if any(len(history) > 2 for history in log.histories) else Split(log, [], _NONE)
        device = chosen_device(self.device)
        with seeded(seed):
            self.model_ = self._build(split.train).to(device)
            self._train(split, *(part.to(device) for part in self._examples(split.train)))
        self.model_.eval()

    def _train(self, split: Split, ids: Tensor, labels: Tensor) -> None:
        network = cast(Sequential, self.model_)
        optimizer = torch.optim.AdamW(self.model_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        best, kept, self.history_ = -1.0, None, list[float]()
        with training_progress(self.max_epochs, len(ids)) as told:
            for epoch in range(self.max_epochs):
                self.model_.train()
                order = torch.randperm(len(ids), device=ids.device)
                for index in told(epoch, torch.split(order, int(self.batch_size))):
                    loss = network.loss(ids[index], labels[index])
                    if not torch.isfinite(loss):
                        raise ValueError(f"the loss of epoch {epoch + 1} is {loss.item()}; try a smaller learning_rate")
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(self.model_.parameters(), self.clip)
                    optimizer.step()
                if not split.histories:
                    continue
                self.history_.append(ndcg_at(self.ranks(split.histories, split.targets), 10))
                if self.history_[-1] > best:
                    best, kept, at = self.history_[-1], copy.deepcopy(self.model_.state_dict()), epoch
                elif epoch - at >= self.patience:
                    break
        if kept is not None:
            self.model_.load_state_dict(kept)

    @torch.inference_mode()
    def _scores(self, histories: Histories) -> Tensor:
        self.model_.eval()
        device = next(self.model_.parameters()).device
        return cast(Sequential, self.model_).scores(padded(histories, self.max_len).to(device))

    @property
    def parameters_(self) -> int:
        """Numbers of the trained network that are learnt."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.model_.parameters())

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), options and catalogue into a folder, made if it isn't there.

        Raises:
            ValueError: labels of items, or features, that Parquet cannot hold; an option that is no plain value.
        """
        check_is_fitted(self, "model_")
        options = self.get_params(deep=False)
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in self.model_.state_dict().items()}
        for name in [name for name, value in options.items() if isinstance(value, (np.ndarray, Tensor))]:
            tensors[OPTION + name] = torch.as_tensor(options.pop(name)).cpu().clone().contiguous()
        text = as_json({"format": FORMAT, "kind": type(self).__name__, "options": options, "history": self.history_})
        catalogue = self._saved_catalogue()
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "catalogue.parquet").write_bytes(catalogue)
        save_file(tensors, str(place / "model.safetensors"))
        (place / "model.json").write_text(text, encoding="utf-8")

    def _saved_catalogue(self) -> bytes:
        """Return the items' labels and features as a Parquet file.

        Raises:
            ValueError: it would not hold them.
        """
        known = pd.DataFrame(index=range(len(self.items_))) if self.features_ is None else self.features_
        if LABEL in known.columns:
            raise ValueError(f"the catalogue cannot be saved: a feature is called {LABEL!r}, as the labels are there")
        try:
            made: bytes = known.reset_index(drop=True).assign(**{LABEL: self.items_.tolist()}).to_parquet()
            same = _labels(from_arrow(parquet.read_table(BufferReader(made)))).tolist() == self.items_.tolist()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the catalogue cannot be saved: {error}") from error
        if not same:
            raise ValueError(f"the catalogue cannot be saved: Parquet does not keep labels such as {self.items_[0]!r}")
        return made

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the recommender that `save` wrote.

        Raises:
            ValueError: not such a folder, or that of another kind of recommender.
            FileNotFoundError: no folder.
        """
        place = Path(folder)
        text = (place / "model.json").read_bytes()
        try:
            held = json.loads(text)
            kind, options, history = (held[key] for key in ("kind", "options", "history"))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no recommender: {error!r}") from error
        if held.get("format") != FORMAT or kind != cls.__name__:
            raise ValueError(f"{folder} holds {held.get('format')!r}, {kind}; expected {FORMAT!r}, {cls.__name__}")
        try:
            tensors = load_file(str(place / "model.safetensors"))
            catalogue = from_arrow(parquet.read_table(place / "catalogue.parquet"))
        except (SafetensorError, ArrowInvalid) as error:
            raise ValueError(f"the files in {folder} are damaged: {error}") from error
        for name in [name for name in tensors if name.startswith(OPTION)]:
            options[name.removeprefix(OPTION)] = tensors.pop(name).numpy()
        try:
            self = cls(**options)
        except TypeError as error:
            raise ValueError(f"{folder} holds no recommender: {error}") from error
        check_options(self)
        self.items_ = _labels(catalogue)
        features = catalogue.drop(columns=LABEL)
        self.features_ = features if len(features.columns) else None
        nobody: NDArray[np.object_] = np.zeros(0, object)
        with seeded(0):
            self.model_ = self._build(Log(self.items_, nobody, [], self.features_)).to(chosen_device(self.device))
        try:
            self.model_.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(
                f"the weights in {folder} are damaged, or of another model: {first_line(error)}"
            ) from error
        self.model_.eval()
        self.history_ = history
        return self


def _labels(catalogue: pd.DataFrame) -> NDArray[np.object_]:
    return np.array(catalogue[LABEL].tolist(), object)


_NONE: NDArray[np.int64] = np.zeros(0, np.int64)
