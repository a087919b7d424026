"""How an attention function stands in transformers' interfaces, and how it travels with the model that it is in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from workingpapers.methods.attention.common import Attention, Prepare, check_inputs

# Arguments by which some models change scores or softmax in ways that the functions of this package do not know.
_UNSUPPORTED = ("softcap", "position_bias", "s_aux", "head_mask", "sliding_window")
_PREPARED = "attention_prepared"  # an argument that must reach the layers with those that `prepare` adds


@dataclass
class Applied:
    """An attention function in a model: what `common.restore` needs to know, what registers it, and its hook.

    A model that was pickled brings it along, and thereby its function into the process that loads it.

    Args:
        name: what the method is called.
        attention, prepare: as `common.apply` takes them.
        names: of the arguments of the base model, in order; some models give them by their places.
        replaced: the attention implementation that the model had before.

    Attributes:
        hook: the handle of `before`, if there is something to prepare.
        key: under which the function is registered, in any process.
    """

    name: str
    attention: Attention
    prepare: Prepare | None
    names: tuple[str, ...]
    replaced: str
    hook: torch.utils.hooks.RemovableHandle | None = field(init=False, default=None)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = f"{self.name}_{uuid4().hex[:12]}"
        self._register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be what was copied or pickled."""
        self.__dict__.update(state)
        if self.key not in AttentionInterface():
            self._register()

    def _register(self) -> None:
        AttentionInterface.register(self.key, self._attend)
        AttentionMaskInterface.register(self.key, _padding)

    def before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments to use in a forward pass, those given if another attention was set in the meantime."""
        if self.prepare is None or module.config._attn_implementation != self.key:
            return args, kwargs
        given = dict(zip(self.names, args, strict=False)) | kwargs
        former = given.pop("past_key_values", None)  # what `cache` was called; transformers still takes it
        if former is not None:
            given["cache"] = former
        return (), {**self.prepare(module, given), _PREPARED: True}

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | str | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attend as transformers asks for it, with (B, T_q, H_q, d) as output and no weights."""
        name, kind = self.name, type(module).__name__
        if dropout:
            raise ValueError(f"{name} has no attention dropout; got {dropout}: set config.attention_dropout to 0")
        refused = [k for k in _UNSUPPORTED if kwargs.pop(k, None) is not None]
        if refused:
            raise ValueError(f"{name} does not support {', '.join(refused)} of {kind}")
        if kwargs.pop(_PREPARED, None) is None and self.prepare is not None:
            raise ValueError(f"{name} does not run in {kind}, whose model does not hand arguments of its own on to it")
        if isinstance(attention_mask, str):
            raise ValueError(attention_mask)
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"{name} takes a padding mask (B, T); got {tuple(attention_mask.shape)}")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        device = query.device.type
        mixed, held = torch.is_autocast_enabled(device), key
        if mixed:  # inputs are rounded as SDPA's are; what a function computes in float32 must not be
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
        check_inputs(query, key, value)
        kwargs["held_keys"] = held
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            out = self.attention(query, key, value, scale=scale, key_mask=attention_mask, module=module, **kwargs)
        return out.transpose(1, 2).contiguous(), None


def _padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | str | None:
    """Return the padding mask (B, T_k), or None without padding, in place of transformers' (B, 1, T_q, T_k).

    Another mask is returned as a message, for the layers that use it to raise: Gemma makes one for sliding windows
    even if it has no such layer. A static cache raises at once: `generate` makes its mask before the model runs.
    """
    tokens = q_offset + q_length
    if kv_offset or kv_length != tokens:
        raise ValueError(
            f"cache and attention_mask must hold as many positions as there are tokens so far, {tokens}; they hold "
            f"{kv_length}. Static caches are not supported"
        )
    if mask_function is not None and mask_function is not causal_mask_function:
        advice = "; a compiled model needs an attention_mask, of ones without padding"
        refused = "only causal attention with padding is supported, not packed sequences or other masks"
        return refused + advice * (torch.compiler.is_compiling() and attention_mask is None)
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.shape != (batch_size, kv_length):
        return f"attention_mask must be (B, T) = {(batch_size, kv_length)}; got {tuple(attention_mask.shape)}"
    return attention_mask.bool()
