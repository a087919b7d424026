"""Tensors and any patterns for the kernels of `workingpapers.methods.attention.listed`, and their comparison."""

import torch

from workingpapers.methods.attention.listed import Listed, listed_attention, naive_listed_attention


def sample(T, T_q=None, B=1, H=2, G=1, d=8, d_v=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, T_q or T, d), (B, G, T, d), (B, G, T, d_v)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def pattern(T, T_q, B, H, block_q, block_k, lines, seed):
    """Return any pattern: heads with nothing, lists or lines, blocks without near keys, entries out of sight."""
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def some(*shape, least, most, n):
        rows = torch.full((*shape, n), -1)
        for row in rows.flatten(0, -2):
            kept = min(number(0, n), max(0, most - least + 1))
            row[n - kept :] = (torch.randperm(most - least + 1, generator=generator)[:kept] + least).sort().values
        return rows

    lead = number(0, min(T - T_q, block_q - 1))
    count = -(-(lead + T_q) // block_q)
    starts = T - T_q - lead + block_q * torch.arange(count)
    near = (starts - torch.randint(0, 40, (B, H, count), generator=generator)).clamp(min=0)
    near[torch.rand(B, H, count, generator=generator) < 0.2] = T
    listed = some(B, H, count, least=0, most=-(-T // block_k) - 1, n=number(0, 6))
    if not lines:
        window = None if number(0, 1) else number(1, 50)
        return Listed(near, block_q, lead, listed, block_k, sinks=number(0, 20), window=window)
    of_lines = torch.rand(B, H, generator=generator) < 0.6
    columns, offsets = (some(B, H, least=least, most=T - 1, n=number(0, 20)) for least in (0, 1))
    columns[~of_lines], offsets[~of_lines], listed[of_lines] = -1, -1, -1
    return Listed(near, block_q, lead, listed, block_k, columns=columns, offsets=offsets)


def agree(q, k, v, seen, scale=None, device="cpu"):
    """Compare kernel and definition; the latter gets the same rounded inputs and computes in float32."""
    moved = {x: getattr(seen, x) for x in ("near", "listed", "columns", "offsets")}
    moved = {x: None if y is None else y.to(device) for x, y in moved.items()}
    there = Listed(**{**vars(seen), **moved})
    out, lse = listed_attention(*(x.to(device) for x in (q, k, v)), there, scale=scale)
    exact, exact_lse = naive_listed_attention(q.float(), k.float(), v.float(), seen, scale=scale)
    assert (out.dtype, lse.dtype) == (q.dtype, torch.float32)
    # Weights and outputs are rounded to the type, each by half an eps, and |v| reaches 4. The scores stay in float32,
    # but its products on a GPU and sums of another order lose some bits more.
    eps = max(torch.finfo(q.dtype).eps, 1e-5)
    torch.testing.assert_close(out.cpu().float(), exact, atol=4 * eps, rtol=eps)
    torch.testing.assert_close(lse.cpu(), exact_lse, atol=3e-5, rtol=1e-5)
