"""Setting `sharded`: exact attention over one sequence, in one process or with a share of it in each of several.

Queries, keys and values are random, shaped as a layer of SmolLM2-135M has them for four texts; each process makes only
its own share. Gradients are those of the sum of outputs times a fixed random tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workingpapers.tasks.long_context.settings import task
from workingpapers.tasks.protocol import Context

if TYPE_CHECKING:
    from torch import Tensor

BATCH, HEADS, GROUPS, WIDTH = 4, 9, 3, 64
PIECE = 64  # tokens that are drawn together
CHUNK = 128  # queries and keys of ring attention that meet at a time


@dataclass(frozen=True)
class Sequence:
    """T tokens, and the seed that they are drawn with."""

    length: int
    seed: int


@dataclass(frozen=True)
class Spread:
    """What an entry returns.

    Attributes:
        processes: how many share the sequence.
        attend: in every process, its shares q (4, 9, c, 64) and k, v (4, 3, c, 64) in, outputs (4, 9, c, 64) out,
            differentiable; a function of a module, since processes import it.
    """

    processes: int
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to the whole sequence by torch's fused kernel, which holds no scores."""
    from torch.nn import functional as F

    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attend_ring(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to the whole sequence by ring attention, in the zig-zag layout."""
    from workingpapers.methods.attention.ring import ring_attention

    out: Any = ring_attention(q, k, v, chunk=CHUNK)
    return out


@task.entry("sharded")
def one_process(train: Sequence, context: Context) -> Spread:
    """Full attention in one process, by torch's fused kernel."""
    return Spread(1, attend_whole)


@task.entry("sharded", paper="ring-attention")
def ring_attention_2(train: Sequence, context: Context) -> Spread:
    """Ring attention in two processes."""
    return Spread(2, attend_ring)


@task.entry("sharded", paper="ring-attention")
def ring_attention(train: Sequence, context: Context) -> Spread:
    """Ring attention in four processes."""
    return Spread(4, attend_ring)


def drawn(sequence: Sequence, places: Tensor) -> list[Tensor]:
    """Return q, k, v and the weights of the outputs at some places, whole pieces in rising order."""
    import torch

    heads = HEADS, GROUPS, GROUPS, HEADS
    found = [torch.empty(BATCH, h, len(places), WIDTH) for h in heads]
    for start in range(0, len(places), PIECE):
        generator = torch.Generator().manual_seed(sequence.seed * 10_000_019 + int(places[start]))
        for x in found:
            x[:, :, start : start + PIECE].normal_(generator=generator)
    return found


def share(sequence: Sequence, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """Do a process's share, forward and backward; return outputs, their places, memory and seconds."""
    import torch

    from workingpapers.methods.attention.sequences import place, positions
    from workingpapers.tasks.long_context.meter import peak_growth

    rank, size = place(None)
    places = positions(sequence.length, rank=rank, size=size, layout="zigzag" if size > 1 else "contiguous")
    warm = [torch.randn(BATCH, h, PIECE, WIDTH, requires_grad=True) for h in (HEADS, GROUPS, GROUPS)]
    attend(*warm).sum().backward()  # type: ignore[no-untyped-call]

    def work() -> tuple[Tensor, float]:
        q, k, v, weights = drawn(sequence, places)
        for x in (q, k, v):
            x.requires_grad_()
        start = time.perf_counter()
        out = attend(q, k, v)
        out.backward(weights)  # type: ignore[no-untyped-call]
        return out.detach(), time.perf_counter() - start

    (out, seconds), memory = peak_growth(work)
    return {"out": out, "places": places, "memory": memory, "seconds": seconds}


def measure(fit: Callable[[Sequence], Spread], problem: Sequence) -> dict[str, float]:
    """Run the processes; the one that takes most counts. Outputs are compared with full attention.

    Raises:
        UserError: a length that does not divide into pieces.
    """
    import torch

    from workingpapers.methods.attention.sequences import run_processes

    spread = fit(problem)
    shares = run_processes(share, spread.processes, problem, spread.attend)
    out = torch.cat([s["out"] for s in shares], dim=2)[:, :, torch.cat([s["places"] for s in shares]).argsort()]
    with torch.inference_mode():
        exact = attend_whole(*drawn(problem, torch.arange(problem.length))[:3])
    return {
        "peak-memory": max(s["memory"] for s in shares),
        "seconds": max(s["seconds"] for s in shares),
        "output-error": float((out - exact).abs().max()),
    }
