"""S2, scaling on scales: one frozen backbone on several resolutions instead of a larger backbone.

The image is resized to every scale, the large versions are cut into tiles of the size that the backbone was trained
at, and the feature maps of the scales are pooled to one grid and concatenated by channel. Nothing is interpolated
inside the network and no parameter is added:

    r_i = int(H s_i)                                     size of scale i;   n_i = ceil(r_i / m)  tiles a side
    y_i = tile(bicubic(x, r_i), n_i)                     (n_i^2 B, 3, r_i / n_i, r_i / n_i)
    z_i = f(y_i)                                         (n_i^2 B, P + h w, C), or (n_i^2 B, C, h, w)
    g_i = area(untile(grid of z_i, n_i), size of g_ref)  (B, C, h_ref, w_ref)
    p_i = mean over the n_i^2 tiles of the P prefix tokens
    out = [p ; g], the scales one after the other on the channel axis: (B, P + h w, S C), or (B, S C, h, w)

A forward pass costs sum_i n_i^2 base passes: 5 for scales (1, 2), 14 for (1, 2, 3). Where the image holds more detail
than the base size m, give it at its native size with `tile_size=m` and, say, scales (0.5, 1): after down-sampling to
m, scale 2 would only see a blur. To classify, average each output over its tokens: concatenated scales keep apart
what averaged scales would mix. A probe on S C channels needs its own search for the regularisation.

Whether the multi-scale features of a small model hold what a large model's do is measured by a linear map from the
one to the other, `FeatureReconstruction`.

Source: Shi et al., "When Do We Not Need Larger Vision Models?", ECCV 2024, arXiv 2403.13043, and the authors' package
`s2wrapper` (its resizing, tile order, pooling and prefix tokens), which takes square images too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

Format = Literal["NLC", "NCHW"]


def tile(x: Tensor, n: int) -> Tensor:
    """Cut images (B, C, H, W) into n x n tiles: (n * n * B, C, H / n, W / n).

    Tiles, row by row, are the outer index of the batch and images the inner one: rows k B to (k + 1) B - 1 are tile k
    of every image.

    Raises:
        ValueError: a height or width that n does not divide.
    """
    height, width = x.shape[-2:]
    if n < 1 or height % n or width % n:
        raise ValueError(f"an image of {height} x {width} cannot be cut into {n} x {n} equal tiles")
    parts = x.reshape(*x.shape[:2], n, height // n, n, width // n)
    return parts.permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def untile(y: Tensor, n: int) -> Tensor:
    """Put n x n tiles (n * n * B, C, h, w) together again: (B, C, n * h, n * w), the inverse of `tile`.

    Raises:
        ValueError: a batch that n * n does not divide.
    """
    if n < 1 or len(y) % (n * n):
        raise ValueError(f"{len(y)} tiles are not a multiple of {n} x {n}")
    parts = y.reshape(n, n, len(y) // (n * n), *y.shape[1:])
    return parts.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)


def multiscale_forward(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    scales: Sequence[float] = (1, 2),
    img_sizes: Sequence[int] | None = None,
    tile_size: int | None = None,
    ref: int = 0,
    num_prefix_tokens: int = 0,
    output_fmt: Format = "NLC",
    chunked: bool = False,
) -> Tensor:
    """Return the multi-scale features of square images x (B, 3, H, H), already normalised as `fn` wants them.

    Args:
        fn: maps images (b, 3, m, m) to tokens (b, P + h * h, C) or a map (b, C, h, w).
        x: floating point; it is resized in float32 (float64 stays) and cast back, and bicubic overshoot is kept.
        scales: sizes as multiples of H, truncated to whole pixels; (1, 2), the paper's usual pair.
        img_sizes: sizes in pixels; where given, they replace `scales`.
        tile_size: the largest tile m in pixels, the size that the backbone was trained at; None takes H, so that no
            scale up to 1 is cut.
        ref: index of the scale whose grid the others are pooled to; 0. A finer one repeats the coarser grids.
        num_prefix_tokens: P, the tokens before the grid (class token, registers); 0.
        output_fmt: what `fn` returns and what is returned: "NLC" tokens (the default) or "NCHW" maps.
        chunked: whether `fn` gets B tiles at a time, which needs the memory of one base pass; by default it gets all
            tiles of a scale at once.

    Returns:
        (B, P + N, S * C) tokens or (B, S * C, h, w) maps, with the grid of scale `ref`.

    Raises:
        ValueError: images that are not square or (unless compiled) not finite, a size that its tiles do not divide,
            a token count that is no square grid (most often a wrong `num_prefix_tokens`), an output that is no tensor,
            or an option outside its range.
    """
    sizes = _checked_sizes(x, scales, img_sizes)
    _check_options(len(sizes), tile_size, ref, num_prefix_tokens, output_fmt)
    prefixes, grids = [], []
    for size in sizes:
        n = math.ceil(size / (tile_size or x.shape[-1]))
        tiles = tile(_resize(x, size, "bicubic"), n)
        outputs = [_checked_output(fn(part)) for part in (torch.split(tiles, len(x)) if chunked else [tiles])]
        output = torch.cat(outputs) if chunked else outputs[0]
        prefix, grid = _split(output, len(tiles), num_prefix_tokens, output_fmt)
        prefixes.append(prefix.reshape(n * n, len(x), *prefix.shape[1:]).mean(dim=0))
        grids.append(untile(grid, n))
    target = grids[ref].shape[-2:]
    features = torch.cat([_resize(grid, target, "area") for grid in grids], dim=1)
    if output_fmt == "NCHW":
        return features
    return torch.cat([torch.cat(prefixes, dim=2), features.flatten(2).transpose(1, 2)], dim=1)


class MultiScaleFeatures(nn.Module):
    """A backbone that sees several scales: `multiscale_forward` around a module, with nothing to train of its own.

    Put a backbone with batch normalisation into eval mode: a batch of tiles has other statistics than one of images.

    Args:
        model: maps images (b, 3, m, m) to tokens or maps, as `fn` of `multiscale_forward` does.
        scales, img_sizes, tile_size, ref, num_prefix_tokens, output_fmt, chunked: as for `multiscale_forward`.
    """

    def __init__(
        self,
        model: nn.Module,
        scales: Sequence[float] = (1, 2),
        img_sizes: Sequence[int] | None = None,
        tile_size: int | None = None,
        ref: int = 0,
        num_prefix_tokens: int = 0,
        output_fmt: Format = "NLC",
        chunked: bool = False,
    ) -> None:
        super().__init__()
        _check_options(len(scales if img_sizes is None else img_sizes), tile_size, ref, num_prefix_tokens, output_fmt)
        self.model = model
        self.scales = tuple(scales)
        self.img_sizes = None if img_sizes is None else tuple(img_sizes)
        self.tile_size = tile_size
        self.ref = ref
        self.num_prefix_tokens = num_prefix_tokens
        self.output_fmt: Format = output_fmt
        self.chunked = chunked

    @property
    def num_features(self) -> int:
        """Channels of the output, S * C; the backbone must name its own C in `num_features`, as timm's models do."""
        return len(self.scales if self.img_sizes is None else self.img_sizes) * int(self.model.num_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images x (B, 3, H, H): (B, P + N, S * C) or (B, S * C, h, w)."""
        return multiscale_forward(
            self.model,
            x,
            scales=self.scales,
            img_sizes=self.img_sizes,
            tile_size=self.tile_size,
            ref=self.ref,
            num_prefix_tokens=self.num_prefix_tokens,
            output_fmt=self.output_fmt,
            chunked=self.chunked,
        )


def _checked_sizes(x: Tensor, scales: Sequence[float], img_sizes: Sequence[int] | None) -> list[int]:
    if x.ndim != 4 or x.shape[2] != x.shape[3] or not x.is_floating_point():
        raise ValueError(
            f"images must be floating point and square, (B, 3, H, H); got {tuple(x.shape)}, {x.dtype}: "
            "pad or resize rectangular images first"
        )
    if not torch.compiler.is_compiling() and not torch.isfinite(x).all():  # a compiled program has no way to look
        raise ValueError("the images hold NaN or infinity")
    sizes = [int(x.shape[-1] * scale) for scale in scales] if img_sizes is None else [int(size) for size in img_sizes]
    if min(sizes, default=0) < 1:
        raise ValueError(f"every scale must give at least one pixel; got the sizes {sizes}")
    return sizes


def _check_options(count: int, tile_size: int | None, ref: int, num_prefix_tokens: int, output_fmt: str) -> None:
    if output_fmt not in ("NLC", "NCHW"):
        raise ValueError(f"output_fmt is {output_fmt!r}; allowed: 'NLC', 'NCHW'")
    if num_prefix_tokens < 0 or (num_prefix_tokens and output_fmt == "NCHW"):
        raise ValueError(f"num_prefix_tokens is {num_prefix_tokens}; it must be 0 or more, and 0 with 'NCHW'")
    if not 0 <= ref < count:
        raise ValueError(f"ref is {ref}; with {count} scales it must be 0 to {count - 1}")
    if tile_size is not None and tile_size < 1:
        raise ValueError(f"tile_size is {tile_size}; it must be at least 1 pixel")


def _resize(x: Tensor, size: int | tuple[int, int] | torch.Size, mode: str) -> Tensor:
    """Resize to `size` in at least float32 and cast back; at equal size both modes are the identity."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.interpolate(exact, size=size if isinstance(size, int) else tuple(size), mode=mode).to(x.dtype)


def _checked_output(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the backbone returned {type(output).__name__}; it must return a tensor: give, for example, a function "
            "that takes last_hidden_state out of what a model of transformers returns"
        )
    return output


def _split(output: Tensor, batch: int, num_prefix_tokens: int, output_fmt: Format) -> tuple[Tensor, Tensor]:
    """Return the prefix tokens (b, P, C) and the grid (b, C, h, w) of a backbone's output."""
    if output.ndim != (3 if output_fmt == "NLC" else 4) or len(output) != batch:
        raise ValueError(
            f"the backbone returned {tuple(output.shape)} for {batch} images; "
            f"expected {'(b, tokens, channels)' if output_fmt == 'NLC' else '(b, channels, height, width)'}"
        )
    if output_fmt == "NCHW":
        return output.new_empty(batch, 0, output.shape[1]), output
    tokens = output[:, num_prefix_tokens:]
    side = math.isqrt(tokens.shape[1])
    if side < 1 or side * side != tokens.shape[1]:
        raise ValueError(
            f"{output.shape[1]} tokens without {num_prefix_tokens} prefix tokens are no square grid; "
            "num_prefix_tokens must count the class token and registers"
        )
    return output[:, :num_prefix_tokens], torch.unflatten(tokens.transpose(1, 2), 2, (side, side))


def naive_multiscale_forward(
    fn: Callable[[Tensor], Tensor], x: Tensor, sizes: Sequence[int], tile_size: int, num_prefix_tokens: int = 0
) -> Tensor:
    """Return the tokens (B, P + N, S * C) of `multiscale_forward` by the definition: one image and one tile at a time.

    Args:
        fn: maps one tile (1, 3, m, m) to tokens (1, P + h * h, C).
        x: (B, 3, H, H) images.
        sizes: the size of each scale in pixels; the first one's grid is the output's.
        tile_size: the largest tile in pixels.
        num_prefix_tokens: P.
    """
    images = []
    for image in torch.split(x, 1):
        prefixes, grids = [], []
        for size in sizes:
            n = -(-size // tile_size)
            side = size // n
            large = F.interpolate(image, size=size, mode="bicubic")
            tokens = [
                [fn(large[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side])[0] for j in range(n)]
                for i in range(n)
            ]
            prefixes.append(torch.stack([t[:num_prefix_tokens] for row in tokens for t in row]).mean(dim=0))
            grid = math.isqrt(len(tokens[0][0]) - num_prefix_tokens)
            maps = [[t[num_prefix_tokens:].reshape(grid, grid, -1) for t in row] for row in tokens]
            grids.append(torch.cat([torch.cat(row, dim=1) for row in maps]))
        first = len(grids[0])
        pooled = [F.adaptive_avg_pool2d(g.permute(2, 0, 1), first).flatten(1).T for g in grids]
        images.append(torch.cat([torch.cat(prefixes, dim=1), torch.cat(pooled, dim=1)]))
    return torch.stack(images)


class FeatureReconstruction(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """How much of one model's features a linear map of another's recovers.

    One linear map with intercept is fitted by (ridge) least squares from source features to target features of the
    same images, or of the same positions of their grids. With l its mean squared error and l0 that of the best
    constant, the mean of the training targets, l / l0 is 1 where the source says nothing and 0 where it says
    everything; -log(l / l0) measures the shared information. Judge on images that the map was not fitted to.

    Args:
        alpha: ridge penalty on the weights of the standardised source features; 1.0, scikit-learn's default, next to
            nothing beside thousands of rows.

    Attributes:
        map_: the fitted pipeline, StandardScaler and Ridge.
        target_mean_: (T,) the constant predictor.
    """

    def __init__(self, *, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the map from source features X (N, D) to target features y (N, T) or (N,).

        Raises:
            ValueError: features that are not finite, lengths that differ, or a negative `alpha`.
        """
        source, target = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        if not self.alpha >= 0:
            raise ValueError(f"alpha is {self.alpha!r}; it must be 0 or more")
        self.map_ = make_pipeline(StandardScaler(), Ridge(alpha=self.alpha)).fit(source, target)
        self.target_mean_ = np.atleast_1d(target.mean(axis=0))
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the reconstructed target features, (N, T), or (N,) where the fit had (N,)."""
        check_is_fitted(self)
        return self.map_.predict(validate_data(self, X, dtype=np.float64, reset=False))

    def loss_ratio(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return l / l0: the map's mean squared error on (X, y) divided by that of the constant predictor.

        Raises:
            ValueError: targets that equal the constant, for which the ratio does not exist.
        """
        predicted = self.predict(X)
        target = check_array(y, ensure_2d=False, dtype=np.float64)
        check_consistent_length(predicted, target)
        if predicted.shape != target.shape:
            raise ValueError(f"y has shape {target.shape}; the map predicts {predicted.shape}")
        constant = np.mean((target - self.target_mean_) ** 2)
        if constant == 0:
            raise ValueError("every target equals the constant predictor: its loss is 0 and the ratio is undefined")
        return float(np.mean((target - predicted) ** 2) / constant)

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return 1 - l / l0 (higher is better, 1 at best), the share of the targets' variation that is recovered."""
        return 1 - self.loss_ratio(X, y)

    def information(self, X: ArrayLike, y: ArrayLike) -> float:
        """Return -log(l / l0) in nats, the paper's measure of the information shared; infinite for a perfect map."""
        ratio = self.loss_ratio(X, y)
        return -math.log(ratio) if ratio else math.inf
