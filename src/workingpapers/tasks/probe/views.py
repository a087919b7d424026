"""What the entries of `probe` read from an image: views by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from workingpapers.data.types import Backbone, View

# Sides in pixels at which the packaged convolutional network is used: smaller than its own 224, so that a laptop's
# minutes suffice. Any other model is used at the size it was trained at.
SMALL = {"efficientnet-lite0": 128, "efficientnet-lite0-random": 128}
BASE = {"efficientnet-lite0": 96, "efficientnet-lite0-random": 96}


def _size(backbone: Backbone) -> int:
    return SMALL.get(backbone.name, backbone.image_size)


def _base(backbone: Backbone) -> int:
    return BASE.get(backbone.name, backbone.image_size)


def _pooled(backbone: Backbone) -> tuple[View, Backbone]:
    """One vector per image."""
    from workingpapers.data.features import pooled

    return pooled(_size(backbone)), backbone


def _tokens(backbone: Backbone) -> tuple[View, Backbone]:
    """The last feature map, (L, D)."""
    from workingpapers.data.features import tokens

    return tokens(_size(backbone)), backbone


def _multi_view(backbone: Backbone) -> tuple[View, Backbone]:
    """The pooled vectors of 16 views, (16, D): whole, crops, rotations, mirrored."""
    import torch

    from workingpapers.data.types import View
    from workingpapers.methods.features.off_the_shelf import multi_view

    def read(model: Backbone, batch: Tensor) -> Tensor:
        return torch.stack([model.pooled(view) for view in multi_view(batch).unbind(1)], dim=1)  # one at a time: memory

    return View("multi-view", _size(backbone), read), backbone


def _scaled(scales: tuple[int, ...], tiled: bool) -> Callable[[Backbone], tuple[View, Backbone]]:
    def make(backbone: Backbone) -> tuple[View, Backbone]:
        from workingpapers.data.types import View
        from workingpapers.methods.features.multi_scale import multiscale_forward

        base = _base(backbone)
        largest = base * max(scales)

        def read(model: Backbone, batch: Tensor) -> Tensor:
            def forward(x: Tensor) -> Tensor:
                return model.tokens(x)[1]

            sizes = [base * scale for scale in scales]
            return multiscale_forward(forward, batch, img_sizes=sizes, tile_size=base if tiled else None).mean(dim=1)

        name = f"scales-{'-'.join(map(str, scales))}-of-{base}-{'tiled' if tiled else 'whole'}"
        return View(name, largest, read), backbone

    return make


def _pixels(backbone: Backbone) -> tuple[View, Backbone]:
    """The image itself, without a model."""
    from workingpapers.data.features import pooled
    from workingpapers.data.models import load_model

    model = load_model("pixels")
    return pooled(model.image_size), model


def _random_weights(backbone: Backbone) -> tuple[View, Backbone]:
    """The packaged network with random weights: what the architecture gives without pre-training."""
    from workingpapers.data.models import load_model

    return _pooled(load_model("efficientnet-lite0-random"))


def _hog(backbone: Backbone) -> tuple[View, Backbone]:
    """Histograms of oriented gradients of the image at 64 px."""
    from workingpapers.data.models import load_model
    from workingpapers.data.types import View

    def read(_: Backbone, batch: Tensor) -> Tensor:
        import numpy as np
        import torch
        from skimage.feature import hog

        return torch.from_numpy(np.stack([hog(image.numpy()) for image in batch.mean(dim=1)])).float()

    return View("hog", 64, read), load_model("pixels")


VIEWS: dict[str, Callable[[Backbone], tuple[View, Backbone]]] = {
    "pooled": _pooled,
    "tokens": _tokens,
    "multi-view": _multi_view,
    "scale-1": _scaled((1,), tiled=True),
    "scale-2-whole": _scaled((2,), tiled=False),
    "scales-1-2": _scaled((1, 2), tiled=True),
    "pixels": _pixels,
    "hog": _hog,
    "random-weights": _random_weights,
}
