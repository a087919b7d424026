"""The entries of `prefill`: ways to get a batch of prompts through a model for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workingpapers.tasks.prefill.prompts import BATCH, Given, Passes
from workingpapers.tasks.prefill.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from torch import Tensor


def _as_they_come(prompts: list[Tensor]) -> list[list[int]]:
    """Return batches of 8 in the order given."""
    return [list(range(i, min(i + BATCH, len(prompts)))) for i in range(0, len(prompts), BATCH)]


def _by_length(prompts: list[Tensor]) -> list[list[int]]:
    """Return batches of 8 of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [[order[i] for i in batch] for batch in _as_they_come(prompts)]


def _padded(model: Any, prompts: list[Tensor]) -> tuple[Tensor, int]:
    """Run prompts padded on the left to the longest one."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (longest - len(p), 0)) for p in prompts])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1], ids.numel()


def padded_as_they_come(model: Any) -> Passes:
    """Return the usual way: batches in the order given, padded on the left to their longest prompt."""
    return Passes(_as_they_come, lambda prompts: _padded(model, prompts))


@task.entry()
def padding(given: Given, context: Context) -> Passes:
    """Batches as they come, padded to their longest prompt."""
    return padded_as_they_come(given.model)


@task.entry()
def length_sorted(given: Given, context: Context) -> Passes:
    """All prompts sorted by length, then batches padded to their longest prompt."""
    return Passes(_by_length, lambda prompts: _padded(given.model, prompts))


@task.entry()
def one_at_a_time(given: Given, context: Context) -> Passes:
    """Every prompt by itself."""

    def run(prompts: list[Tensor]) -> tuple[Tensor, int]:
        import torch

        rows = [given.model(p[None], use_cache=True, logits_to_keep=1).logits[0, -1] for p in prompts]
        return torch.stack(rows), sum(map(len, prompts))

    return Passes(_as_they_come, run)


@task.entry()
def flattened(given: Given, context: Context) -> Passes:
    """Batches as they come, one prompt after the other in one row, attention prompt by prompt; one common cache."""
    import torch
    from torch.nn import functional as F

    from workingpapers.methods.attention.common import apply, repeat_heads, restore

    def attention(
        q: Tensor, k: Tensor, v: Tensor, *, scale: float, key_mask: Tensor | None, module: Any, **kwargs: Any
    ) -> Tensor:
        starts = (kwargs["position_ids"][0] == 0).nonzero().flatten().tolist()
        lengths = torch.tensor([*starts, q.shape[2]]).diff().tolist()
        keys, values = (repeat_heads(x, q.shape[1]) for x in (k, v))
        pieces = zip(*(torch.split(x, lengths, dim=2) for x in (q, keys, values)), strict=True)
        parts = [F.scaled_dot_product_attention(a, b, c, is_causal=True, scale=scale) for a, b, c in pieces]
        return torch.cat(parts, dim=2)

    def run(prompts: list[Tensor]) -> tuple[Tensor, int]:
        ids = torch.cat(prompts)[None]
        positions = torch.cat([torch.arange(len(p), device=p.device) for p in prompts])[None]
        last = torch.tensor([len(p) for p in prompts], device=ids.device).cumsum(0) - 1
        # A mask of ones: without one, restarting positions are taken for a packed row that needs a mask.
        ones, model = torch.ones_like(ids), apply(given.model, "flattened", attention)
        try:
            out = model(ids, attention_mask=ones, position_ids=positions, use_cache=True, logits_to_keep=last)
        finally:
            restore(model)
        return out.logits[0], ids.numel()

    return Passes(_as_they_come, run)


@task.entry(paper="prepacking")
def prepacking(given: Given, context: Context) -> Passes:
    """Batches as they come, packed into rows as long as their longest prompt (prefill)."""
    from workingpapers.methods.batching.prepacking import prefill

    def run(prompts: list[Tensor]) -> tuple[Tensor, int]:
        found = prefill(given.model, prompts)
        return found.logits, found.rows.size

    return Passes(_as_they_come, run)
