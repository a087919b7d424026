"""The cache of LM-Infinite: the first tokens and the window, whatever the length of the text.

Columns are token numbers in the batch, padding included. A layer holds, for keys and for values,

    (B, H, n_g, d)    the sinks of each row: columns s, ..., s + n_g - 1, where s is the row's first real column
    (B, H, n_l-1, d)  the last n_l - 1 columns, those that the window of the next query reaches

and until more than n_g + n_l - 1 columns have come, simply all of them. Keys are kept as the model rotated them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from workingpapers.methods.attention.lm_infinite import sinks_of


class LambdaLayer(DynamicLayer):
    """One layer of `LambdaCache`.

    Attributes:
        start: (B,) the first real column of each row, None without padding; set before each forward pass.
    """

    is_croppable = False

    def __init__(self, n_local: int, n_global: int) -> None:
        super().__init__()
        self.keys: Tensor
        self.values: Tensor
        self.n_local = n_local
        self.n_global = n_global
        self.cumulative_length = 0
        self.first = 0
        self.start: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (B, H, T, d) keys and values; return what was held with the new ones behind it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = torch.cat([self.keys, key_states], dim=2)
        values = torch.cat([self.values, value_states], dim=2)
        self.cumulative_length += key_states.shape[2]
        self.keys, self.values = self._shortened(keys, values)
        return keys, values

    def _shortened(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        first = self.cumulative_length - self.n_local + 1
        if first <= self.n_global:
            return keys, values
        held = keys, values
        sinks = [x[:, :, : self.n_global] for x in held]
        if self.start is not None:
            columns = self.start.to(keys.device)[:, None] + torch.arange(self.n_global, device=keys.device)
            sinks = [sinks_of(x, columns, self.first, self.n_global) for x in held]
        windows = [x[:, :, x.shape[2] - self.n_local + 1 :] for x in held]
        self.first = first
        keys, values = (torch.cat(both, dim=2) for both in zip(sinks, windows, strict=True))
        return keys, values

    def get_seq_length(self) -> int:
        """Return how many tokens came, dropped ones included: the position of the next."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the padding mask, which counts dropped tokens too, and its offset 0."""
        return self.cumulative_length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: dropped keys cannot come back.

        Raises:
            ValueError: always, unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise ValueError("a LambdaCache cannot be cropped: assisted decoding is not supported with LM-Infinite")

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.first = 0
        self.start = None


class LambdaCache(Cache):
    """A cache for LM-Infinite with constant memory: n_global + n_local - 1 tokens a layer.

    `lm_infinite.apply` turns empty `DynamicCache`s into this one by itself, so that `generate` needs no argument.

    Args:
        n_layers: the number of attention layers.
        n_local: size of the window, the query included.
        n_global: the number of first tokens that stay.

    Raises:
        ValueError: a window smaller than 1, or a negative number of first tokens.
    """

    def __init__(self, n_layers: int, n_local: int, n_global: int) -> None:
        if n_local < 1 or n_global < 0:
            raise ValueError(f"need n_local >= 1 and n_global >= 0; got n_local={n_local}, n_global={n_global}")
        super().__init__(layers=[LambdaLayer(n_local, n_global) for _ in range(n_layers)])


def prepared(cache: Cache | None, n_layers: int, n_local: int, n_global: int) -> Cache:
    """Return a cache that fits: a new one for None, an empty `DynamicCache` turned into one in place, or the given.

    Raises:
        ValueError: a `LambdaCache` of another window or other sinks.
    """
    if cache is None:
        return LambdaCache(n_layers, n_local, n_global)
    if type(cache) is DynamicCache and cache.get_seq_length() == 0 and not cache.offloading:
        cache.layers = LambdaCache(n_layers, n_local, n_global).layers
        cache.layer_class_to_replicate = None
    for layer in cache.layers:
        if isinstance(layer, LambdaLayer) and (layer.n_local, layer.n_global) != (n_local, n_global):
            raise ValueError(
                f"the cache keeps n_local={layer.n_local} and n_global={layer.n_global} tokens; the model was given "
                f"n_local={n_local} and n_global={n_global}"
            )
    return cache
