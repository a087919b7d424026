"""The baselines of `long-context` that read with a finished model, each within the same number of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.material import Given, Reader, causal_scores
from workingpapers.tasks.long_context.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from torch import Tensor

SINKS = 4  # first tokens that stay visible: as published (Xiao et al., "StreamingLLM", ICLR 2024)
SLAB = 256  # queries at a time, where all scores are computed to choose among them


@task.entry("standard", "passkey", "extrapolation", needs=["trained"])
def dense(given: Given, context: Context) -> Reader:
    """The model's own attention to every token."""
    return Reader(given.model)


@task.entry("extrapolation", needs=["trained"])
def truncated(given: Given, context: Context) -> Reader:
    """Every token predicted from the last ones alone, as many as in training, read anew each time."""
    import torch

    model, width = given.model, given.trained

    def logits(tokens: Tensor) -> Tensor:
        early = model(tokens[:, :width], use_cache=False).logits
        late = [
            model(part, use_cache=False, logits_to_keep=1).logits[:, 0]
            for row in tokens
            for part in torch.split(row[1:].unfold(0, width, 1), SLAB)
        ]
        return torch.cat([early, torch.cat(late).view(len(tokens), -1, early.shape[-1])], dim=1)

    def entries(length: int) -> float:
        return causal_scores(min(length, width)) + max(0, length - width) * causal_scores(width)

    return Reader(model, entries, logits)


@task.entry("standard", "equal-budget", "passkey", "extrapolation", needs=["trained"])
def sliding_window(given: Given, context: Context) -> Reader:
    """Attention to the last tokens alone."""
    return _streaming(given, 0)


@task.entry("standard", "equal-budget", "passkey", "extrapolation", needs=["trained"])
def streaming_llm(given: Given, context: Context) -> Reader:
    """The last tokens and the first four, placed right before them (StreamingLLM)."""
    return _streaming(given, SINKS)


def _streaming(given: Given, sinks: int) -> Reader:
    import torch

    from workingpapers.methods.attention import common
    from workingpapers.methods.attention.fused import fused_attention
    from workingpapers.methods.attention.lm_infinite import frequencies, score_entries
    from workingpapers.methods.attention.windows import window_attention

    window = given.window(sinks)
    turns = frequencies(given.model).double() if sinks else None  # a window needs none, whatever the rotations are

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, key_mask: Tensor | None, module: Any, **kwargs: Any
    ) -> Tensor:
        if key_mask is not None:
            raise ValueError("this baseline takes no padding")
        out, lse = window_attention(q, k, v, window=window, scale=scale)
        length = k.shape[2]
        if turns is not None and length > window:
            i = torch.arange(length - q.shape[2], length, device=q.device)
            # A query sits right behind the window, and the window right behind the first tokens.
            moved = (window + sinks - 1 - i).clamp(max=0)
            far = common.rotate(q, moved[:, None] * turns)
            seen = i[:, None] - torch.arange(sinks, device=q.device) >= window
            parts = fused_attention(far, k[:, :, :sinks], v[:, :, :sinks], scale=scale, mask=seen[None, None])
            out, _ = common.merge(out, lse, *parts)
        return out

    common.apply(given.model, "streaming-llm" if sinks else "sliding-window", attention)
    return Reader(given.model, lambda length: score_entries(length, window, sinks))


@task.entry("standard", "equal-budget", "passkey")
def random_keys(given: Given, context: Context) -> Reader:
    """A fifth of the keys the last ones, all others drawn at random from those before."""
    import torch

    generators: dict[int, torch.Generator] = {}

    def pick(scores: Tensor, module: Any) -> Tensor:
        # The same draw whenever a layer reads the same number of tokens.
        generator = generators.setdefault(module.layer_idx, torch.Generator(scores.device))
        generator.manual_seed(given.seed * 1_000_003 + module.layer_idx * 10_007 + scores.shape[-1])
        return torch.rand(scores.shape, generator=generator, device=scores.device)

    return _chosen(given, "random-keys", pick, local=max(1, given.window() // 5))


@task.entry("standard", "equal-budget", "passkey")
def oracle_keys(given: Given, context: Context) -> Reader:
    """The keys with the largest scores, found by computing all of them: a bound, not a method."""
    reader = _chosen(given, "oracle-keys", lambda scores, module: scores, local=0)
    return Reader(reader.model)  # it computes every score


def _chosen(given: Given, name: str, pick: Callable[[Tensor, Any], Tensor], local: int) -> Reader:
    """Attend to the last `local` keys and to the best of those before, as many as a sliding window would hold."""
    import torch

    from workingpapers.methods.attention import common
    from workingpapers.methods.attention.lm_infinite import score_entries

    count = given.window()

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, key_mask: Tensor | None, module: Any, **kwargs: Any
    ) -> Tensor:
        if key_mask is not None:
            raise ValueError("this baseline takes no padding")
        keys, values = (common.repeat_heads(x, q.shape[1]) for x in (k, v))
        past, slabs = k.shape[2] - q.shape[2], []
        for start in range(0, q.shape[2], SLAB):
            end = min(start + SLAB, q.shape[2])
            high = past + end
            i = torch.arange(past + start, high, device=q.device)[:, None]
            j = torch.arange(high, device=q.device)
            scores = q[:, :, start:end] @ keys[:, :, :high].mT * scale
            scores = scores.masked_fill(j > i, -torch.inf)
            if high > count:
                worth = pick(scores, module).masked_fill(i - j < local, torch.inf).masked_fill(j > i, -torch.inf)
                least = worth.topk(count, dim=-1).values[..., -1:]
                scores = scores.masked_fill(worth < least, -torch.inf)
            slabs.append(scores.softmax(dim=-1) @ values[:, :, :high])
        return torch.cat(slabs, dim=2)

    common.apply(given.model, name, attention)
    return Reader(given.model, lambda length: score_entries(length, count, 0))


@task.entry("extrapolation", needs=["trained"])
def dynamic_ntk(given: Given, context: Context) -> Reader:
    """Rotary base that grows with the length read (transformers' rope type "dynamic")."""
    return _rescaled(given, "dynamic")


@task.entry("extrapolation", needs=["trained"])
def yarn(given: Given, context: Context) -> Reader:
    """Slow rotations divided, fast ones kept, scores sharpened (transformers' rope type "yarn")."""
    return _rescaled(given, "yarn")


def _rescaled(given: Given, kind: str) -> Reader:
    from workingpapers.tasks.long_context.byte_model import with_rope

    # transformers' own "dynamic" multiplies length / trained by the factor: 1 is the published rule.
    factor = 1.0 if kind == "dynamic" else given.length / given.trained
    return Reader(with_rope(given.model, rope_type=kind, factor=factor))
