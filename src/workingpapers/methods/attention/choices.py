"""Choices made once for a model (a basis, a pattern per head), as files tied to that model by a fingerprint.

The fingerprint covers the names and shapes of all parameters and a few values of each, in bfloat16: the same weights
in float32 and bfloat16, on any device, have the same one; a fine-tuned model has another.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that stand for a model's architecture and weights."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // 8)][:8].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(parameter.shape)}{sample.tolist()}".encode())
    return digest.hexdigest()[:16]


def save_choice(path: str | Path, method: str, model: nn.Module, choice: Any) -> None:
    """Write a choice made for a model as JSON.

    Args:
        path: the file, replaced if it exists.
        method: the method that it belongs to.
        model: the model that it was made for.
        choice: anything that JSON can hold.
    """
    content = {"method": method, "model": type(model).__name__, "fingerprint": fingerprint(model), "choice": choice}
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_choice(path: str | Path, method: str, model: nn.Module) -> Any:
    """Return the choice of a file that `save_choice` wrote.

    Raises:
        ValueError: not such a file, or one of another method or another model.
        FileNotFoundError: no file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        of, kind, mark, choice = (content[key] for key in ("method", "model", "fingerprint", "choice"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of choices: {error!r}") from error
    if of != method:
        raise ValueError(f"{path} belongs to {of!r}, not to {method!r}")
    if mark != fingerprint(model):
        raise ValueError(
            f"{path} was made for another model: a {kind} with fingerprint {mark}; this {type(model).__name__} has "
            f"{fingerprint(model)}"
        )
    return choice
