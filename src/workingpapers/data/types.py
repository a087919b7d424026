"""What a data set and a backbone are, whoever provides them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # `papers data` lists names without importing arrays or tensors
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Images(Protocol):
    """Arrays by number: one array of them all, or a sequence that reads them when indexed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[Any]: ...
    def __iter__(self) -> Iterator[NDArray[Any]]: ...


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Examples with labels: images for a backbone, or features that somebody computed already.

    Attributes:
        name: as the user asked for it; shown in tables.
        fingerprint: hex digest that changes when any image, feature or label changes.
        labels: (N,) int64, indices into `class_names`.
        class_names: K names, in label order.
        images: N images (H, W, 3) uint8 RGB, read when indexed; sizes may differ. None for features.
        features: (N, D) vectors or (N, L, D) tokens, finite floats. None for images.
        part: (N,) of "train" and "test" where the data set has an official split; None where it has none.
        masks: N masks (H, W) bool of the anomalous pixels (all False for a normal image), for anomaly data.
        label_distances: (K, K) a metric between the classes, zero on the diagonal, where there is a natural one.
        skipped: what could not be read and was left out, for the user to see: one line per file.
        unused: folders that belong to neither part, for the user to see.
    """

    name: str
    fingerprint: str
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    images: Images | None = None
    features: NDArray[np.floating] | None = None
    part: NDArray[np.str_] | None = None
    masks: Images | None = None
    label_distances: NDArray[np.float64] | None = None
    skipped: tuple[str, ...] = field(default=(), repr=False)
    unused: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know: images that were skipped, the first of them, and folders that are not used."""
        count, told = len(self.skipped), []
        if count:
            told.append(f"{count} image{'s were' if count > 1 else ' was'} skipped: {'; '.join(self.skipped[:3])}")
        if self.unused:
            told.append(f"Not used, since neither to train nor to test on: {', '.join(self.unused)}.")
        return tuple(told)


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a named data set or model before it is loaded.

    Attributes:
        name: what users type.
        title: one line on what it is.
        source: where it comes from: a package with its extra, a file, or an address.
        licence: SPDX identifier or the owner's words.
        size: what it holds, for people: "1,8xx images, 9 classes".
        here: whether it loads right now without the network.
        load: "package.module:function", called without arguments.
    """

    name: str
    title: str
    source: str
    licence: str
    size: str
    here: Callable[[], bool]
    load: str


class Backbone(Protocol):
    """A frozen vision model: images in, features out. It is in eval mode and none of its parameters trains.

    Attributes:
        name: as the user asked for it; shown in tables.
        fingerprint: hex digest of architecture, weights and preprocessing.
        image_size: side in pixels at which it was pre-trained.
        dim: size D of a token and of the pooled vector.
    """

    name: str
    fingerprint: str
    image_size: int
    dim: int

    def preprocess(self, images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
        """Return images (H, W, 3) of any sizes as one normalised float32 batch (B, 3, size, size)."""

    def tokens(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last feature map as prefix tokens (B, P, D), P ≥ 0, and grid tokens (B, h*w, D), row by row."""

    def pooled(self, batch: Tensor) -> Tensor:
        """Return one vector per image (B, D): what the model's own classifier reads."""

    def levels(self, batch: Tensor) -> list[Tensor]:
        """Return the feature maps of its depths, shallow to deep, each (B, C_l, H_l, W_l)."""


@dataclass(frozen=True)
class View:
    """One way to turn an image into features with a backbone.

    Attributes:
        name: identifies what `read` does; part of the cache's fingerprint together with `version`.
        size: side in pixels of the batch that `read` gets.
        read: backbone and batch (B, 3, size, size) in, features (B, ...) out.
        version: raised whenever the meaning of `read` changes.
    """

    name: str
    size: int
    read: Callable[[Backbone, Tensor], Tensor]
    version: int = 1
