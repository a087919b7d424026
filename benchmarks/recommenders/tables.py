"""Time a lookup in each compressed table against `nn.Embedding`, beside what the table costs in bytes.

    python benchmarks/recommenders/tables.py [--ids 1000000] [--lookups 65536]

One run, one thread, eval mode. Tables are untrained: `train` is the module that is trained, `serve` what it serves
from. Ids follow a power law, as clicks do. Ratios are to a full table of 16 numbers for each id; `times its bytes` is
slowness times `serve`: below 1, a table saves more memory than it costs in time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from workingpapers.methods.tables.common import FullTable, make_table
from workingpapers.methods.tables.compressed import METHODS, options_at
from workingpapers.methods.tables.compressed_parts import SettlingTable

DIM = 16
RATIO = {"quantized": 0.26, "alpt": 0.32, "deeplight": 0.25, "autosrh": 0.25}  # others: a tenth


def best_seconds(*ways: Callable[[], object], repeats: int = 5) -> list[float]:
    """Return the best time of each; they take turns, so that other load hits all alike."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, taken in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def options(name: str, sizes: list[int]) -> dict[str, object]:
    """Return what brings a table near its ratio; the ones that find their own size stay as they start."""
    if name in ("autodim", "pep"):
        return {}
    extra: dict[str, object] = {"agreement": 0.1, "block": 1000} if name == "dedup" else {}
    return options_at(name, sizes, DIM, RATIO.get(name, 0.1)) | extra


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=2**16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    share = torch.tensor([0.6, 0.25, 0.1, 0.049, 0.001])
    sizes = [max(2, int(s * given.ids)) for s in share]
    places = torch.rand(given.lookups, len(sizes)) ** 4  # most lookups ask for frequent ids
    offsets = FullTable(sizes, DIM).offsets
    ids = ((places * torch.tensor(sizes)).long() + offsets).flatten()[: given.lookups]
    embedding = nn.Embedding(sum(sizes), DIM)
    embedding(ids)
    print(f"torch {torch.__version__}, 1 thread, {sum(sizes):,} ids of {len(sizes)} fields, {len(ids):,} lookups")
    print(f"{'table':10} {'train':>7} {'serve':>7} {'ms':>8} {'times nn.Embedding':>19} {'times its bytes':>15}")
    full = FullTable(sizes, DIM).training_bytes()
    for name in ("full", *METHODS):
        table = make_table(name, sizes, DIM, **({} if name == "full" else options(name, sizes))).eval()
        if isinstance(table, SettlingTable):
            table.settle()
        served = table.eval().served().eval()
        mine, plain = best_seconds(partial(served, ids), partial(embedding, ids), repeats=3 if name == "dhe" else 20)
        held = table.training_bytes() / full, served.training_bytes() / full
        slower = mine / plain
        print(
            f"{name:10} {held[0]:7.3f} {held[1]:7.3f} {1000 * mine:8.2f} {slower:19.1f} {slower * held[1]:15.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
