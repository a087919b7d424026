"""Giraffe: changed frequencies of rotary positions, for fine-tuning and evaluating beyond the training length.

Rotary positions turn pair i of d dimensions by m f_i at position m, f_i = base^(-2i/d), i = 0 .. d/2 - 1. A model fails
at angles that training never showed. Three changes of f, applied in this order; nothing else is touched:

    linear       f_i <- f_i / s                     positions shrink into the range seen in training
    power        f_i <- f_i (1 - 2i/d)^k            fast pairs keep their speed, slow ones become slower
    truncated    f_i <- f_i      if f_i >= b        turns that complete within the context of T tokens
                        b / 16   if b / 8 <= f_i < b
                        0        if f_i < b / 8     no position at all: a plain product;  b = 2 pi / T

and random positions, in training only: each sequence gets p_j = u_1 + ... + u_j with u ~ U(0, 2), shrunk to end at its
length if it would end beyond.

Division is the most robust; a larger s in evaluation than in fine-tuning reaches farther still, though not s times as
far. Without fine-tuning any change costs loss at short lengths: report those too. The paper's xPos is not included, it
did not converge to the loss of the others; dynamic NTK and YaRN are transformers' own rope types.

In transformers this is a rope type, "giraffe", with `factor` s, `power` k and `truncate` T (0: not) among the config's
RoPE parameters, so models are saved and loaded with it; `register` makes it known before `from_pretrained`.

Source: Pal et al., "Giraffe: Adventures in Expanding Context Lengths in LLMs", arXiv 2308.10882, and the authors' code
(order, thresholds, the middle speed, random positions).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workingpapers.methods.attention.choices import load_choice, save_choice
from workingpapers.methods.attention.common import Model, rotary_embedding


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A change of the frequencies; the defaults change nothing.

    Args:
        factor: s, by which frequencies are divided, 1 or more.
        power: k, 0 or more; around 0.5 in the authors' plots.
        truncate: T, the context length by which frequencies are judged; 0 keeps them all.

    Raises:
        ValueError: an option out of range.
    """

    factor: float = 1.0
    power: float = 0.0
    truncate: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor must be 1 or more; got {self.factor!r}")
        if not 0 <= self.power < math.inf:
            raise ValueError(f"power must be 0 or more; got {self.power!r}")
        if not (isinstance(self.truncate, int) and self.truncate >= 0):
            raise ValueError(f"truncate must be a length in tokens, or 0 for none; got {self.truncate!r}")

    def frequencies(self, inv_freq: Tensor) -> Tensor:
        """Return the changed frequencies of (d / 2,) falling ones."""
        falling = 1 - torch.arange(len(inv_freq), device=inv_freq.device) / len(inv_freq)
        changed = inv_freq / self.factor * falling**self.power
        if not self.truncate:
            return changed
        cut = 2 * math.pi / self.truncate
        slow = torch.where(changed >= cut / 8, cut / 16, 0.0)  # judged by what they were, not by what they become
        return torch.where(changed >= cut, changed, slow)


def random_positions(batch: int, length: int, generator: torch.Generator | None = None) -> Tensor:
    """Return (batch, length) rising positions in float32, steps of 0 to 2, none above `length`."""
    positions = torch.rand(batch, length, generator=generator).mul(2).cumsum(dim=1)
    return (positions * (length / positions[:, -1:].clamp(min=length))).clamp(max=length)  # rounding may pass it


def register() -> None:
    """Make the rope type "giraffe" known to transformers, before loading a model that was saved with it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ROPE_INIT_FUNCTIONS["giraffe"] = _init_giraffe


def _init_giraffe(
    config: Any, device: Any = None, seq_len: int | None = None, layer_type: str | None = None
) -> tuple[Tensor, float]:
    """Return the frequencies that a config asks for and the factor of cosines and sines, in transformers' way."""
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dim = int(head * parameters.get("partial_rotary_factor", 1.0))
    plain = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    options = {name: parameters[name] for name in ("factor", "power", "truncate") if name in parameters}
    return Basis(**options).frequencies(plain), 1.0


@dataclass
class _Original:
    """What `restore` puts back."""

    rotary: nn.Module
    parameters: dict[str, Any]


_ORIGINAL = "_workingpapers_rotary"


def apply(model: Model, basis: Basis, *, randomize: bool = False) -> Model:
    """Give a rotary decoder of transformers another basis; `restore` undoes it.

    Applied again, for instance with a larger factor after fine-tuning, it replaces the basis. Gemma 3 gets it in the
    layers with full attention. Caches filled before are of no use afterwards.

    Args:
        model: a model of transformers with one rotary embedding of rope type "default". Changed in place, as is its
            config.
        basis: the frequencies.
        randomize: draw random positions in every forward pass in training mode, from torch's global generator.

    Returns:
        The model.

    Raises:
        ValueError: a model without rotary positions, or with another rope type.
    """
    register()
    original = getattr(model, _ORIGINAL, None)
    if original is None:
        rotary, parameters = rotary_embedding(model), getattr(model.config, "rope_parameters", None)
        if parameters is None:
            raise ValueError(
                f"{type(model).__name__} has no RoPE parameters in its config; a basis cannot replace them"
            )
        original = _Original(rotary, parameters)
    model.config.rope_parameters = _changed(original.parameters, basis)
    try:
        rotary = type(original.rotary)(model.config).to(next(model.parameters()).device)
    except BaseException:
        model.config.rope_parameters = original.parameters
        raise
    rotary.train(rotary_embedding(model).training)
    if randomize:
        rotary.register_forward_pre_hook(_randomize, with_kwargs=True)
    _put(model, rotary)
    setattr(model, _ORIGINAL, original)
    return model


def restore(model: Model) -> Model:
    """Give a model back the basis that it had before `apply`, and return it.

    Raises:
        ValueError: nothing was applied.
    """
    original: _Original | None = getattr(model, _ORIGINAL, None)
    if original is None:
        raise ValueError("nothing to restore: no basis was applied to the model")
    model.config.rope_parameters = original.parameters
    _put(model, original.rotary.to(next(model.parameters()).device))
    delattr(model, _ORIGINAL)
    return model


def _changed(parameters: dict[str, Any], basis: Basis) -> dict[str, Any]:
    """Return a copy of a config's RoPE parameters with the basis in it."""
    changed = copy.deepcopy(parameters)
    inner = changed.get("full_attention", changed)
    if inner.get("rope_type") != "default":
        raise ValueError(f"the model's rope type is {inner.get('rope_type')!r}; a basis can only replace 'default'")
    inner.update(rope_type="giraffe", **asdict(basis))
    return changed


def _put(model: nn.Module, rotary: nn.Module) -> None:
    present = rotary_embedding(model)
    path = next(name for name, module in model.named_modules() if module is present)
    model.set_submodule(path, rotary)


def _randomize(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the position ids of a rotary embedding in training: (B, T), the second argument."""
    if not module.training:
        return args, kwargs
    ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    hidden = args[0] if args else kwargs["x"]
    drawn = random_positions(hidden.shape[0], ids.shape[1]).to(ids.device)
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": drawn}
    return (args[0], drawn, *args[2:]), kwargs


def choose(
    model: Model, tokens: Tensor, candidates: Sequence[Basis], *, beyond: int = 0
) -> tuple[Basis, dict[Basis, float]]:
    """Return the basis under which the model predicts some text best, as it is, without fine-tuning.

    Args:
        model: see `apply`; left as it was.
        tokens: (B, T) token ids, T the length that matters.
        candidates: the bases to compare, `Basis()` (no change) among them for a fair answer.
        beyond: judge by the tokens at positions above this one only, for instance the training length.

    Returns:
        The best basis, and the loss of each in nats per token.

    Raises:
        ValueError: no candidates, no token beyond, a basis already applied, or a loss that is not finite.
    """
    if not candidates or tokens.ndim != 2 or tokens.shape[1] < beyond + 2 or beyond < 0:
        raise ValueError(
            f"need candidates and tokens (B, T) with T >= beyond + 2; got {len(candidates)} candidates, "
            f"tokens {tuple(tokens.shape)}, beyond={beyond}"
        )
    if hasattr(model, _ORIGINAL):
        raise ValueError("a basis is applied to the model already; call restore(model) first")
    losses = {}
    try:
        for basis in candidates:
            losses[basis] = _loss(apply(model, basis), tokens, beyond)
    finally:
        if hasattr(model, _ORIGINAL):
            restore(model)
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise ValueError(f"losses must be finite; got {losses}")
    return min(losses, key=lambda basis: losses[basis]), losses


@torch.no_grad()
def _loss(model: Any, tokens: Tensor, beyond: int) -> float:
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        logits = model(tokens, use_cache=False).logits[:, beyond:-1].float()
    finally:
        for module in trained:
            module.training = True
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, beyond + 1 :].flatten()))


def save(path: str | Path, model: nn.Module, basis: Basis) -> None:
    """Write a basis that was chosen for a model to a JSON file tied to that model."""
    save_choice(path, "giraffe", model, asdict(basis))


def load(path: str | Path, model: nn.Module) -> Basis:
    """Return the basis of a file that `save` wrote.

    Raises:
        ValueError: a file of another kind, or of another model; a basis out of range.
    """
    choice = load_choice(path, "giraffe", model)
    try:
        return Basis(**choice)
    except TypeError as error:
        raise ValueError(f"{path} holds no basis: {choice!r}") from error
