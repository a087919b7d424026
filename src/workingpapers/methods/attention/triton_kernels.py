# mypy: ignore-errors
"""The kernel of `triton_blocks`, written in Triton's language: imported by that module when it runs, and not before.

One program computes up to TILE_Q queries of one block and one head. It holds a running softmax in base 2 (float32): per
row the largest score `top`, the sum `total` of 2^(s - top), and the weighted sum `acc` of values; each tile of TILE_K
keys updates them. Products of float32 are sums of three in TF32, which are as exact as float32 but for the last bits.
"""

from __future__ import annotations

from importlib.util import find_spec

# They vary from prompt to prompt, which must not compile anew.
SIZES = ("heads", "group", "queries", "length", "blocks", "block_q", "lead", "sinks", "window")
SIZES += ("n_listed", "n_columns", "n_offsets")

if find_spec("triton"):  # the package is complete, and can be listed, without it
    import triton
    import triton.language as tl

    @triton.jit
    def rows(x, tokens, step, real, WIDTH: tl.constexpr, PADDED: tl.constexpr):
        """Load the vectors (TILE_K, PADDED) of tokens, 0 where they are not real."""
        column = tl.arange(0, PADDED)
        mask = real[:, None]
        if WIDTH != PADDED:
            mask = mask & (column < WIDTH)[None, :]
        return tl.load(x + tokens.to(tl.int64)[:, None] * step + column[None, :], mask=mask, other=0.0)

    @triton.jit
    def look(
        acc, top, total, q, k, v, k_step, v_step, factor, tokens, real, seen,
        MASKED: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, PADDED: tl.constexpr, PADDED_V: tl.constexpr,
    ):  # fmt: skip
        """Attend to a tile of keys, to all of them unless MASKED."""
        scores = tl.dot(q, tl.trans(rows(k, tokens, k_step, real, D, PADDED)), input_precision="tf32x3") * factor
        if MASKED:
            scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet: weights of 0, never NaN
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        values = rows(v, tokens, v_step, real, D_V, PADDED_V)
        acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="tf32x3")
        return acc, new, total * shrink + tl.sum(weights, 1)

    @triton.jit(do_not_specialize=SIZES)
    def attend(
        q, k, v, out, lse,
        near, listed, listed_skip, columns, columns_bounds, offsets, offsets_bounds, shown,
        q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step,
        heads, group, queries, length, blocks, block_q, lead, sinks, window, n_listed, n_columns, n_offsets, factor,
        LISTED: tl.constexpr, LINES: tl.constexpr, BLOCK_K: tl.constexpr, TILES: tl.constexpr,
        TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
        D: tl.constexpr, D_V: tl.constexpr, PADDED: tl.constexpr, PADDED_V: tl.constexpr,
    ):  # fmt: skip
        """Compute tile `program_id(0)`, of which each block has TILES, of head `program_id(1)` = b H + h."""
        block, part = tl.program_id(0) // TILES, tl.program_id(0) % TILES
        owner = tl.program_id(1).to(tl.int64)  # 64 bits: a million tokens in 32 heads exceed 31
        batch, head = owner // heads, owner % heads
        k += batch * k_batch + head // group * k_head
        v += batch * v_batch + head // group * v_head
        listed += (owner * blocks + block) * n_listed
        columns += owner * n_columns
        offsets += owner * n_offsets
        shown += owner * (length + 1)

        past = length - queries
        start = past - lead + block * block_q  # where the block begins
        first = start + part * TILE_Q  # the first position of this tile, and the one after its last
        end = tl.minimum(tl.minimum(first + TILE_Q, start + block_q), length)
        place = first + tl.arange(0, TILE_Q)
        mine = (place >= past) & (place < end)
        low = tl.load(near + owner * blocks + block)
        before = tl.minimum(low, start)  # what is seen by the whole block ends here
        query = rows(q + batch * q_batch + head * q_head, place - past, q_step, mine, D, PADDED)

        n = tl.arange(0, TILE_K)
        acc = tl.zeros([TILE_Q, PADDED_V], tl.float32)
        top = tl.full([TILE_Q], float("-inf"), tl.float32)
        total = tl.zeros([TILE_Q], tl.float32)

        if LISTED:
            for i in range(tl.load(listed_skip + owner * blocks + block) * BLOCK_K, n_listed * BLOCK_K, TILE_K):
                inside = i + n < n_listed * BLOCK_K
                entry = tl.load(listed + (i + n) // BLOCK_K, mask=inside, other=0)
                tokens = sinks + entry * BLOCK_K + (i + n) % BLOCK_K
                real = inside & (tokens < before)
                acc, top, total = look(
                    acc, top, total, query, k, v, k_step, v_step, factor, tokens, real, real[None, :],
                    True, D, D_V, PADDED, PADDED_V,
                )  # fmt: skip

        if LINES:  # first the offsets, then the columns
            offsets_bounds += owner * (blocks + 1)
            columns_bounds += owner * (blocks + 1)
            none, none_of_columns = tl.load(offsets_bounds), tl.load(columns_bounds)
            offsets += none
            columns += none_of_columns
            far = tl.load(offsets_bounds + 1 + block) - none
            count = far + tl.load(columns_bounds + 1 + block) - none_of_columns
            for i in range(0, count, TILE_K):
                back = i + n < far
                alone = (i + n >= far) & (i + n < count)
                distance = tl.load(offsets + (i + n), mask=back, other=0)
                tokens = tl.load(columns + (i + n - far), mask=alone, other=0)
                alone = alone & (tl.load(shown + (start - tokens), mask=alone, other=0) == 0)
                tokens = tl.where(back, start - distance, tokens)
                real = (back & (tokens < before)) | alone
                acc, top, total = look(
                    acc, top, total, query, k, v, k_step, v_step, factor, tokens, real, real[None, :],
                    True, D, D_V, PADDED, PADDED_V,
                )  # fmt: skip

        # Near keys that all rows see, then tiles of masks: sinks, keys that some windows have left, the diagonal.
        whole = low + tl.cdiv(tl.maximum(end - window - low, 0), TILE_K) * TILE_K
        diagonal = whole + tl.maximum(first + 1 - whole, 0) // TILE_K * TILE_K
        for i in range(whole, diagonal, TILE_K):
            real = i + n < end
            acc, top, total = look(
                acc, top, total, query, k, v, k_step, v_step, factor, i + n, real, real[None, :],
                False, D, D_V, PADDED, PADDED_V,
            )  # fmt: skip
        known = tl.minimum(sinks, before)
        left = tl.cdiv(known, TILE_K)
        right = left + tl.cdiv(tl.maximum(tl.minimum(whole, end) - low, 0), TILE_K)
        for i in range(right + tl.cdiv(tl.maximum(end - diagonal, 0), TILE_K)):
            begin = tl.where(i < left, i, tl.where(i < right, i - left, i - right)) * TILE_K
            tokens = begin + tl.where(i < left, 0, tl.where(i < right, low, diagonal)) + n
            real = tokens < tl.where(i < left, known, end)
            distance = place[:, None] - tokens[None, :]
            seen = (distance >= 0) & ((distance < window) | (tokens < sinks)[None, :]) & real[None, :]
            acc, top, total = look(
                acc, top, total, query, k, v, k_step, v_step, factor, tokens, real, seen,
                True, D, D_V, PADDED, PADDED_V,
            )  # fmt: skip

        blind = total == 0.0
        acc /= tl.where(blind, 1.0, total)[:, None]
        row = owner * queries + place - past
        column = tl.arange(0, PADDED_V)
        stored = mine[:, None] & (column < D_V)[None, :]
        tl.store(out + row[:, None] * D_V + column[None, :], acc.to(out.dtype.element_ty), mask=stored)
        found = tl.where(blind, float("-inf"), (top + tl.log2(tl.where(blind, 1.0, total))) * 0.6931471805599453)
        tl.store(lse + row, found, mask=mine)
