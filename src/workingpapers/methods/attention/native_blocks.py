"""What attends on a CPU in C++ (`native_kernels.cpp`): keys are read where they lie, so time is that of the scores.

`launch` is the kernel of `listed`, `descend` the search of `hip`.

Source: the online softmax in tiles is that of Dao, "FlashAttention-2", ICLR 2024, arXiv 2307.08691.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workingpapers.methods.attention.parallel import each
from workingpapers.methods.native import library, reachable

if TYPE_CHECKING:
    from workingpapers.methods.attention.listed import Listed, Lists

_SOURCE = Path(__file__).with_name("native_kernels.cpp")
_TENSORS = ("q", "k", "v", "out", "lse", "near", "listed", "columns", "offsets")
_SIZES = (
    *("q_batch", "q_head", "q_row", "k_batch", "k_head", "k_row", "v_batch", "v_head", "v_row"),
    *("heads", "group", "queries", "length", "blocks", "block_q", "block_k", "lead", "sinks", "window"),
    *("n_listed", "n_columns", "n_offsets", "d", "d_v"),
)


class _Call(ctypes.Structure):
    """What the kernel is given, in the order of the C++ file."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _TENSORS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("factor", ctypes.c_float),
    ]


def serves(*tensors: Tensor) -> bool:
    """Return whether the kernels are made for such tensors: `native.reachable` ones, where there is a compiler.

    They compute in float32, for float16 and bfloat16 with copies of the inputs.
    """
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return all(x.dtype in kinds for x in tensors) and reachable(*tensors) and library(_SOURCE) is not None


def launch(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, seen: Listed, lists: Lists, scale: float) -> None:
    """Write out and lse, ranges of blocks side by side.

    Raises:
        MemoryError: no memory for a tile.
    """
    kernel = library(_SOURCE)
    assert kernel is not None
    q, k, v = (x.float() if x.stride(3) == 1 else x.float().contiguous() for x in (q, k, v))
    exact = torch.empty_like(out, dtype=torch.float32) if out.dtype != torch.float32 else out
    near, listed, columns, offsets = lists
    (batch, heads, queries, d), length, blocks = q.shape, k.shape[2], near.shape[2]
    call = _Call(
        *(x.data_ptr() for x in (q, k, v, exact, lse, *lists)),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, heads // k.shape[1], queries, length, blocks),
        *(seen.block_q, seen.block_k, seen.lead, seen.sinks, seen.reach),
        *(listed.shape[3], columns.shape[2], offsets.shape[2], d, v.shape[3], scale * math.log2(math.e)),
    )
    total = batch * heads * blocks
    step = math.ceil(total / (16 * torch.get_num_threads()))  # late blocks see more: many ranges even that out

    def part(begin: int) -> bool:
        full = kernel.attend(ctypes.byref(call), ctypes.c_int64(begin), ctypes.c_int64(min(begin + step, total)))
        return bool(full)

    if any(each(part, range(0, total, step), q, k, v)):
        raise MemoryError("no memory for a tile of attention")
    if exact is not out:
        out.copy_(exact)


class _Search(ctypes.Structure):
    """What the search is given, in the order of the C++ file."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "x", "first", "total", "found")),
        *((name, ctypes.c_int64) for name in ("queries", "n", "run", "step", "d", "rounds", "center")),
    ]


def descend(
    q: Tensor, rows: Tensor, first: Tensor, total: Tensor, n: int, run: int, step: int, rounds: int, center: bool
) -> Tensor:
    """Return the candidates that blocks of queries find by HiP's search, (m, n), rising; see `hip`.

    Args:
        q: (m, s, d) the queries of m blocks that score.
        rows: (R, d) in float32, contiguous.
        first: (m,) the row where the candidates of a block begin, int64.
        total: (m,) candidates of each block, more than n, int64.
        n: how many it finds.
        run: rows of a candidate.
        step: from one of them to the next.
        rounds: of halving, until nodes are single candidates.
        center: whether a node's middle candidate represents it rather than its first.

    Raises:
        MemoryError: no memory for the scores.
    """
    kernel = library(_SOURCE)
    assert kernel is not None
    q, first, total = q.float().contiguous(), first.contiguous(), total.contiguous()
    found = total.new_empty(len(q), n)
    given = _Search(
        *(x.data_ptr() for x in (q, rows, first, total, found)), q.shape[1], n, run, step, q.shape[2], rounds, center
    )
    if kernel.search(ctypes.byref(given), ctypes.c_int64(0), ctypes.c_int64(len(q))):
        raise MemoryError("no memory for a search")
    return found
