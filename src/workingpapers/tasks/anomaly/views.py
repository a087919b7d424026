"""What the entries of `anomaly` read from an image: views by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.data.features import levels, pooled
from workingpapers.data.models import load_model
from workingpapers.data.types import Backbone, View

# Side in pixels at which the packaged network is used: smaller than its own 224 so that a laptop's minutes suffice,
# not below the 96 px of the packaged textures, and its deepest maps still have 4 × 4 places. Any other model is used
# at the size it was trained at.
SMALL = {"efficientnet-lite0": 128, "efficientnet-lite0-random": 128}
STRIDES = (4, 16)  # pixels between neighbouring places of the maps that localise: fine enough to place a defect
MOST_MAPS = 4
GRID = 8  # pixels of a grid place's side, at least


def size(backbone: Backbone) -> int:
    """Return the side in pixels at which a backbone is used."""
    return SMALL.get(backbone.name, backbone.image_size)


def middle(maps: list[Tensor], side: int) -> list[Tensor]:
    """Return the maps of intermediate depth: with strides of 4 to 16 pixels, and at most four of those.

    Of more than four, as in transformers, evenly spaced ones are taken without the first and the last; where no map
    has such a stride, the last map is.

    Args:
        maps: of all depths, shallow to deep, each (B, C_l, H_l, W_l).
        side: of the image in pixels.
    """
    finest, coarsest = STRIDES
    chosen = [level for level in maps if finest <= side / level.shape[-1] <= coarsest] or maps[-1:]
    if len(chosen) <= MOST_MAPS:
        return chosen
    return [chosen[round(len(chosen) * (i + 1) / (MOST_MAPS + 1))] for i in range(MOST_MAPS)]


def on_grid(maps: list[Tensor], side: int) -> Tensor:
    """Return maps side by side on one grid, (B, C_1 + ... + C_K, g, g).

    The grid is that of the finest map, but no finer than 8 pixels a place. Finer maps are averaged, coarser ones
    interpolated.
    """
    grid = max(1, min(max(level.shape[-1] for level in maps), side // GRID))
    resized = [
        F.adaptive_avg_pool2d(level, grid)
        if level.shape[-1] >= grid
        else F.interpolate(level, (grid, grid), mode="bilinear", align_corners=False)
        for level in maps
    ]
    return torch.cat(resized, dim=1)


def _maps(backbone: Backbone, batch: Tensor) -> Tensor:
    side = batch.shape[-1]
    return on_grid([level.float() for level in middle(backbone.levels(batch), side)], side)


def _pixels(backbone: Backbone) -> tuple[View, Backbone]:
    """The image itself at 16 × 16 pixels, (768,), without a model."""
    model = load_model("pixels")
    return pooled(model.image_size), model


VIEWS: dict[str, Callable[[Backbone], tuple[View, Backbone]]] = {
    "levels": lambda backbone: (levels(size(backbone)), backbone),
    "maps": lambda backbone: (View("anomaly-maps", size(backbone), _maps), backbone),
    "pixels": _pixels,
}
