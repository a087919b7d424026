"""Time MInference's patterns against torch's exact causal attention on the same tensors: ratios within one run.

    python benchmarks/attention/minference.py [LENGTH ...] [--block-size N] [--heads N] [--threads N]

One layer, B = 1, d = 64, float32, the same pattern in every head. Random queries and keys have no structure to find, so
the lines are planted: columns anywhere, and diagonals in a few runs. Estimates are made and timed nevertheless. Beside
each time stand the share of scores that are computed and the time's ratio to that share of the exact time, which would
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

from workingpapers.methods.attention.minference import minference_attention
from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, Pattern, VerticalSlash

WIDTH, ROUNDS = 64, 5
Way = Callable[[], object]


def planted(heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with some loud columns, and diagonals that matter in six runs."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, heads, length, WIDTH, generator=generator)
    angles = torch.arange(length) * (2 * torch.pi / (length / 6))
    q[..., :2] = k[..., :2] = 6 * torch.stack([angles.cos(), angles.sin()], dim=1)
    loud = torch.randperm(length, generator=generator)[: length // 100]
    q[..., 2], k[..., 2] = 6.0, 0.0
    k[:, :, loud, 2] = 6.0
    return q, k, v


def patterns(length: int) -> dict[str, Pattern]:
    """Return one pattern of each shape; a first number is that of columns, a second that of diagonals."""
    return {
        "A-shape 100, 800": AShape(),
        "A-shape 100, 4000": AShape(100, 4000),
        "vertical-slash 500, 700": VerticalSlash(500, 700),
        "vertical-slash 3500, 100": VerticalSlash(3500, 100),
        "block-sparse 1/8": BlockSparse(max(1, length // 64 // 8)),
    }


def seconds(way: Way) -> float:
    start = perf_counter()
    way()
    return perf_counter() - start


def compare(length: int, heads: int, block_size: int) -> None:
    q, k, v = planted(heads, length)
    chosen = patterns(length)

    def sparse(pattern: Pattern) -> Way:
        return lambda: minference_attention(q, k, v, pattern, block_size=block_size)

    ways: dict[str, Way] = {"exact": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)}
    ways |= {name: sparse(pattern) for name, pattern in chosen.items()}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = min(best[name], seconds(way))
    print(f"{length:6d}  exact{'':24}{best['exact']:8.3f} s")
    for name, pattern in chosen.items():
        found = pattern.find(q[0], k[0], block_size=block_size, scale=WIDTH**-0.5)
        share = sum(x.entries(length, block_size) for x in found) / (heads * length * (length + 1) / 2)
        speedup = best["exact"] / best[name]
        cells = f"{best[name]:8.3f} s  {speedup:5.2f}x  {100 * share:5.1f} %  {1 / speedup / share:5.2f}"
        print(f"{length:6d}  {name:29}{cells}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=[4096, 16384])
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s), "
        f"{arguments.heads} heads, blocks of {arguments.block_size}"
    )
    print("length  pattern                       seconds, speed-up, share of scores, time / (share x exact)")
    with torch.no_grad():
        for length in arguments.lengths:
            compare(length, arguments.heads, arguments.block_size)


if __name__ == "__main__":
    main()
