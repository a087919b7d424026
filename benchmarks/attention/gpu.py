"""Time the sparse attentions on a GPU against torch's fastest exact attention on the same tensors, within one run.

    python benchmarks/attention/gpu.py [LENGTH ...] [--heads N]

One layer, B = 1, H = 32, d = 128, bfloat16, causal. The exact one is FlashAttention through SDPA, or cuDNN's where that
is faster. Queries and keys have planted structure, since random ones have none to find; what is looked for is looked
for within the time. For each method: milliseconds, then

    speed-up    exact time / time
    share       scores computed, of all causal ones
    cost        time / (share x exact time): 1 if nothing but scores cost
    roofline    time that the card needs at least / time: the products of the scores computed at the speed of a large
                matmul, or q, k, v and out once at the speed of a copy, whichever takes longer; both are measured here
    crossover   the length from which on the method is faster than the exact one, of those measured
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from workingpapers.methods.attention import listed, lm_infinite
from workingpapers.methods.attention.hip import HiPAttention
from workingpapers.methods.attention.hyper import HyperAttention
from workingpapers.methods.attention.minference import minference_attention
from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, Pattern, VerticalSlash

WIDTH, WINDOW, SINKS, BLOCK = 128, 4096, 10, 64
LENGTHS = [2**n for n in range(13, 21)]
DEVICE = torch.device("cuda")
PATTERNS: dict[str, Pattern] = {
    "MInference A-shape 100, 800": AShape(),
    "MInference A-shape 100, 4000": AShape(100, 4000),
    "MInference vertical-slash 500, 700": VerticalSlash(500, 700),
    "MInference vertical-slash 3500, 100": VerticalSlash(3500, 100),
    "MInference block-sparse 100": BlockSparse(100),
}
Way = Callable[[Tensor, Tensor, Tensor], object]


@dataclass
class Card:
    """What the card can do at best, as measured.

    Attributes:
        flops: per second, in a matmul.
        bytes: per second, read and written in a copy.
        won: name of a method, and whether it was faster, by length.
    """

    flops: float
    bytes: float
    won: dict[str, dict[int, bool]] = field(default_factory=dict)

    def report(self, name: str, q: Tensor, k: Tensor, exact: float, found: float, entries: float, dense: int) -> None:
        """Print a line; `entries` and `dense` are scores per head, `k` what a method must read at least."""
        moved = q.element_size() * 2 * (q.numel() + k.numel())
        least = max(4 * WIDTH * entries * q.shape[1] / self.flops, moved / self.bytes)
        share = entries / dense
        cells = f"{1e3 * found:10.3f} ms  {exact / found:7.2f}x  {100 * share:6.2f} %"
        print(f"          {name:38}{cells}  {found / exact / share:6.2f}  {100 * least / found:5.1f} %", flush=True)


def seconds(way: Callable[[], object], *, rounds: int = 10) -> float:
    """Return the fastest of some rounds after one that does not count: as many as fit in about two seconds."""
    best, spent = math.inf, 0.0
    for i in range(rounds + 1):
        torch.cuda.synchronize()
        start = perf_counter()
        way()
        torch.cuda.synchronize()
        took = perf_counter() - start
        if i:
            best, spent = min(best, took), spent + took
        if spent > 2:
            break
    return best


def measured_card() -> Card:
    a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    source, target = torch.empty(2, 2**30, device=DEVICE, dtype=torch.uint8)
    return Card(2 * 8192**3 / seconds(lambda: a @ b), 2 * 2**30 / seconds(lambda: target.copy_(source)))


def planted(heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with some loud columns, and diagonals that matter in six runs."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, WIDTH, device=DEVICE, dtype=torch.bfloat16) for _ in range(3))
    angles = torch.arange(length, device=DEVICE) * (2 * torch.pi / (length / 6))
    q[..., :2] = k[..., :2] = (8 * torch.stack([angles.cos(), angles.sin()], dim=1)).to(q.dtype)
    loud = torch.randperm(length, device=DEVICE)[: length // 100]
    q[..., 2], k[..., 2] = 8.0, 0.0
    k[:, :, loud, 2] = 8.0
    return q, k, v


def exact_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[str, float]:
    """Return the name and the time of the fastest exact attention."""
    found = {}
    for name, backend in (("FlashAttention", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                found[name] = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
        except RuntimeError as error:  # not built, or not for this card
            print(f"          {name} does not run: {str(error).splitlines()[0]}")
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def methods(q: Tensor, k: Tensor) -> dict[str, tuple[Way, float]]:
    """Return what to time, and how many scores a head computes."""
    length, ways = q.shape[2], dict[str, tuple[Way, float]]()
    for name, pattern in PATTERNS.items():
        [lines] = pattern.find(q[0, :1], k[0, :1], block_size=BLOCK, scale=WIDTH**-0.5)  # the heads are alike
        ways[name] = partial(minference_attention, patterns=pattern, block_size=BLOCK), lines.entries(length, BLOCK)
    hip, hyper = HiPAttention(), HyperAttention()
    ways["HiP 512"] = hip, hip.score_entries(length)
    inv_freq = 10_000.0 ** (-torch.arange(0, WIDTH, 2, device=DEVICE) / WIDTH)
    kept = lm_infinite.score_entries(length, WINDOW, SINKS)
    options: dict[str, Any] = {"inv_freq": inv_freq, "n_local": WINDOW, "n_global": SINKS}
    ways[f"LM-Infinite {WINDOW} + {SINKS}"] = lambda q, k, v: lm_infinite.lambda_attention(q, k, v, **options), kept
    if listed.available(q, k, k):
        seen = listed.of_window(length, length, WINDOW, sinks=SINKS, device=DEVICE)
        ways[f"window {WINDOW} + {SINKS} sinks"] = lambda q, k, v: listed.listed_attention(q, k, v, seen), kept
    if length == 2**17:
        ways["HyperAttention"] = lambda q, k, v: hyper(q, k, v, causal=True), hyper.score_entries(length)
    return ways


def compare(card: Card, heads: int, length: int) -> None:
    q, k, v = planted(heads, length)
    name, exact = exact_attention(q, k, v, causal=True)
    dense = length * (length + 1) // 2
    print(f"{length:8d}  exact: {name}")
    card.report("exact", q, k, exact, exact, dense, dense)
    for name, (way, entries) in methods(q, k).items():
        try:
            found = seconds(lambda: way(q, k, v))  # noqa: B023
        except torch.OutOfMemoryError:
            print(f"          {name:38}out of memory")
            continue
        card.report(name, q, k, exact, found, entries, dense)
        card.won.setdefault(name, {})[length] = found < exact


def decode(card: Card, heads: int, length: int = 2**15) -> None:
    """Time one decoded token: all keys of the cache, against those that LM-Infinite keeps."""
    q = planted(heads, 1)[0]
    _, k, v = planted(heads, length)
    name, exact = exact_attention(q, k, v, causal=False)
    print(f"{length:8d}  a decoded token, exact: {name}")
    card.report("exact", q, k, exact, exact, length, length)
    kept_k, kept_v = (torch.cat([x[:, :, :SINKS], x[:, :, -WINDOW:]], dim=2) for x in (k, v))
    inv_freq = 10_000.0 ** (-torch.arange(0, WIDTH, 2, device=DEVICE) / WIDTH)
    options: dict[str, Any] = {"inv_freq": inv_freq, "n_local": WINDOW, "n_global": SINKS, "length": length}
    found = seconds(lambda: lm_infinite.lambda_attention(q, kept_k, kept_v, **options))
    card.report(f"LM-Infinite {WINDOW} + {SINKS}", q, kept_k, exact, found, WINDOW + SINKS, length)


def crossover(won: dict[int, bool]) -> str:
    lost = [length for length, faster in won.items() if not faster]
    later = [length for length in won if length > max(lost, default=0)]
    return f"from {min(later)} on" if later else "none"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--heads", type=int, default=32)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    with torch.inference_mode():
        card = measured_card()
        peak = f"matmul {card.flops / 1e12:.0f} TFLOP/s, copy {card.bytes / 1e12:.2f} TB/s"
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {peak}, {arguments.heads} heads")
        print(f"  length  {'method':46}time  speed-up     share    cost  roofline")
        for length in sorted(arguments.lengths):
            compare(card, arguments.heads, length)
        decode(card, arguments.heads)
    for name, won in card.won.items():
        print(f"crossover of {name}: {crossover(won)}")


if __name__ == "__main__":
    main()
