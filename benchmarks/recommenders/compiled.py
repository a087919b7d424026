"""What click models do in C++ against the same in torch's operations, in turn: forward and back, in milliseconds.

    python benchmarks/recommenders/compiled.py [--threads 2]

Three layers of AutoInt, FGCNN's generator, and DCN-V2's two crosses with its MLP, for batches of 1,024 rows with
vectors of 16; the fastest of 20 counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor, nn

from workingpapers.methods.recommenders import baselines, fgcnn
from workingpapers.methods.recommenders.autoint import InteractingLayer

BATCH, DIM, TIMES = 1024, 16, 20


def fastest(ways: list[Callable[[], Tensor]], inputs: list[Tensor]) -> list[float]:
    """Return the milliseconds of each way to an output and from it back to the inputs."""
    found: list[list[float]] = [[] for _ in ways]
    for _ in range(TIMES):
        for way, times in zip(ways, found, strict=True):
            start = time.perf_counter()
            torch.autograd.grad(way().sum(), inputs)
            times.append(1000 * (time.perf_counter() - start))
    return [min(times) for times in found]


def layers(x: Tensor) -> list[float]:
    stack = nn.ModuleList(InteractingLayer(DIM, DIM) for _ in range(3))

    def through(way: str) -> Tensor:
        out = x
        for layer in stack:
            out = getattr(layer, way)(out)
        return out

    return fastest([lambda: through("_by_torch"), lambda: through("forward")], [x, *stack.parameters()])


def network(made: nn.Module, file: ModuleType, function: str, x: Tensor) -> list[float]:
    """Return the milliseconds of a network without and with the function of its file that calls C++."""

    def by_torch() -> Tensor:
        with patch.object(file, function, lambda *_: None):
            out: Tensor = made(x)
            return out

    return fastest([by_torch, lambda: made(x)], [x, *made.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    names = ("3 layers: torch", "generator: torch", "DCN-V2: torch")
    print("fields", *(f"{name:>18} {'C++':>7}" for name in names))
    for fields in (7, 9, 24):
        torch.manual_seed(0)
        x = torch.randn(BATCH, fields, DIM, requires_grad=True)
        times = [
            layers(x),
            network(fgcnn.FeatureGenerator(fields, DIM), fgcnn, "pool", x),
            network(baselines.CrossNetwork(fields, DIM), baselines, "cross", x),
        ]
        print(f"{fields:6}", *(f"{by_torch:18.1f} {own:7.1f}" for by_torch, own in times), flush=True)


if __name__ == "__main__":
    main()
