"""Hashed tables against their definition: the hash in Python's integers, rows one by one, gradients by hand."""

import numpy as np
import pytest
import torch
from clicks import KINDS, impressions
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.baselines import DCNClassifier
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.tables import unified
from workingpapers.methods.tables.common import FullTable
from workingpapers.methods.tables.unified import HashedTable, UnifiedTable, salted_hash

INT64 = st.integers(-(2**63), 2**63 - 1)


def naive_hash(value, salt, buckets):
    """Two rounds of the splitmix64 finaliser, in integers that do not overflow."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    salted = mix((salt * golden + 0xBF58476D1CE4E5B9) % 2**64)
    return mix(mix((value + golden) % 2**64) ^ salted) % 2**63 % buckets


@given(value=INT64, salt=INT64, buckets=st.integers(1, 2**40))
def test_the_hash_is_the_same_in_every_process(value, salt, buckets):
    assert int(salted_hash(torch.tensor(value), salt, buckets)) == naive_hash(value, salt, buckets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_hash_is_the_same_on_every_device():
    ids = torch.randint(-(2**62), 2**62, (1000,))
    assert torch.equal(salted_hash(ids.cuda(), 5, 997).cpu(), salted_hash(ids, 5, 997))


@pytest.mark.parametrize("buckets", [1000, 1024])
@pytest.mark.parametrize("salt", [0, 1, 2**33])
def test_consecutive_ids_spread_evenly(buckets, salt):
    counts = np.bincount(salted_hash(torch.arange(100_000), salt, buckets).numpy(), minlength=buckets)
    statistic = ((counts - 100_000 / buckets) ** 2 / (100_000 / buckets)).sum()
    # Two-sided: a hash that is too even is no random function either. Fixed input, so this cannot flake.
    assert chi2.ppf(1e-4, buckets - 1) < statistic < chi2.ppf(1 - 1e-4, buckets - 1)


@pytest.mark.parametrize("buckets", [97, 128])
def test_two_salts_are_two_hashes(buckets):
    first, second = (salted_hash(torch.arange(100_000), salt, buckets) for salt in (0, 1))
    share = float((first == second).double().mean())
    # 4 standard deviations of a share of 100,000.
    assert abs(share - 1 / buckets) < 4 * np.sqrt(1 / buckets / 100_000)


def test_one_field_is_the_hashing_trick():
    table = UnifiedTable([100], 4, rows=10)
    ids = torch.arange(100).view(20, 5)
    expected = F.embedding(salted_hash(ids, 0, 10), table.table.weight)
    assert torch.equal(table(ids), expected)


def test_without_collisions_it_is_an_embedding_for_each_field(monkeypatch):
    sizes, order = [3, 5, 2], torch.randperm(10)
    begin = torch.tensor([0, 3, 8])
    monkeypatch.setattr(unified, "salted_hash", lambda ids, salt, _: order[begin[salt] + ids])
    table = UnifiedTable(sizes, 4, rows=10)
    own = [nn.Embedding(n, 4) for n in sizes]
    for f, embedding in enumerate(own):
        embedding.weight.data = table.table.weight[order[begin[f] : begin[f] + sizes[f]]].detach().clone()
    local = torch.stack([torch.randint(n, (6,)) for n in sizes], dim=1)
    out, expected = table(local + begin), torch.stack([e(local[:, f]) for f, e in enumerate(own)], dim=1)
    assert torch.equal(out, expected)
    pull = torch.randn_like(out)
    (out * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(table.table.weight.grad[order], torch.cat([e.weight.grad for e in own]))


def test_the_gradient_of_a_row_by_field():
    # z = sum_f <theta_f, phi_f>: every (field, value) on a row adds (dL/dz) theta_f, once for each row that holds it.
    torch.manual_seed(0)
    sizes, n = [6, 9, 4], 40
    table = UnifiedTable(sizes, 3, rows=5).double()
    theta = torch.randn(3, 3, dtype=torch.float64)
    local = torch.stack([torch.randint(size, (n,)) for size in sizes], dim=1)
    y = torch.randint(2, (n,)).double()
    z = (table(local + table.offsets) * theta).sum(dim=(1, 2))
    F.binary_cross_entropy_with_logits(z, y, reduction="sum").backward()
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for i in range(n):
        for f in range(3):
            expected[naive_hash(int(local[i, f]), f, 5)] += (z[i].sigmoid() - y[i]).detach() * theta[f]
    torch.testing.assert_close(table.table.weight.grad, expected)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), rows=st.integers(1, 40), data=st.data())
def test_chunks_by_the_definition(sizes, rows, data):
    chunks = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=len(sizes), max_size=len(sizes)))
    most = max(chunks)
    table = UnifiedTable(sizes, 8, rows=rows, chunks=chunks)
    assert sum(p.numel() for p in table.parameters()) == rows * 8 // most  # whatever the fields
    out = table(torch.arange(sum(sizes)))
    x = 0
    for f, n in enumerate(sizes):
        for v in range(n):
            places = [naive_hash(v, f * most + j, rows) for j in range(chunks[f])]
            expected = F.pad(table.table.weight[places].flatten(), (0, 8 - chunks[f] * 8 // most))
            assert torch.equal(out[x], expected)
            x += 1


def test_a_further_field_changes_nothing_for_the_others():
    torch.manual_seed(0)
    few, many = UnifiedTable([20, 30], 4, rows=16, chunks=2), UnifiedTable([20, 30, 9], 4, rows=16, chunks=2)
    many.load_state_dict(few.state_dict())
    ids = torch.arange(50)
    assert torch.equal(few(ids), many(ids))


def test_without_salt_equal_values_share_a_row():
    table = UnifiedTable([20, 20], 4, rows=64, salted=False)
    assert torch.equal(table.places(torch.arange(20)), table.places(torch.arange(20, 40)))
    salted = UnifiedTable([20, 20], 4, rows=64)
    assert not torch.equal(salted.places(torch.arange(20)), salted.places(torch.arange(20, 40)))


def test_another_seed_is_another_hash():
    ids = torch.arange(40)
    for kind in (UnifiedTable, HashedTable):
        assert not torch.equal(kind([40], 4).places(ids), kind([40], 4, hash_seed=1).places(ids))


@pytest.mark.parametrize("chunks", [1, 2])
def test_small_fields_can_have_rows_of_their_own(chunks):
    sizes = [3, 100, 5, 60]
    table = UnifiedTable(sizes, 4, ratio=0.25, chunks=chunks, collisionless=5)
    assert table.table.weight.numel() == 42 * 4  # of 168 vectors
    places = table.places(torch.arange(168))
    own = torch.cat([places[:3], places[103:108]]).flatten()
    assert len(own.unique()) == 8 * chunks
    assert own.min() == (42 - 8) * chunks
    assert max(places[3:103].max(), places[108:].max()) < own.min()


@given(sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8), ratio=st.floats(0.05, 1))
def test_hashed_tables_split_the_rows_in_proportion(sizes, ratio):
    rows = max(1, round(ratio * sum(sizes)))
    if rows < len(sizes):
        with pytest.raises(ValueError, match=f"{rows} rows are too few for {len(sizes)} fields"):
            HashedTable(sizes, 2, ratio=ratio)
        return
    table = HashedTable(sizes, 2, ratio=ratio)
    assert len(table.table.weight) == rows == int(table.buckets.sum())
    assert table.buckets.min() >= 1
    # Proportional but for rounding, for the row that every field gets, and for those that lend it.
    assert (table.buckets - torch.tensor(sizes) * rows / sum(sizes)).max() <= 1
    field = table.fields_of(torch.arange(sum(sizes)))
    places = table.places(torch.arange(sum(sizes))).squeeze(1)
    assert (places >= table.first[field]).all()
    assert (places < table.first[field] + table.buckets[field]).all()


def test_hashed_tables_by_their_definition():
    table = HashedTable([10, 30], 4, ratio=0.5)
    assert table.buckets.tolist() == [5, 15]
    out = table(torch.arange(40))
    for x in range(40):
        f, v = (0, x) if x < 10 else (1, x - 10)
        assert torch.equal(out[x], table.table.weight[5 * f + naive_hash(v, f, (5, 15)[f])])


def test_both_hold_what_they_are_allowed():
    full = FullTable([1000, 200], 16).training_bytes()
    for kind in (UnifiedTable, HashedTable):
        for ratio in (1.0, 0.5, 0.1):
            made = kind([1000, 200], 16, ratio=ratio)
            # Besides the vectors, four numbers for each field.
            assert made.serving_bytes() == ratio * full + 2 * 4 * 8


def test_a_click_model_learns_saves_and_exports_on_one(tmp_path):
    (table, y), (held, held_y) = impressions(2000), impressions(1000, seed=1)
    options = {"table": "unified", "table_options": {"ratio": 0.8, "chunks": 2, "collisionless": 12}}
    plan = {"learning_rate": 0.02, "batch_size": 256, "patience": 5, "max_epochs": 12}
    model = DCNClassifier(kinds=KINDS, random_state=0, **plan, **options).fit(table, y)
    scores = model.predict_proba(held)[:, 1]
    assert auc(held_y, scores) > 0.65
    model.save(tmp_path)
    np.testing.assert_array_equal(DCNClassifier.load(tmp_path).predict_proba(held)[:, 1], scores)
    rows = model.schema_.encode(held[:9])
    found = model.export(held[:5]).module()(rows.ids, rows.numbers, *rows.lists.values())
    np.testing.assert_allclose(found.detach().numpy(), scores[:9], atol=1e-6)  # an export may fuse operations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"rows": 0}, "0 rows are too few"),
        ({"rows": 4, "collisionless": 5}, "4 rows are too few: 5 go to fields of 5 ids or fewer"),
        ({"chunks": 3}, "chunks is 3"),
        ({"chunks": 0}, "chunks is 0"),
        ({"chunks": [1, 2, 1]}, r"chunks is \[1, 2, 1\]; it must be 1 or more, for 2 fields"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        UnifiedTable([5, 20], 8, **options)
    with pytest.raises(ValueError, match="a table needs a width of 1 or more, and fields"):
        UnifiedTable([], 8)
