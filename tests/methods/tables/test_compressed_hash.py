"""Hashed tables against their definitions, id by id, and against a dense table where they share nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.methods.tables.compressed_hash import (
    PRIME,
    AdaptiveTable,
    DeepHashTable,
    HashTable,
    QuotientRemainderTable,
    RobeTable,
)

SIZES, N = [6, 11, 3], 20
IDS = torch.arange(N)


def test_hash_shares_rows_by_remainder_and_none_at_ratio_one():
    table = HashTable(SIZES, 4, ratio=0.4)
    assert table.rows == 8
    for x in range(N):
        assert torch.equal(table(torch.tensor(x)), table.table.weight[x % 8])
    dense = HashTable(SIZES, 4, ratio=1)
    assert torch.equal(dense(IDS), dense.table.weight)
    assert table.serving_bytes() == 8 * 4 * 4


@given(ids=st.integers(1, 3000), divisor=st.integers(1, 80))
def test_distinct_ids_never_share_both_quotient_and_remainder(ids, divisor):
    table = QuotientRemainderTable([ids], 1, divisor=divisor)
    pairs = {(x // table.divisor, x % table.divisor) for x in range(ids)}
    assert len(pairs) == ids
    assert max(q for q, _ in pairs) < table.quotients.num_embeddings
    assert max(r for _, r in pairs) < table.remainders.num_embeddings


def test_quotient_remainder_is_a_product_and_dense_with_divisor_one():
    table = QuotientRemainderTable(SIZES, 4, ratio=0.5)
    assert table.divisor == 3  # 7 + 3 rows; a divisor of 2 would need 12
    for x in range(N):
        expected = table.quotients.weight[x // 3] * table.remainders.weight[x % 3]
        assert torch.equal(table(torch.tensor(x)), expected)
    dense = QuotientRemainderTable(SIZES, 4, divisor=1)
    torch.nn.init.ones_(dense.remainders.weight)
    assert torch.equal(dense(IDS), dense.quotients.weight)


def test_quotients_beyond_the_integers_of_float32_are_exact():
    table = QuotientRemainderTable([5], 1, divisor=1)
    table.divisor = 3
    asked = []
    table.quotients.forward = lambda q: asked.append(q) or torch.zeros(*q.shape, 1)
    table.remainders.forward = lambda r: torch.zeros(*r.shape, 1)
    ids = torch.tensor([2**24 + 1, 2**24 + 2, 2**31 + 5])
    table(ids)
    assert asked[0].tolist() == [x // 3 for x in ids.tolist()]


@pytest.mark.parametrize("chunks", [1, 3, 6])
def test_robe_by_its_definition(chunks):
    table = RobeTable(SIZES, 6, ratio=0.5, chunks=chunks)
    (a, b, c), (sa, sb, sc) = table.place.tolist(), table.sign.tolist()
    length = len(table.numbers)
    out = table(IDS)
    for x in range(N):
        for j in range(6):
            chunk, within = divmod(j, 6 // chunks)
            place = ((a * x + b * chunk + c) % PRIME % length + within) % length
            sign = 1 if (sa * x + sb * j + sc) % PRIME % 2 == 0 else -1
            assert out[x, j] == sign * table.numbers[place]


def test_robe_is_dense_where_its_hash_is_the_identity():
    table = RobeTable(SIZES, 4, ratio=1)
    table.numbers = torch.nn.Parameter(torch.randn(N * 4))
    table.place.copy_(torch.tensor([4, 0, 0]))
    table.sign.zero_()
    assert torch.equal(table(IDS), table.numbers.view(N, 4))


def test_deep_hash_by_its_definition_and_ids_beyond_32_bits_do_not_overflow():
    torch.manual_seed(0)
    table = DeepHashTable(SIZES, 4, hashes=8, width=5, buckets=1000).eval()
    seen = []
    table.hidden[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    ids = [0, 7, 2**31 - 2]
    table(torch.tensor(ids))
    for row, x in zip(seen[0], ids, strict=True):
        slopes, shifts = table.slopes.tolist(), table.shifts.tolist()
        hashed = [(a * x + b) % PRIME % 1000 for a, b in zip(slopes, shifts, strict=True)]
        torch.testing.assert_close(row, torch.tensor([h / 999 * 2 - 1 for h in hashed]))
    assert len(torch.unique(table(IDS), dim=0)) == N
    parts = 8 * 16 + (8 * 5 + 5) * 4 + 4 * (25 + 5) * 4 + (20 + 4) * 4 + 5 * (4 * 5 * 4 + 8)
    assert table.serving_bytes() == parts


def test_deep_hash_normalises_by_the_batch_in_training_alone():
    table = DeepHashTable(SIZES, 4, hashes=8, width=5)
    alone, together = table(IDS[:2]), table(IDS)[:2]
    assert not torch.allclose(alone, together)
    assert torch.isfinite(table(torch.tensor(3))).all()  # a batch of one has no variance
    table.eval()
    torch.testing.assert_close(table(IDS[:2]), table(IDS)[:2])


def test_adaptive_owns_rows_for_the_first_ids_of_each_field():
    table = AdaptiveTable(SIZES, 50, ratio=0.5, frequent=0.3)
    heads = [2, 4, 1]  # 0.3 of 6, 11 and 3, rounded up
    own = table.own.weight.split(heads)
    out, tail, start = table(IDS), 0, 0
    for f, n in enumerate(SIZES):
        for local in range(n):
            if local < heads[f]:
                expected = own[f][local]
            else:
                expected, tail = table.shared.weight[tail % len(table.shared.weight)], tail + 1
            assert torch.equal(out[start + local], expected)
        start += n
    assert table.own.num_embeddings + table.shared.num_embeddings < 10  # the index costs a little of 10 rows


def test_adaptive_with_only_frequent_ids_is_dense():
    table = AdaptiveTable(SIZES, 4, ratio=1, frequent=1)
    assert torch.equal(table(IDS), table.own.weight)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (QuotientRemainderTable, {"divisor": 0}, "divisor is 0"),
        (RobeTable, {"chunks": 5}, "chunks is 5; it must be 1 to dim, 4"),
        (DeepHashTable, {"width": 0}, "width is 0"),
        (AdaptiveTable, {"frequent": 1.5}, "share is 1.5"),
    ],
)
def test_bad_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(SIZES, 4, **options)
