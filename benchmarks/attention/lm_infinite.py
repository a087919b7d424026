"""Time LM-Infinite's attention against torch's exact causal attention on the same tensors: ratios within one run.

    python benchmarks/attention/lm_infinite.py [LENGTH ...] [--threads N]

One layer, B = 1, H = 4, d = 64, float32, windows of 1,024 and 2,048 tokens with 10 sinks. Beside each time stand its
speed-up, the share of the scores that the mask keeps, and the time's ratio to that share of the exact time, which would
be 1 if nothing but scores cost. The rounds interleave, the fastest of each counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.lm_infinite import lambda_attention, score_entries

HEADS, WIDTH, SINKS, ROUNDS = 4, 64, 10, 4
WINDOWS = (1024, 2048)


def seconds(way: Callable[[], Tensor]) -> float:
    start = perf_counter()
    way()
    return perf_counter() - start


def compare(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH) for _ in range(3))
    inv_freq = 10_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    ways: dict[int, Callable[[], Tensor]] = {0: lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    for window in WINDOWS:
        ways[window] = lambda window=window: lambda_attention(  # type: ignore[misc]
            q, k, v, inv_freq=inv_freq, n_local=window, n_global=SINKS
        )
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for window, way in ways.items():
            best[window] = min(best[window], seconds(way))
    cells = []
    for window in WINDOWS:
        share = score_entries(length, window, SINKS) / (length * (length + 1) // 2)
        speedup = best[0] / best[window]
        cells.append(f"{best[window]:8.3f} s {speedup:5.2f}x  {100 * share:5.1f} %  {1 / speedup / share:5.2f}")
    print(f"{length:6d}  {best[0]:8.3f} s   " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s)")
    print("length  exact         window 1024, window 2048: seconds, speed-up, share of scores, time / (share x exact)")
    with torch.inference_mode():
        for length in arguments.lengths:
            compare(length)


if __name__ == "__main__":
    main()
