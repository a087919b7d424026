"""Show how much memory the sparse attentions take at their peak, by length.

    python benchmarks/attention/memory.py [LENGTH ...] [--heads N]

One layer, B = 1, d = 64, float32. Each call runs in a process of its own that holds queries, keys and values and has
called the method on 1,024 of them; what is shown, in MiB, is how far it grows at its peak: output, lists, pieces at
work and what the allocator keeps. Above them stands what the T x T scores of all heads would take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.hip import HiPAttention
from workingpapers.methods.attention.hyper import HyperAttention
from workingpapers.methods.attention.lm_infinite import lambda_attention
from workingpapers.methods.attention.minference import minference_attention
from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, Pattern, VerticalSlash

WIDTH = 64


def ways(length: int) -> dict[str, Callable[..., object]]:
    """Return what takes queries, keys and values."""
    inv_freq = 10_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    patterns: dict[str, Pattern] = {
        "A-shape 100, 800": AShape(),
        "vertical-slash 500, 700": VerticalSlash(500, 700),
        "vertical-slash 3500, 100": VerticalSlash(3500, 100),
        "block-sparse 1/8": BlockSparse(max(1, length // 64 // 8)),
    }
    return {
        "exact": partial(F.scaled_dot_product_attention, is_causal=True),
        "LM-Infinite, window 1024": partial(lambda_attention, inv_freq=inv_freq, n_local=1024),
        **{name: partial(minference_attention, patterns=pattern) for name, pattern in patterns.items()},
        "HiP": HiPAttention(),
        "HyperAttention, causal": HyperAttention(min_seq_len=1024),
        "HyperAttention, without mask": partial(HyperAttention(min_seq_len=1024), causal=False),
    }


def _grow(way: Callable[..., object], tensors: list[Tensor], answer: Connection) -> None:
    way(*(x[:, :, :1024] for x in tensors))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    way(*tensors)
    answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def growth(way: Callable[..., object], tensors: list[Tensor]) -> float:
    """Return by how many MiB a process grows at its peak in a call."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_grow, args=(way, tensors, there))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a process ended with {process.exitcode}")
    return float(here.recv())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=[8192, 16384, 32768])
    parser.add_argument("--heads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as threads do not survive a fork
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.heads} head(s)")
    rows: dict[str, list[float]] = {}
    with torch.inference_mode():
        for length in arguments.lengths:
            tensors = [torch.randn(1, arguments.heads, length, WIDTH) for _ in range(3)]
            rows.setdefault("T x T scores", []).append(arguments.heads * length**2 * 4 / 2**20)
            for name, way in ways(length).items():
                rows.setdefault(name, []).append(growth(way, tensors))
    print(f"{'MiB':30}" + "".join(f"{length:>9d}" for length in arguments.lengths))
    for name, cells in rows.items():
        print(f"{name:30}" + "".join(f"{cell:9.0f}" for cell in cells))


if __name__ == "__main__":
    main()
