"""How entries of `long-context` are judged: loss by position, retrieval, seconds, and what their attention does."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.material import Problem, Reader, causal_scores
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from torch import Tensor

DECODED = 8  # tokens whose decoding is timed
LAYERS = 6  # whose attention is looked at, from the first to the last
ROWS = 4  # windows a pass, where models are small


def losses(logits: Tensor, following: Tensor) -> Tensor:
    """Return the loss in nats of each next token, (B, T), for scores (B, T, V) and the tokens that follow (B, T)."""
    import torch
    from torch.nn import functional as F

    # In parts: scores of a large vocabulary fill memory.
    parts = zip(torch.split(logits, 256, dim=1), torch.split(following, 256, dim=1), strict=True)
    found = [F.cross_entropy(a.flatten(0, 1).float(), b.flatten(), reduction="none").view(b.shape) for a, b in parts]
    return torch.cat(found, dim=1)


def buckets(length: int) -> list[tuple[int, int]]:
    """Return ranges of positions [first, last) that double in size: up to 64 tokens, 64 to 128, and so on."""
    edges = [0, *(64 * 2**i for i in range(length.bit_length()) if 64 * 2**i < length), length]
    return list(itertools.pairwise(edges))


def log_by_position(mean: Tensor, context: Context) -> None:
    """Log the mean loss (T,) of each bucket of positions at its end."""
    for first, last in buckets(len(mean)):
        context.log("nll by position", last, mean[first:last].mean().item())


def losses_by_position(reader: Reader, windows: Tensor, context: Context) -> Tensor:
    """Return the mean loss over windows (n, T + 1) at each position, (T,), and log it."""
    import torch

    rows = [losses(reader.predict(part[:, :-1]), part[:, 1:]) for part in torch.split(windows, ROWS)]
    mean = torch.cat(rows).double().mean(dim=0)
    log_by_position(mean, context)
    return mean


def measure_reading(fit: Callable[[Any], Reader], problem: Problem, context: Context) -> dict[str, float]:
    """Read held-back windows and go on token by token; loss, share of scores computed, and seconds of both.

    Seconds are medians over windows and tokens, after a short text to warm up.
    """
    import torch

    reader, length = fit(problem.given), problem.given.length
    found, prefill, decode = [], [], []
    with torch.inference_mode():
        reader.model(problem.windows[:1, :64], use_cache=True)
        for row in problem.windows[:, None]:
            out, seconds = _timed(reader.model, row[:, :length], use_cache=True)
            prefill.append(seconds)
            found.append(losses(out.logits[:, :-1], row[:, 1:length]))
            cache = out.cache
            del out
            for i in range(length, row.shape[1]):
                step, seconds = _timed(reader.model, row[:, i : i + 1], cache=cache, use_cache=True)
                cache = step.cache
                decode.append(seconds)
    mean = torch.cat(found).double().mean(dim=0)
    log_by_position(mean, context)
    return {
        "nll": float(mean.mean()),
        "computed-scores": 100 * reader.entries(length) / causal_scores(length),
        "prefill-seconds": statistics.median(prefill),
        "decode-seconds": statistics.median(decode),
    }


def _timed(work: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    result = work(*args, **options)
    wait()
    return result, time.perf_counter() - start


def measure_attention(fit: Callable[[Any], Reader], problem: Problem, context: Context) -> dict[str, float]:
    """Compare what an entry's attention gives with the exact one, on the same queries, keys and values.

    The model reads held-back text with exact attention; in a few layers the entry's function is called beside it. Its
    weights are read off by giving it the columns of the identity as values, so nothing depends on how a method counts.
    """
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    reader = fit(problem.given)
    name = reader.model.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS[name]
    count = reader.model.config.num_hidden_layers
    judge = Judge(function, {round(i * (count - 1) / max(1, LAYERS - 1)) for i in range(LAYERS)} & set(range(count)))
    ALL_ATTENTION_FUNCTIONS.register(name, judge)
    try:
        with torch.inference_mode():
            for row in problem.windows[:, None, : problem.given.length]:
                reader.model(row, use_cache=False, logits_to_keep=1)
    finally:
        ALL_ATTENTION_FUNCTIONS.register(name, function)
    return {key: 100 * statistics.fmean(values) for key, values in judge.found.items()}


class Judge:
    """An attention function of transformers that answers exactly, and notes how far another one is from that.

    Args:
        function: the other one, as transformers calls it.
        layers: the numbers of the layers in which it is looked at.
    """

    def __init__(self, function: Callable[..., Any], layers: set[int]) -> None:
        self._function, self._layers = function, layers
        self.found: dict[str, list[float]] = {"output-error": [], "recovered-mass": [], "kept-scores": []}

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Return the exact output, (B, T, H, d)."""
        from workingpapers.methods.attention.common import causal_mask, repeat_heads

        heads, length = query.shape[1], query.shape[2]
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        scores = query.float() @ repeat_heads(key, heads).float().mT * scale
        exact = scores.masked_fill_(~causal_mask(length, length, query.device), -math.inf).softmax(dim=-1)
        out = (exact.to(value.dtype) @ repeat_heads(value, heads)).transpose(1, 2)
        if module.layer_idx in self._layers:
            given = self._function(module, query, key, value, mask, **kwargs)[0]
            self.found["output-error"].append(float((given - out).norm() / out.norm()))
            kept = self._weights(module, query, key, mask, value.shape[-1], kwargs) > 0
            self.found["recovered-mass"].append(float((exact * kept).sum(dim=-1).mean()))
            self.found["kept-scores"].append(float(kept.sum() / (len(query) * heads * causal_scores(length))))
        return out.contiguous(), None

    def _weights(self, module: Any, q: Tensor, k: Tensor, mask: Tensor | None, width: int, kwargs: Any) -> Tensor:
        """Return the weights (B, H, T, T), `width` columns at a time."""
        import torch

        batch, groups, length, _ = k.shape
        columns = []
        for start in range(0, length, width):
            identity = torch.zeros(length, width, dtype=q.dtype, device=q.device)
            rows = torch.arange(start, min(start + width, length), device=q.device)
            identity[rows, rows - start] = 1.0
            values = identity.expand(batch, groups, length, width).contiguous()
            columns.append(self._function(module, q, k, values, mask, **kwargs)[0].transpose(1, 2))
        return torch.cat(columns, dim=-1)[..., :length]
