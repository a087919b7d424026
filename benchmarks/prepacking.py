"""Time the first pass over prompts of unequal length: prepacking against padding, sorting and one at a time.

    python benchmarks/prepacking.py [REPEATS]

A random Llama (8 layers of width 384, 6 heads, 2 for keys and values, 32,000 tokens) in float32 on one thread, 64
prompts with log-normal lengths (median 60, at most 512). Every way ends with the logits of the next token of every
prompt and a cache per prompt or batch. "ideal" is the speed-up over padding that processing not one padding token would
give, 64 max(l) / sum(l); attention, which costs more in longer rows, is not in it. Rounds interleave the ways, so that
other load hits all alike; the smallest CPU time counts. All ways must choose the same next tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workingpapers.methods.batching.prepacking import naive_prefill, prefill

PROMPTS, MEDIAN, SPREAD, LONGEST, BATCH = 64, 60, 1.0, 512, 8
Ids = list[int]


def prompts_of_unequal_length(generator: torch.Generator) -> list[Ids]:
    """Return random prompts with log-normal lengths."""
    lengths = (MEDIAN * torch.exp(SPREAD * torch.randn(PROMPTS, generator=generator))).clamp(1, LONGEST).long()
    return [torch.randint(3, 32_000, (int(n),), generator=generator).tolist() for n in lengths]


def padded(model: Any, prompts: list[Ids]) -> Tensor:
    """Return the next-token logits after one pass over the batch, padded on the left."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1).logits
    return logits[:, 0]


def length_sorted(model: Any, prompts: list[Ids]) -> Tensor:
    """Return the logits after passes over batches of BATCH prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    chunks = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    logits = torch.cat([padded(model, [prompts[i] for i in chunk]) for chunk in chunks])
    return logits[torch.tensor(order).argsort()]


def one_at_a_time(model: Any, prompts: list[Ids]) -> Tensor:
    """Return the logits after a pass for every prompt."""
    return torch.stack([logits for logits, _ in naive_prefill(model, prompts)])


def prepacked(model: Any, prompts: list[Ids]) -> Tensor:
    """Return the logits after a pass over packed rows, and leave a cache split by prompt."""
    return prefill(model, prompts).logits


def main(repeats: int = 3) -> None:
    """Print the seconds of every way, the speed-up over padding and its share of the ideal."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6, num_key_value_heads=2
    )
    model: Any = LlamaForCausalLM(config).eval()
    prompts = prompts_of_unequal_length(torch.Generator().manual_seed(0))
    total, longest = sum(map(len, prompts)), max(map(len, prompts))
    rows, ideal = prefill(model, prompts).rows, PROMPTS * longest / total
    print(f"torch {torch.__version__}, 1 thread; {PROMPTS} prompts, {total} tokens, the longest {longest}")
    print(f"{len(rows.input_ids)} rows of {rows.input_ids.shape[1]}, {rows.size} tokens; ideal {ideal:.2f}x")
    ways: list[Callable[[Any, list[Ids]], Tensor]] = [prepacked, padded, length_sorted, one_at_a_time]
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    chosen = {}
    with torch.no_grad():
        for _ in range(repeats):
            for way in ways:
                start = time.process_time()
                chosen[way.__name__] = way(model, prompts).argmax(-1)
                seconds[way.__name__].append(time.process_time() - start)
    for name, values in seconds.items():
        if not torch.equal(chosen[name], chosen["prepacked"]):
            raise SystemExit(f"{name} chose other tokens than prepacking")
        gain = min(seconds["padded"]) / min(values)
        print(f"  {name:14} {min(values):7.2f} s   {gain:5.2f}x padding   {gain / ideal:.2f} of the ideal")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
