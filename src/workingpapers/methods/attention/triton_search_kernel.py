# mypy: ignore-errors
"""The kernel of `triton_search`, written in Triton's language: imported by that module when it runs, and not before.

A program searches for one block of queries after another. Its nodes are vectors of PADDED_N numbers, in the order of
the keys. What has to change places (nodes whose keys are read in tiles, scores, the nodes that are kept) goes through
`room`, memory of the program's own, with a barrier between writing and reading. Scores are float32 turned into whole
numbers of the same order: LEAST for the least float and for NaN, NONE for what is no node.
"""

from __future__ import annotations

from importlib.util import find_spec

# They vary from prompt to prompt, which must not compile anew.
SIZES = ("heads", "group", "queries", "length", "dense", "blocks", "jobs", "block_q", "stride", "sinks", "window")

if find_spec("triton"):  # the package is complete, and can be listed, without it
    import triton
    import triton.language as tl

    from workingpapers.methods.attention.triton_kernels import rows

    LEAST = tl.constexpr(-2139095040)
    NONE = tl.constexpr(-2147483648)

    @triton.jit
    def ordered(x):
        """Turn float32 into int32 of the same order."""
        bits = tl.where(x > -3.4028234663852886e38, x, -3.4028234663852886e38).to(tl.int32, bitcast=True)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    @triton.jit
    def look(
        q, q_step, k, k_step, sampled, sinks, nodes, scores, count,
        BLOCK_K: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    ):  # fmt: skip
        """Let scores (count, BLOCK_K) hold the largest product of any query with each key of `count` nodes."""
        n, m = tl.arange(0, TILE_K), tl.arange(0, TILE_Q)
        for first in range(0, sampled, TILE_Q):
            mine = first + m < sampled
            query = tl.trans(rows(q, first + m, q_step, mine, D, PADDED))
            for i in range(0, count * BLOCK_K, TILE_K):
                inside = i + n < count * BLOCK_K
                node = tl.load(nodes + (i + n) // BLOCK_K, mask=inside, other=0)
                tokens = sinks + node * BLOCK_K + (i + n) % BLOCK_K
                products = tl.dot(rows(k, tokens, k_step, inside, D, PADDED), query, input_precision="tf32x3")
                best = ordered(tl.max(tl.where(mine[None, :], products, float("-inf")), 1))
                earlier = tl.load(scores + i + n, mask=inside & (first > 0), other=LEAST)
                tl.store(scores + i + n, tl.maximum(best, earlier), mask=inside)
            tl.debug_barrier()

    @triton.jit
    def read(scores, N: tl.constexpr, PADDED_N: tl.constexpr, BLOCK_K: tl.constexpr, PADDED_K: tl.constexpr):
        """Return the largest score of each of N nodes."""
        node, part = tl.arange(0, PADDED_N)[:, None], tl.arange(0, PADDED_K)[None, :]
        return tl.max(tl.load(scores + node * BLOCK_K + part, mask=(node < N) & (part < BLOCK_K), other=NONE), 1)

    @triton.jit
    def threshold(a, b, N: tl.constexpr):
        """Return a number that N of a and b exceed or equal, more than N only if some equal it: by bisection."""
        low = tl.full((), LEAST, tl.int32)
        high = tl.max(tl.maximum(a, b), 0) + 1
        reached = tl.full((), 0, tl.int32)
        while (reached != N) & (low + 1 < high):
            middle = (low >> 1) + (high >> 1) + (low & high & 1)
            count = tl.sum((a >= middle).to(tl.int32) + (b >= middle).to(tl.int32), 0)
            reached = tl.where(count >= N, count, reached)
            low, high = tl.where(count >= N, middle, low), tl.where(count >= N, high, middle)
        return low

    @triton.jit
    def marked(x, low):
        """Return 1 for what exceeds `low`, 2^16 for what equals it: sums hold both counts."""
        return (x > low).to(tl.int32) + ((x == low).to(tl.int32) << 16)

    @triton.jit
    def place(x, low, before, equal):
        """Return whether a half is kept, and its place, from the sum of what is marked before it."""
        level = before >> 16
        return (x > low) | ((x == low) & (level < equal)), (before & 0xFFFF) + tl.minimum(level, equal)

    @triton.jit(do_not_specialize=SIZES)
    def search(
        q, k, found, room,
        q_batch, q_head, q_step, k_batch, k_head, k_step,
        heads, group, queries, length, dense, blocks, jobs, block_q, stride, sinks, window,
        N: tl.constexpr, PADDED_N: tl.constexpr, BLOCK_K: tl.constexpr, PADDED_K: tl.constexpr, CENTER: tl.constexpr,
        TILE_Q: tl.constexpr, TILE_K: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
    ):  # fmt: skip
        """Search for block `dense` + m of head b H + h, which is job (b H + h) `blocks` + m, and every so many on."""
        j = tl.arange(0, PADDED_N)
        real = j < N
        nodes = room + tl.program_id(0) * ((5 + 2 * BLOCK_K) * PADDED_N)
        starts, sizes, bests = nodes + 2 * PADDED_N, nodes + 3 * PADDED_N, nodes + 4 * PADDED_N
        scores = nodes + 5 * PADDED_N
        job = tl.program_id(0)
        while job < jobs:
            owner = (job // blocks).to(tl.int64)  # 64 bits: a million tokens in 32 heads exceed 31
            batch, head = owner // heads, owner % heads
            begin = (dense + job % blocks) * block_q
            size = tl.minimum(block_q, queries - begin)
            skip = (size - 1) % stride
            sampled = (size - 1 - skip) // stride + 1
            query = q + batch * q_batch + head * q_head + (begin + skip).to(tl.int64) * q_step
            keys = k + batch * k_batch + head // group * k_head

            total = (length - queries + begin - window + 1 - sinks) // BLOCK_K
            even, rest = total // N, total % N
            start = j * even + j * rest // N
            size = even + (j + 1) * rest // N - j * rest // N
            best = tl.full([PADDED_N], NONE, tl.int32)
            if not CENTER:
                tl.store(nodes + j, start, mask=real)
                tl.debug_barrier()
                look(
                    query, q_step * stride, keys, k_step, sampled, sinks, nodes, scores, N,
                    BLOCK_K, TILE_Q, TILE_K, D, PADDED,
                )  # fmt: skip
                best = read(scores, N, PADDED_N, BLOCK_K, PADDED_K)
            most = tl.cdiv(total, N)
            while most > 1:
                half = size >> 1
                if CENTER:
                    tl.store(nodes + j, start + (half >> 1), mask=real)
                    tl.store(nodes + N + j, start + half + ((size - half) >> 1), mask=real)
                else:  # a first half has the score of the whole
                    tl.store(nodes + j, start + half, mask=real)
                tl.debug_barrier()
                look(
                    query, q_step * stride, keys, k_step, sampled, sinks, nodes, scores, 2 * N if CENTER else N,
                    BLOCK_K, TILE_Q, TILE_K, D, PADDED,
                )  # fmt: skip
                a = best
                b = read(scores, N, PADDED_N, BLOCK_K, PADDED_K)
                if CENTER:
                    a = b
                    b = read(scores + N * BLOCK_K, N, PADDED_N, BLOCK_K, PADDED_K)
                a = tl.where(half > 0, a, NONE)

                low = threshold(a, b, N)
                first, both = marked(a, low), marked(a, low) + marked(b, low)
                before = tl.cumsum(both, 0) - both
                equal = N - (tl.sum(both, 0) & 0xFFFF)
                kept, rank = place(a, low, before, equal)
                tl.store(starts + rank, start, mask=kept)
                tl.store(sizes + rank, half, mask=kept)
                tl.store(bests + rank, a, mask=kept)
                kept, rank = place(b, low, before + first, equal)
                tl.store(starts + rank, start + half, mask=kept)
                tl.store(sizes + rank, size - half, mask=kept)
                tl.store(bests + rank, b, mask=kept)
                tl.debug_barrier()
                start = tl.load(starts + j, mask=real, other=0)
                size = tl.load(sizes + j, mask=real, other=0)
                best = tl.load(bests + j, mask=real, other=NONE)
                most = (most + 1) >> 1
            tl.store(found + job.to(tl.int64) * N + j, start, mask=real)
            job += tl.num_programs(0)
