"""Codes and blocks against loops over ids, keys and blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.methods.tables.compressed_coded import (
    DedupTable,
    MultiGranularTable,
    ProductQuantizedTable,
    packed,
    unpacked,
)

IDS = torch.arange(20)


def test_each_part_is_the_key_of_the_best_normalised_score():
    torch.manual_seed(0)
    table = ProductQuantizedTable([12, 8], 6, choices=4, parts=3).eval()
    table.norm.running_mean.normal_()
    table.norm.running_var.uniform_(0.5, 2)
    out = table(IDS)
    for x in range(20):
        for p in range(3):
            query = table.queries.weight[x, 2 * p : 2 * p + 2]
            scores = -(query - table.keys[p]).square().sum(1)
            at = slice(4 * p, 4 * p + 4)
            scores = (scores - table.norm.running_mean[at]) / (table.norm.running_var[at] + 1e-5).sqrt()
            torch.testing.assert_close(out[x, 2 * p : 2 * p + 2], table.keys[p, scores.argmax()])


def test_gradients_reach_queries_unchanged_and_keys_by_the_penalty_alone():
    torch.manual_seed(0)
    table = ProductQuantizedTable([20], 6, choices=4, parts=3)
    out, weight = table(IDS), torch.randn(20, 6)
    (out * weight).sum().backward(retain_graph=True)
    assert torch.equal(table.queries.weight.grad, weight)
    assert table.keys.grad is None
    table.queries.weight.grad = None
    table.penalty().backward()
    assert table.queries.weight.grad is None
    loss = (out - table.queries.weight).detach()
    for p in range(3):
        # d/dk mean (k - q)^2 = 2 (k - q) / numbers, summed over the rows that took the key
        pulled = loss[:, 2 * p : 2 * p + 2].sum(0) * 2 / out.numel()
        torch.testing.assert_close(table.keys.grad[p].sum(0), pulled)
    assert table.penalty() == 0  # it belongs to one step


def test_the_penalty_counts_every_lookup_of_a_step_and_none_of_evaluation():
    table = ProductQuantizedTable([20], 4)
    table(IDS), table(IDS)
    twice = table.penalty()
    table(IDS)
    torch.testing.assert_close(twice, 2 * table.penalty(), rtol=0.5, atol=0)  # the second saw other statistics
    table.eval()(IDS)
    assert table.penalty() == 0


def test_bytes_of_codes():
    table = ProductQuantizedTable([1000], 16)  # 8 parts of 5 bits are 5 bytes
    assert table.serving_bytes() == 1000 * 5 + 8 * 32 * 2 * 4
    assert table.training_bytes() > 1000 * 16 * 4
    table = MultiGranularTable([1000], 16)  # 4 parts of 8 bits for 100 ids, of 6 for 900, and an index
    assert table.serving_bytes() == 100 * 4 + 900 * 3 + 4 * 256 * 4 * 4 + 3 * 8


def test_rare_ids_choose_among_the_first_keys_only():
    torch.manual_seed(0)
    table = MultiGranularTable([30, 10], 4, choices=16, rare_choices=2, frequent=0.2).eval()
    codes = table.all_codes()
    frequent = [*range(6), 30, 31]
    rare = [x for x in range(40) if x not in frequent]
    assert codes[rare].max() <= 1
    assert codes[frequent].max() > 1
    served = table.served()
    torch.testing.assert_close(served(torch.arange(40)), table(torch.arange(40)))
    served.to("meta")  # it may go to another device
    assert table.split.head.device.type == "cpu"


def test_all_ids_frequent_is_plain_product_quantisation():
    torch.manual_seed(0)
    table = MultiGranularTable([20], 4, choices=8, rare_choices=2, frequent=1.0).eval()
    plain = ProductQuantizedTable([20], 4, choices=8, parts=4).eval()
    plain.load_state_dict({k: v for k, v in table.state_dict().items() if k in plain.state_dict()})
    assert torch.equal(table(IDS), plain(IDS))
    assert torch.equal(table.served()(IDS), plain.served()(IDS))


@given(bits=st.integers(1, 12), parts=st.integers(1, 9), seed=st.integers(0, 99))
def test_codes_survive_packing(bits, parts, seed):
    codes = torch.randint(2**bits, (5, parts), generator=torch.Generator().manual_seed(seed))
    rows = packed(codes, bits)
    assert rows.shape == (5, -(-parts * bits // 8))
    assert rows.dtype == torch.uint8
    start = torch.arange(5) * rows.shape[1]
    assert torch.equal(unpacked(rows.flatten(), start, torch.full_like(start, bits), parts, bits), codes)


def blocks(table):
    return table.table.weight.detach().view(-1, table.block, table.dim)


def test_blocks_that_agree_are_kept_once():
    torch.manual_seed(0)
    table = DedupTable([8, 12], 4, block=4, ratio=0.5)
    with torch.no_grad():
        table.table.weight.normal_()
        block = blocks(table)
        block[3] = block[0] + 0.005  # within the tolerance everywhere
        block[4] = block[1]
        block[4, 0] += 1  # 12 of 16 entries still agree, more than 0.7
        block[2] = block[1]
        block[2, :2] += 1  # 8 of 16 do not suffice
    before = table(IDS).detach()
    table.settle()
    after = table(IDS).detach()
    groups = {tuple(sorted(i for i in range(5) if table.remap[i] == kept)) for kept in table.remap.tolist()}
    assert groups == {(0, 3), (1, 4), (2,)}
    moved = {i for i in range(5) if table.remap[i] != i}
    for i in range(5):
        same = after[4 * i : 4 * i + 4] == before[4 * i : 4 * i + 4]
        assert same.all() == (i not in moved)
    assert table.serving_bytes() == 3 * 16 * 4 + 5 * 4
    assert torch.equal(table.served()(IDS), after)


def test_merging_stops_at_the_budget_and_a_short_last_block_stays():
    table = DedupTable([18], 4, block=4, ratio=0.8)
    torch.nn.init.zeros_(table.table.weight)
    table.settle()
    # 0.8 of 72 numbers less 5 of the index pay for 3 blocks of 16
    assert len(set(table.remap.tolist())) == 3
    assert table.remap[4] == 4
    assert table.served()(torch.arange(18)).shape == (18, 4)


def test_nothing_alike_is_a_full_table():
    torch.manual_seed(0)
    table = DedupTable([20], 4, block=4, ratio=0.5)
    torch.nn.init.normal_(table.table.weight)
    table.settle()
    assert torch.equal(table(IDS), table.table.weight)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ProductQuantizedTable, {"choices": 12}, "choices is 12; it must be a power of two"),
        (ProductQuantizedTable, {"parts": 3}, "parts is 3; it must divide dim, 4"),
        (MultiGranularTable, {"rare_choices": 512}, "rare_choices is 512; it must be at most choices, 256"),
        (MultiGranularTable, {"frequent": -0.1}, "share is -0.1"),
        (DedupTable, {"block": 0}, "block is 0"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind([5], 4, **options)
