"""HiP: a tree search finds the keys that matter to a block of queries; T log T time, T memory, nothing is trained.

Neighbouring keys tend to score alike, so one key can speak for a segment. Queries come in blocks of b_q, keys in blocks
of b_k. For one head and the query block that starts at position i, with s sinks, a window of w and a budget of k keys:

    sinks     keys 0 to s - 1
    window    keys e to the query's own, e = s + b_k N: at least w for every query of the block
    between   N = floor((i - w + 1 - s) / b_k) key blocks, of which n = k / b_k are found; all of them if N <= n
    search    n nodes (start, size) part the N blocks evenly; until all sizes are 1: split each node into halves
              (start, floor(size / 2)) and (start + floor(size / 2), rest), keep the n best halves
    score     max q . k over every second query of the block and the b_k keys of the node's representative block, its
              first (or middle) one
    attend    exact causal softmax over sinks, found blocks and window

The search takes ceil(log2(ceil(N / n))) rounds of n new scores per sampled query and key of a block (2 n without the
parent's: it has the first half's representative). Where neighbouring keys have nothing in common it finds only what it
happens to score, and the first layers of a model are best left dense.

Blocks are counted from the first query of a call: a prompt in parts of a multiple of b_q is as good as the whole. When
decoding, a block is one query, whose found keys can serve the next ones too; their windows then reach back to its e.

Source: Lee et al., "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning", arXiv
2406.09827, ICLR 2025, and the authors' published code of version 1.1 (integer nodes, representatives, sampled queries).
That code ends the search at the window of a block's last query and hides doubles; here no key is met twice. Its options
for sparse query components, for extending contexts and for dense first rows of a prompt are left out.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from workingpapers.methods.attention import common, listed, native_blocks, triton_search
from workingpapers.methods.attention.common import Model, check_inputs
from workingpapers.methods.attention.fused import fused_attention, joined, trainable_attention
from workingpapers.methods.attention.gathering import Vectors, split
from workingpapers.methods.attention.padding import real_pieces, unseen
from workingpapers.methods.attention.parallel import each

_BATCH = 64  # query blocks whose keys are listed at once; how many are gathered at once is up to `Vectors.chunk`


@dataclass(frozen=True)
class HiPAttention:
    """Hierarchically pruned causal attention on (B, H, T, d); differentiable, but for the choice of keys.

    Args:
        top_k: k, keys found by search (512, as published).
        block_q: b_q, queries that share what they find (32, as published).
        block_k: b_k, keys found together (2, as published), a divisor of top_k.
        window: w, last keys that a query always sees (128, as in the authors' code), its own included.
        sinks: s, first keys that every query sees (16, as in the authors' code).
        query_stride: every which query of a block scores, the last one among them (2, as in the authors' code).
        center: whether the middle block of a segment represents it rather than its first (as in the authors' code).

    Raises:
        ValueError: an option outside its range.
    """

    top_k: int = 512
    block_q: int = 32
    block_k: int = 2
    window: int = 128
    sinks: int = 16
    query_stride: int = 2
    center: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name not in ("sinks", "center"))
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{field.name} is {value!r}; allowed: whole numbers from {least} on")
        if self.top_k % self.block_k:
            raise ValueError(f"top_k {self.top_k} must be a multiple of block_k {self.block_k}")

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return out (B, H, T, d_v) in the type of q and its log-sum-exp (B, H, T) in float32 at least.

        Rows of a padded batch are treated one by one without their padding, as if each came alone.

        Args:
            q: (B, H, T, d), the last T of the S positions.
            k, v: (B, G, S, d) and (B, G, S, d_v), G dividing H. Each query head searches for itself.
            scale: factor of the scores; None takes d^-1/2.
            key_mask: (B, S) booleans, False for padding left or right of a row's real tokens. Padded queries come out
                as 0 with log-sum-exp -inf.

        Raises:
            ValueError: shapes that do not fit, more queries than keys, padding between real tokens, or NaN and infinity
                where keys are searched (without a search NaN comes out as NaN).
        """
        _check(q, k, v)
        if self._searching(q.shape[2], k.shape[2]):
            check_inputs(q, k, v, finite=True)
        if key_mask is None:
            return self.attend(q, k, v, self.search(q, k), scale=scale)
        out, lse = unseen(q, v)
        for row, queries, keys in real_pieces(q, k, key_mask):
            piece = q[row, :, queries], k[row, :, keys], v[row, :, keys]
            out[row, :, queries], lse[row, :, queries] = self.attend(*piece, self.search(*piece[:2]), scale=scale)
        return out, lse

    @torch.no_grad()
    def search(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the key blocks that each query block finds, (B, H, blocks, n), rising.

        Block j holds the keys from sinks + j block_k on. Only query blocks with more than n candidates search; they are
        the last ones of a call, possibly none. Which of equal scores are kept is not defined.

        Args:
            q, k: as in `__call__`, without padding.
        """
        _check(q, k, k)
        blocks = self._searching(q.shape[2], k.shape[2])
        if blocks and triton_search.available(self, q, k):
            return triton_search.search(self, q, k, blocks)
        native, jobs = native_blocks.serves(q, k), []
        n, keys = self.top_k // self.block_k, Vectors(k.float() if native else k, q.shape[1])
        for run in self._runs(q.shape[2], k.shape[2]):
            queries, owner, number = run.blocks(q)
            sampled = queries[:, (run.size - 1) % self.query_stride :: self.query_stride]
            total = torch.tensor(run.candidates, device=q.device)[number]
            jobs += [(run, part) for part in split(_BATCH, sampled, owner, total)]
        leaves = _by_run(lambda run, part: self._descend(keys, native, run.rounds, *part), jobs, q, k)
        found = [q.new_empty(*q.shape[:2], 0, n, dtype=torch.long)]
        return torch.cat(found + [torch.cat(x).view(*q.shape[:2], -1, n) for x in leaves], dim=2)

    def _descend(self, keys: Vectors, native: bool, rounds: int, q: Tensor, owner: Tensor, total: Tensor) -> Tensor:
        """Return what m query blocks (m, sampled, d) of heads (m,) find among (m,) candidates, (m, n)."""
        n, exact = self.top_k // self.block_k, torch.promote_types(q.dtype, torch.float32)
        first = keys.places(owner, torch.tensor(self.sinks, device=q.device))
        if native:
            return native_blocks.descend(q, keys.rows, first, total, n, self.block_k, keys.step, rounds, self.center)
        q, runs = q.to(exact).contiguous(), keys.runs(self.block_k)
        room = q.new_empty(min(keys.chunk(self.top_k), len(q)), q.shape[1], self.top_k)

        def scores(blocks: Tensor) -> Tensor:
            parts, best = split(len(room), q, torch.add(first, blocks, alpha=self.block_k * keys.step)), []
            for queries, places in parts:
                products = torch.bmm(queries, runs.take(places).to(exact).mT, out=room[: len(places)])
                best.append(products.amax(dim=1))
            return torch.cat(best).view(*blocks.shape, self.block_k).amax(dim=2)

        edges = torch.arange(n + 1, device=q.device) * total[:, None] // n
        start, size = edges[:, :-1], edges.diff(dim=1)
        kept = [] if self.center else [scores(start)]
        for left in reversed(range(rounds)):
            half = size >> 1
            start, size = torch.cat([start, start + half], dim=1), torch.cat([half, size - half], dim=1)
            new = start + (size >> 1) if self.center else start[:, n:]
            both = torch.cat([*kept, *map(scores, torch.split(new, n, dim=1))], dim=1)
            if left == 0:  # until then every node holds a block at least
                both.masked_fill_(size == 0, -torch.inf)
            best, index = both.topk(n, dim=1, sorted=False)
            start, size = start.gather(1, index), size.gather(1, index)
            kept = [] if self.center else [best]
        return start.sort(dim=1).values

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, found: Tensor, *, scale: float | None = None, age: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return out (B, H, T, d_v) and lse (B, H, T) of exact attention to sinks, found blocks and window.

        Args:
            q, k, v, scale: as in `__call__`, without padding.
            found: what `search` returned for these queries and keys.
            age: how many tokens ago the search was, when decoding (T = 1); `found` is then what it returned there.

        Raises:
            ValueError: shapes that do not fit, or `found` of another shape than `search` returns.
        """
        _check(q, k, v)
        blocks, past = self._searching(q.shape[2], k.shape[2], age), k.shape[2] - q.shape[2]
        needed = (*q.shape[:2], blocks, self.top_k // self.block_k)
        if found.shape != needed:
            raise ValueError(f"found must be (B, H, blocks, n) = {needed}, as search returns; got {tuple(found.shape)}")
        if listed.available(q, k, v):
            # A tensor made of numbers of Python would be waited for.
            begin = past - age + self.block_q * (math.ceil(q.shape[2] / self.block_q) - blocks)
            end = begin + self.block_q * blocks
            starts = torch.arange(begin, end, self.block_q, dtype=torch.int32, device=q.device)
            seen = listed.of_tree(found, self._candidates(starts), q.shape[2], self.block_q, self.block_k, self.sinks)
            return listed.attended(q, k, v, seen, scale=scale)
        runs, scale = self._runs(q.shape[2], k.shape[2], age), q.shape[-1] ** -0.5 if scale is None else scale
        dense = runs[0].begin if runs else q.shape[2]
        first = q[:, :, :dense], k[:, :, : past + dense], v[:, :, : past + dense]
        parts = [fused_attention(*first, causal=True, scale=scale)] if dense or not runs else []
        keys, values = Vectors(k, q.shape[1]), Vectors(v, q.shape[1])
        sinks = self.block_k * torch.arange(math.ceil(self.sinks / self.block_k), device=q.device)

        def attend(run: _Run, part: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            bias, blocks, owner, leaves, near, kind = part
            starts = torch.cat([sinks.expand(len(near), -1), self.sinks + self.block_k * leaves, near], dim=1)
            stores = [(x.runs(self.block_k), x.places(owner, starts)) for x in (keys, values)]
            step, done = keys.chunk(bias.shape[-1]), []
            for some in (slice(low, low + step) for low in range(0, len(blocks), step)):
                key, value = (x.take(places[some])[:, None] for x, places in stores)
                hidden = bias if len(bias) == 1 else bias[kind[some]]
                done.append(trainable_attention(blocks[some, None], key, value, scale, bias=hidden))
            return joined(done)

        jobs = []
        for run, leaves in zip(runs, torch.split(found, [len(run.candidates) for run in runs], dim=2), strict=True):
            queries, owner, number = run.blocks(q)
            near, kind, bias = self._window(run, past, q)
            tensors = queries, owner, leaves.flatten(0, 2), near[number], kind[number]
            jobs += [(run, (bias, *part)) for part in split(_BATCH, *tensors)]
        for out, lse in (joined(done) for done in _by_run(attend, jobs, q, k, v)):
            parts.append((out.view(*q.shape[:2], -1, v.shape[3]), lse.view(*q.shape[:2], -1)))
        return joined(parts, dim=2)

    def _window(self, run: _Run, past: int, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where runs of keys near each block start (blocks, c), its kind (blocks,), and each kind's bias."""
        begin = past + run.begin + run.size * torch.arange(len(run.candidates), device=q.device)
        edge = self.sinks + self.block_k * torch.tensor(run.candidates, device=q.device)
        reach, kind = torch.unique(begin + run.size - edge, return_inverse=True)
        first, most = (math.ceil(x / self.block_k) * self.block_k for x in (self.sinks, int(reach.max())))
        away = torch.arange(run.size - most, run.size, device=q.device)  # from a block's first query
        hidden = (away > torch.arange(run.size, device=q.device)[:, None]) | (away < run.size - reach[:, None, None])
        bias = q.new_zeros(len(reach), 1, run.size, first + self.top_k + most)
        bias[..., self.sinks : first] = -torch.inf
        bias[..., -most:].masked_fill_(hidden[:, None], -torch.inf)
        return begin[:, None] + away[:: self.block_k], kind, bias

    def _candidates(self, position: Any) -> Any:
        """Return N of query blocks that begin at a position or several; negative ones stand for 0."""
        return (position - (self.window - 1 + self.sinks)) // self.block_k

    def _searching(self, queries: int, length: int, age: int = 0) -> int:
        """Return how many query blocks search, the last ones, or have searched `age` tokens ago."""
        least = self.top_k + self.block_k + self.window - 1 + self.sinks  # the first position with N > n
        blocks, dense = math.ceil(queries / self.block_q), -((length - queries - age - least) // self.block_q)
        return blocks - min(max(dense, 0), blocks)

    def _runs(self, queries: int, length: int, age: int = 0) -> list[_Run]:
        """Return the query blocks that search, or have searched `age` tokens ago."""
        runs: list[_Run] = []
        n = self.top_k // self.block_k
        for begin in range(0, queries, self.block_q):
            total = self._candidates(length - queries + begin - age)
            if total <= n:
                continue
            size, rounds = min(self.block_q, queries - begin), (-(-total // n) - 1).bit_length()
            if not runs or (runs[-1].size, runs[-1].rounds) != (size, rounds):
                runs.append(_Run(begin, size, rounds, []))
            runs[-1].candidates.append(total)
        return runs

    def score_entries(self, length: int, *, queries: int | None = None, age: int | None = None) -> int:
        """Return how many scores a head computes, those of the search included; dense: T (T + 1) / 2.

        Args:
            length: tokens so far.
            queries: the last of them, of which scores are counted; None for all.
            age: for a decoded token, how many tokens ago the search was that it uses; None for a search of its own.
        """
        queries, n = length if queries is None else queries, self.top_k // self.block_k
        entries = queries * (length - queries) + queries * (queries + 1) // 2
        for run in self._runs(queries, length, age or 0):
            nodes = 2 * n * run.rounds if self.center else n * (1 + run.rounds)
            searched = -(-run.size // self.query_stride) * nodes * self.block_k if age is None else 0
            pruned = sum(run.size * (total * self.block_k - self.top_k) for total in run.candidates)
            entries += len(run.candidates) * searched - pruned
        return entries


@dataclass(frozen=True)
class _Run:
    """Consecutive query blocks of a call that search in equally many rounds."""

    begin: int  # the first query
    size: int  # queries per block
    rounds: int
    candidates: list[int]  # N of each block

    def blocks(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the m = B H blocks query blocks (m, b_q, d), b H + h of each and its number in the run, (m,)."""
        heads, count = q.shape[0] * q.shape[1], len(self.candidates)
        queries = q[:, :, self.begin : self.begin + self.size * count].reshape(-1, self.size, q.shape[3])
        owner = torch.arange(heads, device=q.device).repeat_interleave(count)
        return queries, owner, torch.arange(count, device=q.device).repeat(heads)


def _by_run(function: Callable[..., Any], jobs: list[tuple[_Run, Any]], *tensors: Tensor) -> list[list[Any]]:
    """Return what a function returns for the jobs of each run, all of them side by side."""
    done = zip(jobs, each(lambda job: function(*job), jobs, *tensors), strict=True)
    return [[x for _, x in group] for _, group in itertools.groupby(done, key=lambda pair: pair[0][0].begin)]


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    check_inputs(q, k, v)
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"causal attention takes at most as many queries as keys; got {q.shape[2]}, {k.shape[2]}")
    if 0 in q.shape[:2]:
        raise ValueError(f"only T may be 0; got q {tuple(q.shape)}, v {tuple(v.shape)}")


@dataclass
class _Found:
    """What a layer found when decoding."""

    keys: weakref.ref[Tensor]  # of the last step: they tell whether the cache is the same
    age: int  # how many tokens ago the search was
    starts: list[tuple[slice, int | None]]  # row and first key of each sequence without its padding
    blocks: list[Tensor]


class _Memory(dict[int, _Found]):
    """What the layers of a model found last, by their numbers. Copies of the model start without."""

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()

    def prepare(self, base: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Forget what was found in another cache than the one at hand, and hand on the rest."""
        layers = getattr(kwargs.get("cache"), "layers", ())
        cached = {i: layer.keys for i, layer in enumerate(layers) if getattr(layer, "keys", None) is not None}
        for i in [i for i, found in self.items() if i not in cached or found.keys() is not cached[i]]:
            del self[i]
        return {**kwargs, "hip_memory": self}


def apply(model: Model, hip: HiPAttention | None = None, *, dense_layers: int = 3, refresh_interval: int = 8) -> Model:
    """Let a rotary decoder of transformers attend by HiP; `common.restore` takes it out again.

    Prompts and decoded tokens are treated alike; the cache is the ordinary one. What a search found is used again only
    if nothing but decoding changed the cache (no beam search reordered it, no crop shortened it).

    Args:
        model: see `common.apply`. Changed in place.
        hip: the options; None takes the defaults.
        dense_layers: how many first layers stay exact (3, as in the authors' code).
        refresh_interval: decoded tokens per search (8, as in the authors' code); 1 searches for each.

    Returns:
        The model.

    Raises:
        ValueError: a model that `common.check_model` refuses, or an option out of range.
    """
    common.check_model(model)
    hip, count = hip or HiPAttention(), len(common.attention_layers(model))
    if not 0 <= dense_layers < count:
        kind = type(model).__name__
        raise ValueError(f"dense_layers is {dense_layers}; allowed: 0 to {count - 1}, for {kind} has {count} layers")
    if refresh_interval < 1:
        raise ValueError(f"refresh_interval is {refresh_interval}; allowed: 1 or more")
    attention = partial(_attention, hip=hip, dense_layers=dense_layers, refresh_interval=refresh_interval)
    return common.apply(model, "hip", attention, prepare=_Memory().prepare)


@torch.compiler.disable  # tracing takes long and gains nothing
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    key_mask: Tensor | None,
    module: Any,
    hip: HiPAttention,
    dense_layers: int,
    refresh_interval: int,
    hip_memory: dict[int, _Found],
    held_keys: Tensor,
    **kwargs: Any,
) -> Tensor:
    layer = module.layer_idx
    if layer < dense_layers or q.shape[2] != 1:
        hip = replace(hip, window=sys.maxsize) if layer < dense_layers else hip
        return hip(q, k, v, scale=scale, key_mask=key_mask)[0]
    check_inputs(q, k[:, :, -1:], v[:, :, -1:], finite=True)  # the cache holds what was checked before
    whole = [(slice(None), slice(None), slice(None))]
    pieces = whole if key_mask is None else real_pieces(q, k, key_mask)
    starts = [(row, keys.start) for row, _, keys in pieces]
    last = hip_memory.get(layer)
    if last is not None and last.age + 1 < refresh_interval and last.starts == starts:
        age, found = last.age + 1, last.blocks
    else:
        age, found = 0, [hip.search(q[row], k[row, :, keys]) for row, _, keys in pieces]
    hip_memory[layer] = _Found(weakref.ref(held_keys), age, starts, found)
    out = unseen(q, v)[0]
    for (row, _, keys), blocks in zip(pieces, found, strict=True):
        out[row] = hip.attend(q[row], k[row, :, keys], v[row, :, keys], blocks, scale=scale, age=age)[0]
    return out
