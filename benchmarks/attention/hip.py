"""Time HiP against torch's exact causal attention on the same tensors: ratios within one run.

    python benchmarks/attention/hip.py [LENGTH ...] [--heads N] [--threads N]

One layer, B = 1, d = 64, float32, defaults (512 keys found, blocks of 32 queries, window 128, 16 sinks) with blocks of
2 keys and of 8. Beside each time stand the share of scores that are computed, those of the search included, and the
time's ratio to that share of the exact time, which would be 1 if nothing but scores cost (goal: at most 1.3 from 16k
on); then the part of the time that the search takes. The rounds interleave, the fastest of each counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch.nn import functional as F

from workingpapers.methods.attention.hip import HiPAttention

WIDTH, ROUNDS = 64, 5


def seconds(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def compare(length: int, heads: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, WIDTH) for _ in range(3))
    hips = [HiPAttention(block_k=size) for size in (2, 8)]
    ways: dict[str, Callable[[], object]] = {"exact": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)}
    for hip in hips:
        ways[f"whole {hip.block_k}"] = partial(hip, q, k, v)
        ways[f"search {hip.block_k}"] = partial(hip.search, q, k)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = min(best[name], seconds(way))
    cells = []
    for hip in hips:
        time = best[f"whole {hip.block_k}"]
        share = hip.score_entries(length) / (length * (length + 1) // 2)
        ratio, search = time / best["exact"] / share, best[f"search {hip.block_k}"] / time
        cells.append(
            f"{time:8.3f} s {best['exact'] / time:5.2f}x {100 * share:5.1f} % {ratio:5.2f} {100 * search:4.0f} %"
        )
    print(f"{length:6d}  {best['exact']:8.3f} s   " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=[4096, 8192, 16384, 32768])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s), {arguments.heads} head(s)")
    head = "seconds, speed-up, share of scores, time / (share x exact), search"
    print(f"length   exact      blocks of 2 and of 8 keys: {head}")
    for length in arguments.lengths:
        compare(length, arguments.heads)


if __name__ == "__main__":
    main()
