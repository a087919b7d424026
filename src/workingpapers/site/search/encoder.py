"""Sentence embeddings without torch: all-MiniLM-L6-v2 on onnxruntime.

A text of words w is mapped to the unit vector mean_t(h_t) / |mean_t(h_t)|, with h (T, 384) the last hidden states of
its T tokens, as the model was trained (Reimers and Gurevych, "Sentence-BERT", EMNLP 2019). `export` makes the graph
once, in a process of its own; this module only reads it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workingpapers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "all-MiniLM-L6-v2"
DIMENSIONS = 384
TOKENS = 128  # that are read of a text: what the model was trained with
_BATCH = 16  # larger ones gain nothing on one core
_COMMAND = [sys.executable, "-m", "workingpapers.site.search.export"]
_FORMAT = 1  # of the exported folder; raised when `export` changes


def cache_folder() -> Path:
    """Return the project's cache ($WORKINGPAPERS_CACHE, else in the user's cache folder); it need not exist."""
    named = os.environ.get("WORKINGPAPERS_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("workingpapers", appauthor=False)


def encoder_folder() -> Path:
    """Return the folder of the exported model; it need not exist."""
    return cache_folder() / "encoders" / f"{MODEL}-{_FORMAT}"


def embedded_text(title: str, abstract: str) -> str:
    """Return the text of a paper that is embedded."""
    return f"{title}\n{abstract}".strip()


def digest(text: str) -> str:
    """Return what identifies an embedded text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Encoder:
    """The exported model.

    Args:
        folder: where `export` wrote it.

    Raises:
        UserError: the folder does not hold a whole export.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(f"Sentence embeddings need {error.name}: pip install 'workingpapers[site]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # it would keep the memory of the largest batch for ever
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise exceptions of their own, with no common class
            raise UserError(f"The encoder in {folder} cannot be read: {error}. Delete the folder.") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, (len(texts), 384); of a text only the first 128 tokens count."""
        import numpy as np

        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # alike in length: little padding
        vectors = np.empty((len(rows), DIMENSIONS), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids = np.zeros((len(batch), len(rows[batch[-1]])), dtype=np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(batch):
                ids[place, : len(rows[row])] = rows[row]
                mask[place, : len(rows[row])] = 1
            vectors[batch] = self._session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors


def load_encoder() -> Encoder | None:
    """Return the encoder where it has been exported, None where it has not."""
    folder = encoder_folder()
    return Encoder(folder) if folder.is_dir() else None


def make_encoder() -> Encoder:
    """Return the encoder, exported first where it has not been; that takes half a minute in a process of its own.

    Raises:
        UserError: the model is not installed, or it cannot be exported.
    """
    if not encoder_folder().is_dir():
        done = subprocess.run(_COMMAND, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
            raise UserError(f"The sentence encoder cannot be made: {lines[-1]}")
    return Encoder(encoder_folder())
