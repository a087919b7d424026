"""Causal attention whose blocks of queries see listed keys: one kernel for all sparse patterns here, without gradients.

Queries (B, H, T_q, d) are the last T_q of T positions; head h reads head h // (H / G) of keys (B, G, T, d) and values
(B, G, T, d_v). They are cut into M blocks of c positions, which begin at a_m = T_q's first position - lead + c m. The
rows of block m see, each key once, for e = min(near_m, a_m):

    near      j in near_m .. i, if i - j < window or j < sinks      what lies around the diagonal, row by row
    sinks     j < min(sinks, e)
    listed    j = sinks + b_k l + 0 .. b_k - 1 for l in the block's own list, as far as j < e
    lines     j in columns and j = a_m - o for o in offsets, as far as j < e; both of the head

`Listed` holds such a pattern; `of_patterns` (MInference), `of_tree` (HiP) and `of_window` (windows with sinks,
LM-Infinite) make one. The kernel is written twice: in C++ for CPUs (`native_blocks`) and in Triton for GPUs
(`triton_blocks`). Both read keys where they lie: time is that of the scores, memory that of lists and output. Before
one first serves a device, a type and a width it is compared there with the definition (`available`); where that fails,
a remark says so and the methods go on without it, as they do where no kernel serves. A NaN in a value of `near` may
come out in all rows of a block.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from workingpapers.errors import UserRemark, first_line
from workingpapers.methods.attention import native_blocks, triton_blocks
from workingpapers.methods.attention.common import check_inputs, dense_attention
from workingpapers.methods.attention.padding import unseen
from workingpapers.methods.attention.sparse_blocks import Blocks, Lines, places, shown

Lists = tuple[Tensor, Tensor, Tensor, Tensor]
"""near (B, H, M), listed (B, H, M, n), columns and offsets (B, H, n) as kernels take them: int32, n = 0 for None."""

_FOREVER = 2**30  # a window that nothing leaves


@dataclass(frozen=True, eq=False)
class Listed:
    """Which keys the blocks of queries see.

    Args:
        near: (B, H, M), or with 1 for B or H where all share it: the first key that the rows of a block see one by one;
            T for none.
        block_q: c.
        lead: how many rows the first block lacks at its front, 0 to c - 1.
        listed: (B, H, M, n) blocks of keys, rising, with -1 for none in front; None for no lists.
        block_k: b_k, the keys of such a block.
        sinks: s, first keys that every row sees; block l holds the keys from s + b_k l on.
        window: how far back a row sees its near keys, its own included; None without a limit.
        columns: (B, H, n) single keys that all blocks see, like `listed` rising with -1 in front; None for none.
        offsets: (B, H, n) distances from a block's start to single keys that it sees, likewise.

    Raises:
        ValueError: a size out of range, or lines together with sinks or a window.
    """

    near: Tensor
    block_q: int
    lead: int = 0
    listed: Tensor | None = None
    block_k: int = 1
    sinks: int = 0
    window: int | None = None
    columns: Tensor | None = None
    offsets: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = self.block_q > 0 and 0 <= self.lead < self.block_q and self.block_k > 0 and self.sinks >= 0
        if not sizes or (self.window is not None and self.window < 1):
            raise ValueError(
                "block_q, block_k and window must be 1 or more, sinks 0 or more, lead 0 to block_q - 1; got "
                f"{self.block_q}, {self.block_k}, {self.window}, {self.sinks}, {self.lead}"
            )
        lines = self.columns is not None or self.offsets is not None
        if lines and (self.sinks or self.window is not None):
            raise ValueError(f"columns and offsets go with sinks=0, window=None; got {self.sinks}, {self.window}")

    @property
    def reach(self) -> int:
        """The window as a number that kernels take."""
        return min(self.window or _FOREVER, _FOREVER)


def _check(seen: Listed, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check what a caller made, down to its entries, for which a GPU has to wait."""
    check_inputs(q, k, v)
    (batch, heads, queries, _), past = q.shape, k.shape[2] - q.shape[2]
    if past < seen.lead:
        raise ValueError(f"{queries} queries of {k.shape[2]} positions leave no room for lead={seen.lead}")
    shape = batch, heads, math.ceil((seen.lead + queries) / seen.block_q)
    fits = seen.near.ndim == 3 and all(n in (1, m) for n, m in zip(seen.near.shape[:2], shape[:2], strict=True))
    if not fits or seen.near.shape[2] != shape[2] or seen.near.is_floating_point() or bool((seen.near < 0).any()):
        raise ValueError(f"near must be (B, H, M) = {shape} positions, 0 or more; got {seen.near!r}")
    for name, needed in (("listed", shape), ("columns", shape[:2]), ("offsets", shape[:2])):
        _check_entries(name, getattr(seen, name), needed)
    _, listed, columns, offsets = _lists(seen, q)
    if bool((offsets == 0).any()):
        raise ValueError("offsets must be 1 or more: a block's own keys are near")
    lines = (columns >= 0).any(dim=2) | (offsets >= 0).any(dim=2)
    if bool(((listed >= 0).flatten(2).any(dim=2) & lines).any()):
        raise ValueError("a head has listed blocks or lines, not both: keys would count twice")


def _check_entries(name: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    if x is None:
        return
    if x.shape[:-1] != shape or x.is_floating_point():
        raise ValueError(f"{name} must be whole numbers {(*shape, 'n')}; got {x.dtype}, {tuple(x.shape)}")
    before, after = x[..., :-1], x[..., 1:]
    if bool((x < -1).any()) or bool(((after < before) | ((after == before) & (after >= 0))).any()):
        raise ValueError(f"{name} must rise, with -1 for none in front, and name nothing twice")


def _lists(seen: Listed, q: Tensor) -> Lists:
    shape = *q.shape[:2], seen.near.shape[2]
    near = seen.near.expand(shape)
    listed = near.new_empty(*shape, 0) if seen.listed is None else seen.listed
    columns, offsets = (near.new_empty(*shape[:2], 0) if x is None else x for x in (seen.columns, seen.offsets))
    near, listed, columns, offsets = (x.to(torch.int32).contiguous() for x in (near, listed, columns, offsets))
    return near, listed, columns, offsets


def available(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether `listed_attention` can serve these tensors.

    That takes tensors without gradients, a kernel that `serves` them, and that it agrees with the definition on two
    small patterns, which is tried once for each device, type and width.
    """
    return _kernel(q, k, v) is not None


def _kernel(q: Tensor, k: Tensor, v: Tensor) -> ModuleType | None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return None
    found = next((kernel for kernel in (triton_blocks, native_blocks) if kernel.serves(q, k, v)), None)
    return found if found and _proven(found, q.device, q.dtype, q.shape[-1], v.shape[-1]) else None


@cache
def _proven(kernel: ModuleType, device: torch.device, dtype: torch.dtype, d: int, d_v: int) -> bool:
    """Return whether a kernel does what its definition says, on two small patterns; say so if not."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 2, 80, d), (1, 1, 100, d), (1, 1, 100, d_v)
    q, k, v = (torch.randn(s, generator=generator).to(device, dtype) for s in shapes)
    # Three blocks of 32 queries, of which the first lacks 16 in front, begin at positions 4, 36 and 68.
    near = torch.tensor([[[4, 20, 60]]], device=device)
    listed = torch.tensor([[[[-1, -1], [-1, 0], [1, 2]]] * 2], device=device)
    columns = torch.tensor([[[-1, 2, 30]] * 2], device=device)
    lists = Listed(near, 32, 16, listed, 16, sinks=3, window=40)
    lines = Listed(near, 32, 16, columns=columns, offsets=columns[..., 1:] + 5)
    allowed = 8 * max(torch.finfo(dtype).eps, 1e-5)  # of values of about 3: rounded weights and outputs
    try:
        for seen in (lists, lines):
            got = _attend(kernel, q, k, v, seen, None)
            expected = naive_listed_attention(q.float(), k.float(), v.float(), seen)
            worst = max(
                float((a.float() - b).abs().nan_to_num(torch.inf).max()) for a, b in zip(got, expected, strict=True)
            )
            if worst > allowed:
                raise ArithmeticError(f"it is off by {worst:.1e}, where {allowed:.0e} is allowed")
    except Exception as error:  # whatever Triton, its compiler or the driver raise
        refused(kernel, device, dtype, d, error)
        return False
    return True


def refused(kernel: ModuleType, device: torch.device, dtype: torch.dtype, d: int, error: Exception) -> None:
    """Say that a kernel fails its test, as a remark."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    module = kernel.__name__.rpartition(".")[2]
    warnings.warn(
        f"{module}, a kernel of sparse attention, fails its test on {name} with {dtype} of width {d}, so that slower "
        f"operations of torch take its place: {first_line(error)}.",
        UserRemark,
        stacklevel=5,
    )


def listed_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Listed, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to what `seen` says, by the kernel.

    Args:
        q, k, v: (B, H, T_q, d), (B, G, T, d), (B, G, T, d_v), T_q <= T; float32, float16 or bfloat16.
        seen: the pattern, its tensors on the device of q.
        scale: factor of the scores; None takes d^-1/2.

    Returns:
        out (B, H, T_q, d_v) in the dtype of q and lse (B, H, T_q) in float32; 0 and -inf where a row sees nothing.

    Raises:
        ValueError: tensors that the kernel can't serve (see `available`), shapes that do not fit, lists that do not
            rise, or a head with both listed blocks and lines.
    """
    _check(seen, q, k, v)
    return attended(q, k, v, seen, scale=scale)


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Listed, *, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Do what `listed_attention` does with a pattern that this package has made itself, whose entries need no check.

    Raises:
        ValueError: tensors that the kernel can't serve.
    """
    kernel = _kernel(q, k, v)
    if kernel is None:
        raise ValueError(f"no kernel serves {q.dtype} of width {q.shape[-1]} on {q.device} here, or gradients")
    return _attend(kernel, q, k, v, seen, scale)


def _attend(
    kernel: ModuleType, q: Tensor, k: Tensor, v: Tensor, seen: Listed, scale: float | None
) -> tuple[Tensor, Tensor]:
    if 0 in (*q.shape, *v.shape):
        return unseen(q, v)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    kernel.launch(q, k, v, out, lse, seen, _lists(seen, q), q.shape[3] ** -0.5 if scale is None else scale)
    return out, lse


def of_patterns(found: Sequence[Lines | Blocks], queries: int, length: int, block_size: int) -> Listed:
    """Return what MInference's patterns found in one sequence, one for each head, as `Listed` with B = 1.

    Args:
        found: H of them.
        queries: T_q, the last of the positions.
        length: T.
        block_size: c.
    """
    first, lead = divmod(length - queries, block_size)
    last = math.ceil(length / block_size)
    device = (found[0].rows if isinstance(found[0], Blocks) else found[0].columns).device
    starts = torch.arange(first * block_size, last * block_size, block_size, dtype=torch.int32, device=device)
    nothing, own = starts.new_empty(last - first, 0), starts[:1] * 0  # a head of blocks has diagonal 0 alone
    near, blocks, columns, offsets = starts.expand(len(found), -1), None, None, None
    if any(isinstance(x, Blocks) for x in found):
        blocks = _stack([x.rows[first:last] if isinstance(x, Blocks) else nothing for x in found])[None]
    if any(isinstance(x, Lines) for x in found):
        columns = _stack([x.columns if isinstance(x, Lines) else nothing[0] for x in found])[None]
        diagonals = _stack([x.offsets if isinstance(x, Lines) else own for x in found], fill=0)
        seen = shown(diagonals, length, block_size)
        distance = torch.arange(1, length + 1, dtype=torch.int32, device=device)
        hidden = distance.masked_fill(seen, length + 1).amin(dim=1, keepdim=True)  # the nearest that is not shown
        near = (starts - hidden + 1).clamp(min=0)
        far = F.pad(seen & (distance > hidden), (1, -1))  # from distance 0 to T - 1
        offsets = places(far, min((diagonals.shape[1] - 1) * block_size, length), small=True)[None]
    return Listed(near[None], block_size, lead, blocks, block_size, columns=columns, offsets=offsets)


def _stack(entries: list[Tensor], fill: int = -1) -> Tensor:
    """Stack lists of H heads to (H, ..., n), those of one length at once, the shorter ones filled up in front."""
    lengths = sorted({x.shape[-1] for x in entries})
    if len(lengths) > 1:
        parts: dict[int, Iterator[Tensor]] = {}
        for n in lengths:
            same = torch.stack([x for x in entries if x.shape[-1] == n])
            parts[n] = iter(F.pad(same, (lengths[-1] - n, 0), value=fill))
        entries = [next(parts[x.shape[-1]]) for x in entries]
    return torch.stack(entries)


def of_tree(found: Tensor, candidates: Tensor, queries: int, block_q: int, block_k: int, sinks: int) -> Listed:
    """Return what HiP's search found.

    Args:
        found: (B, H, m, n) from `HiPAttention.search`: for the last m blocks of queries; those before them see all.
        candidates: (m,) N of each of these blocks: a block sees every key from sinks + b_k N on.
        queries: T_q, counted from which on the blocks are.
        block_q, block_k, sinks: of the `HiPAttention`.
    """
    dense = math.ceil(queries / block_q) - found.shape[2]
    near, listed = candidates * block_k + sinks, found
    if dense:
        near, listed = F.pad(near, (dense, 0)), F.pad(found, (0, 0, dense, 0), value=-1)
    return Listed(near[None, None], block_q, listed=listed, block_k=block_k, sinks=sinks)


def of_window(queries: int, length: int, window: int, *, sinks: int = 0, device: torch.device | None = None) -> Listed:
    """Return a window of the last keys, a query's own included, with the first `sinks` keys of all."""
    block = 128  # rows that share a tile of keys
    starts = length - queries + torch.arange(0, queries, block, device=device)
    return Listed((starts - window + 1).clamp(min=0)[None, None], block, sinks=sinks, window=window)


def naive_listed_attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Listed, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `listed_attention` does by the definition, row by row, in plain torch: T_q T memory."""
    _check(seen, q, k, v)
    firsts, listed, columns, offsets = _lists(seen, q)
    mask = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    past, window = k.shape[2] - q.shape[2], seen.reach
    for b, h, row in itertools.product(*(range(n) for n in q.shape[:3])):
        block = (row + seen.lead) // seen.block_q
        place, start = past + row, past - seen.lead + block * seen.block_q
        near = int(firsts[b, h, block])
        early = {*range(seen.sinks), *_real(columns[b, h]), *(start - o for o in _real(offsets[b, h]))}
        for entry in _real(listed[b, h, block]):
            first = seen.sinks + entry * seen.block_k
            early |= {*range(first, first + seen.block_k)}
        sees = {j for j in early if 0 <= j < min(near, start)}
        sees |= {j for j in range(near, place + 1) if place - j < window or j < seen.sinks}
        mask[b, h, row, sorted(sees)] = True
    return dense_attention(q, k, v, causal=False, scale=scale, mask=mask.to(q.device), return_lse=True)


def _real(entries: Tensor) -> list[int]:
    return [x for x in entries.tolist() if x >= 0]
