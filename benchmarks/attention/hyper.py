"""Time HyperAttention against torch's exact attention on the same tensors: ratios within one run.

    python benchmarks/attention/hyper.py [LENGTH ...] [--backward] [--threads N]

One layer, B = 1, H = 4, d = 64, float32, published defaults (blocks of 256, 256 samples, exact below 4,096 queries) and
the same with 1,024 for 4,096; causal and not. Beside each time stand the share of scores that are computed and the
time's ratio to that share of the exact time, which would be 1 if nothing but scores cost. The rounds interleave, the
fastest of each counts.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.methods.attention.hyper import HyperAttention

HEADS, WIDTH, ROUNDS = 4, 64, 4
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def seconds(way: Way, tensors: list[Tensor], backward: bool) -> float:
    start = perf_counter()
    out = way(*tensors)
    if backward:
        torch.autograd.grad(out.sum(), tensors)
    return perf_counter() - start


def ways(causal: bool) -> dict[str, tuple[HyperAttention | None, Way]]:
    """Return the contestants, exact attention first."""

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    def approximate(hyper: HyperAttention) -> Way:
        return lambda q, k, v: hyper(q, k, v, causal=causal)[0]

    hypers = {f"exact below {n}": HyperAttention(min_seq_len=n) for n in (4096, 1024)}
    return {"exact": (None, exact)} | {name: (hyper, approximate(hyper)) for name, hyper in hypers.items()}


def compare(length: int, causal: bool, backward: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, HEADS, length, WIDTH, requires_grad=backward) for _ in range(3)]
    contestants = ways(causal)
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, (_, way) in contestants.items():
            best[name] = min(best[name], seconds(way, tensors, backward))
    dense = length * (length + 1) // 2 if causal else length**2
    cells = []
    for name, (hyper, _) in list(contestants.items())[1:]:
        share = 1.0 if hyper is None else hyper.score_entries(length, causal=causal) / dense
        speedup = best["exact"] / best[name]
        cells.append(f"{best[name]:8.3f} s {speedup:5.2f}x  {100 * share:5.1f} %  {1 / speedup / share:5.2f}")
    print(f"{length:6d}  {'causal' if causal else 'full':6}  {best['exact']:8.3f} s   " + "   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", nargs="*", type=int, default=[2048, 4096, 8192, 16384])
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step = "forward and backward" if arguments.backward else "forward"
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} thread(s), {step}")
    head = "seconds, speed-up, share of scores, time / (share x exact)"
    print(f"length  mask       exact      min_seq_len 4096 and 1024: {head}")
    for causal in (True, False):
        for length in arguments.lengths:
            compare(length, causal, arguments.backward)


if __name__ == "__main__":
    main()
