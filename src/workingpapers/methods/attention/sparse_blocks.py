"""Causal attention of one head whose blocks of queries see only some of the earlier keys.

The sequence is cut into blocks of c positions, counted from the first key. The queries of a block that starts at a see
the keys from a up to themselves, and what they see before a is the same for the whole block. `Cut` computes such parts
by fused kernels, and merges them by their log-sum-exps; they must not overlap:

    local     the last n keys before a, and the own block       overlapping views of the keys, one mask for all blocks
    shared    single keys that all blocks see                   one copy of them for all blocks
    listed    runs of keys, by a list for each block            gathered

Time is that of the scores and of some copying and merging, memory is linear in T. `Lines` and `Blocks` are two ways to
say which keys are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from workingpapers.methods.attention.common import causal_mask, merge
from workingpapers.methods.attention.fused import EVEN, fused_attention, joined, trainable_attention
from workingpapers.methods.attention.gathering import Runs
from workingpapers.methods.attention.parallel import each

GATHERED = 2**12
"""Keys gathered at a time on a CPU: with their values 2 MiB for 64 numbers each in float32, which caches hold."""

ROWS = 2**11
"""Queries at a time: few enough that what is merged stays in caches, enough to keep the calls' own time small."""

Made = TypeVar("Made")


def unchecked(kind: type[Made], **fields: object) -> Made:
    """Make a dataclass of what this package has found itself, without the checks, for which a GPU has to wait."""
    made = object.__new__(kind)
    vars(made).update(fields)
    return made


def places(mask: Tensor, width: int, *, small: bool = False) -> Tensor:
    """Return where the last dimension of a mask (..., n) is true: (..., width), rising, with -1 in front if fewer.

    They are int64, or int32 if `small`.
    """
    counts = mask.cumsum(-1, dtype=torch.int32)
    wanted = counts[..., -1:] + torch.arange(1 - width, 1, dtype=torch.int32, device=mask.device)
    return torch.searchsorted(counts, wanted, out_int32=small).masked_fill_(wanted < 1, -1)


def shown(offsets: Tensor, length: int, block_size: int) -> Tensor:
    """Return (..., T) whether diagonals (..., m) show a block what is 1, 2, ... T positions before its start."""
    end = length + block_size
    hit = torch.zeros(*offsets.shape[:-1], end + 1, dtype=torch.int32, device=offsets.device)
    total = hit.scatter_(-1, offsets.long().clamp(max=end), 1).cumsum(-1, dtype=torch.int32)
    return total[..., block_size:end] > total[..., :length]


class Cut:
    """One head's queries in blocks, and the attention to the parts seen so far.

    Args:
        q: (T_q, d), the last T_q of T positions, at least one.
        k, v: (T, d) and (T, d_v).
        size: c.
        scale: factor of the scores.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, size: int, scale: float) -> None:
        self.k, self.v, self.size, self.scale = k, v, size, scale
        self.first, self.lead = divmod(len(k) - len(q), size)
        self.count, self.length = math.ceil((self.lead + len(q)) / size), len(q)
        self.rest = self.count * size - self.lead - len(q)  # rows after the end, as `lead` before the first query
        self.q = _padded(q, self.lead, self.rest).reshape(self.count, 1, size, -1)
        self.blocks = torch.arange(self.first, self.first + self.count, device=q.device)
        self.out: Tensor | None = None
        self.lse: Tensor | None = None

    def local(self, reach: int) -> None:
        """See the own block and `reach` keys before it."""
        head = min(self.count, max(0, math.ceil(reach / self.size) - self.first))  # blocks that see everything
        parts = []
        if head:
            parts.append(self._everything(head))
        if head < self.count:
            width = math.ceil((reach + self.size) / EVEN) * EVEN
            mask = causal_mask(self.size, width, self.k.device)[None, None]
            mask[..., : width - reach - self.size] = False
            parts.append(self._views(head, width, mask))
        self._add(*joined(parts))

    def _everything(self, head: int) -> tuple[Tensor, Tensor]:
        """Attend with the first `head` blocks to all that comes before."""
        start, end = self.first * self.size, (self.first + head) * self.size
        q = self.q[:head].view(1, 1, end - start, -1)
        own = (_padded(x[start:end], 0, max(0, end - len(x)))[None, None] for x in (self.k, self.v))
        found = fused_attention(q, *own, causal=True, scale=self.scale)
        if start:
            earlier = fused_attention(q, self.k[None, None, :start], self.v[None, None, :start], scale=self.scale)
            found = merge(*found, *earlier)
        return found[0].view(head, 1, self.size, -1), found[1].view(head, 1, self.size)

    def shared(self, keys: Tensor, values: Tensor) -> None:
        """See keys (n, d) with values (n, d_v)."""
        if len(keys):  # all blocks as one, for the kernel likes many queries
            q = self.q.view(1, 1, -1, self.q.shape[-1])
            out, lse = fused_attention(q, keys[None, None], values[None, None], scale=self.scale)
            self._add(out.view(self.count, 1, self.size, -1), lse.view(self.count, 1, self.size))

    def listed(self, starts: Tensor, seen: Tensor, size: int) -> None:
        """See `size` keys from each of a block's `starts` (N, n) on where its row of `seen` (N, n) is true."""
        blind = ~seen.any(dim=1)
        if bool(blind.all()):
            return
        seen = seen.clone()
        seen[:, 0] |= blind  # blocks that see nothing attend to anything, and what they find counts nothing
        counts = seen.sum(dim=1)
        numbers = counts.tolist()
        lists = list(torch.split(starts.masked_select(seen).clamp_(0, len(self.k) - size), numbers))
        stores = [Runs(x, size) for x in (self.k, self.v)]
        room = GATHERED if self.k.device.type == "cpu" else 64 * GATHERED
        step, parts = max(1, room // (max(numbers) * size)), []
        for low in range(0, self.count, step):
            some, bias = slice(low, low + step), None
            places = lists[low][None] if step == 1 else pad_sequence(lists[some], batch_first=True)
            if min(numbers[some]) < places.shape[1]:
                hidden = torch.arange(places.shape[1], device=starts.device) >= counts[some, None]
                hidden = hidden.repeat_interleave(size, dim=1)[:, None, None]
                bias = self.q.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)
            keys, values = (x.take(places)[:, None] for x in stores)
            parts.append(trainable_attention(self.q[some], keys, values, self.scale, bias=bias))
        out, lse = joined(parts)
        self._add(out, lse.masked_fill(blind[:, None, None], -torch.inf))

    def result(self) -> tuple[Tensor, Tensor]:
        """Return out (T_q, d_v) and lse (T_q,) of all parts together."""
        assert self.out is not None
        assert self.lse is not None
        rows = slice(self.lead, self.lead + self.length)
        return self.out.flatten(0, 2)[rows].to(self.q.dtype), self.lse.flatten()[rows]

    def _views(self, skip: int, width: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from block `skip` on to the last `width` keys up to the end of each block."""
        begin, end = (self.first + skip + 1) * self.size - width, (self.first + self.count) * self.size
        keys, values = (
            _padded(x[max(0, begin) :], max(0, -begin), max(0, end - len(x)))
            .unfold(0, width, self.size)
            .mT.unsqueeze(1)
            for x in (self.k, self.v)
        )
        return fused_attention(self.q[skip:], keys, values, scale=self.scale, mask=mask)

    def _add(self, out: Tensor, lse: Tensor) -> None:
        out = out.to(lse.dtype)
        if self.out is None or self.lse is None:
            self.out, self.lse = out, lse
            return
        # What `common.merge` does, in one pass over the outputs.
        share = torch.sigmoid(lse - self.lse).masked_fill(lse == -torch.inf, 0.0)
        self.out = self.out.lerp(out, share.unsqueeze(-1))
        self.lse = torch.logaddexp(lse, self.lse)


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, before, after)) if before or after else x


def _by_rows(
    q: Tensor, k: Tensor, v: Tensor, size: int, scale: float, look: Callable[[Cut], None]
) -> tuple[Tensor, Tensor]:
    """Return out (T_q, d_v) and lse (T_q,), some blocks at a time, each time calling `look` on a new `Cut`."""
    past, step = len(k) - len(q), max(1, ROWS // size) * size

    def part(start: int) -> tuple[Tensor, Tensor]:
        end = min(start + step, len(k))
        cut = Cut(q[max(0, start - past) : end - past], k[:end], v[:end], size, scale)
        look(cut)
        return cut.result()

    return joined(each(part, range(past // step * step, len(k), step), q, k, v))


@dataclass(frozen=True, eq=False)
class Lines:
    """Columns and diagonals themselves: what is found for a prompt, or a pattern that stays the same for all.

    A column is seen by every later query. A diagonal o shows a block at a the keys a - o .. a - o + c - 1.

    Args:
        columns: (n,) positions of keys, rising; those beyond a shorter prompt don't count.
        offsets: (m,) distances from query to key, rising from 0 on.
    """

    columns: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        for name in ("columns", "offsets"):
            x = getattr(self, name)
            whole = isinstance(x, Tensor) and x.ndim == 1 and (len(x) == 0 or not x.is_floating_point())
            if not whole or bool((x.diff(prepend=x.new_full((1,), -1)) <= 0).any()):
                raise ValueError(f"{name} must be whole numbers, 0 or more, in rising order; got {x!r}")
        if len(self.offsets) == 0 or self.offsets[0] != 0:
            raise ValueError(f"offsets must start with 0, the query's own position; got {self.offsets!r}")

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> list[Lines]:
        """Return itself for each head of q, whatever the prompt, on the device of the keys."""
        return [unchecked(Lines, columns=self.columns.to(k.device), offsets=self.offsets.to(k.device))] * len(q)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, block_size: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return out (T_q, d_v) and lse (T_q,) for one head, see `Cut`."""
        seen = shown(self.offsets, len(k), block_size)
        reach = int(seen.long().cumprod(0).sum())  # what is shown right before a block
        far = seen[reach:].nonzero().flatten() + reach + 1
        columns = self.columns[self.columns < len(k)]
        keys, values = k[columns], v[columns]
        hidden = int(far[-1]) if len(far) else 0  # positions before the first that blocks might look at
        alone = F.pad(torch.ones_like(seen).index_fill(0, columns, False), (hidden, 0))

        def look(cut: Cut) -> None:
            starts = cut.blocks[:, None] * block_size
            cut.local(reach)
            all_see, some_see = torch.searchsorted(columns, starts[[0, -1], 0] - reach).tolist()
            cut.shared(keys[:all_see], values[:all_see])
            some = columns[all_see:some_see].expand(len(starts), -1)
            along = starts - far[far <= starts[-1]]
            seen = alone.index_select(0, (along + hidden).flatten()).view(along.shape), some < starts - reach
            cut.listed(torch.cat([along, some], dim=1), torch.cat(seen, dim=1), 1)

        return _by_rows(q, k, v, block_size, scale, look)

    def entries(self, length: int, block_size: int) -> int:
        """Return how many of the T (T + 1) / 2 causal pairs a head scores."""
        seen = shown(self.offsets, length, block_size)
        starts = torch.arange(0, length, block_size, device=self.columns.device)
        earlier = seen.cumsum(0)[(starts - 1).clamp(min=0)] * (starts > 0)
        for some in torch.split(torch.arange(len(starts)), 256):
            before = starts[some, None] - self.columns
            earlier[some] += ((before > 0) & ~seen[(before - 1).clamp(min=0)]).sum(dim=1)  # by columns alone
        return _entries(earlier, length, block_size)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks themselves: what is found for a prompt, or a pattern that stays the same for all.

    Args:
        rows: (N, n) the blocks of keys for each of N blocks of queries, the own one being seen anyway; -1 for none.
            They are kept in rising order.
    """

    rows: Tensor

    def __post_init__(self) -> None:
        whole = isinstance(self.rows, Tensor) and self.rows.ndim == 2 and not self.rows.is_floating_point()
        if not whole or bool((self.rows > torch.arange(len(self.rows), device=self.rows.device)[:, None]).any()):
            raise ValueError(f"rows must be (N, n) whole numbers, in row m up to m; got {self.rows!r}")
        ordered = self.rows.sort(dim=1).values
        if bool(((ordered.diff(dim=1) == 0) & (ordered[:, 1:] >= 0)).any()):
            raise ValueError("rows must name each block of keys once")
        object.__setattr__(self, "rows", ordered)

    def find(self, q: Tensor, k: Tensor, *, block_size: int, scale: float) -> list[Blocks]:
        """Return itself for each head of q, on the device of the keys.

        Raises:
            ValueError: a prompt that is longer than the one for which the blocks were found.
        """
        if k.shape[1] > len(self.rows) * block_size:
            raise ValueError(f"blocks for at most {len(self.rows) * block_size} tokens cannot serve {k.shape[1]}")
        return [unchecked(Blocks, rows=self.rows.to(k.device))] * len(q)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, block_size: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return out (T_q, d_v) and lse (T_q,) for one head, see `Cut`."""

        def look(cut: Cut) -> None:
            rows, own = self.rows[cut.blocks], cut.blocks[:, None]
            seen = (rows >= 0) & (rows != own)
            if bool((seen.sum(dim=1) == cut.blocks).all()):  # every block sees all before it
                cut.local(int(cut.blocks[-1]) * block_size)
                return
            cut.local(0)
            cut.listed(rows * block_size, seen, block_size)

        return _by_rows(q, k, v, block_size, scale, look)

    def entries(self, length: int, block_size: int) -> int:
        """Return how many of the T (T + 1) / 2 causal pairs a head scores."""
        blocks = torch.arange(math.ceil(length / block_size), device=self.rows.device)
        rows = self.rows[: len(blocks)]
        return _entries(((rows >= 0) & (rows < blocks[:, None])).sum(dim=1) * block_size, length, block_size)


def _entries(earlier: Tensor, length: int, block_size: int) -> int:
    """Return the number of pairs if each block sees so many keys before it, and its own causally."""
    starts = torch.arange(len(earlier), device=earlier.device) * block_size
    rows = (length - starts).clamp(max=block_size)
    return int((earlier * rows + rows * (rows + 1) // 2).sum())
