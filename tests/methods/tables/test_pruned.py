"""Pruned tables against slices of their matrix, compact ones bit for bit, cuts against counts."""

import copy

import numpy as np
import pytest
import torch
from clicks import KINDS, impressions
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.methods.recommenders.baselines import MLPClickClassifier
from workingpapers.methods.recommenders.fields import FieldEmbedding
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.tables.common import served_model
from workingpapers.methods.tables.pruned import (
    CompactTable,
    CutTable,
    PrunedTable,
    occurrences,
    redrawn,
)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), dim=st.integers(1, 6), data=st.data())
def test_masked_and_compact_tables_by_the_definition(sizes, dim, data):
    n = sum(sizes)
    kept = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    widths = data.draw(st.lists(st.integers(1, dim), min_size=len(sizes), max_size=len(sizes)))
    table = PrunedTable(sizes, dim)
    table.kept.copy_(torch.tensor(kept))
    table.widths.copy_(torch.tensor(widths))
    expected = torch.zeros(n, dim)
    numbers = 0
    for x in range(n):
        width = widths[int(table.fields_of(torch.tensor(x)))] if kept[x] else 0
        expected[x, :width] = table.table.weight[x, :width].detach()
        numbers += width
    assert torch.equal(table(torch.arange(n)), expected)
    assert table.kept_parameters() == numbers
    assert table.keep_ratio == numbers / (n * dim)
    small = table.served()
    ids = torch.arange(n).flip(0).view(1, n)
    assert torch.equal(small(ids), table(ids))  # bit for bit
    # The numbers left (one where none is), where each id's begin, and the widths.
    assert table.serving_bytes() == small.serving_bytes() == 4 * max(numbers, 1) + 4 * n + 8 * len(sizes)


def test_dropped_rows_get_no_gradient():
    table = PrunedTable([4], 3)
    table.kept[1] = False
    table.widths[0] = 2
    table(torch.arange(4)).square().sum().backward()
    gradient = table.table.weight.grad
    assert gradient[1].eq(0).all()
    assert gradient[:, 2].eq(0).all()
    assert gradient[[0, 2, 3], :2].ne(0).all()


def encoded():
    table, y = impressions(500, users=8, items=9)
    table["history"] = [["1", "2"]] * 499 + [[]]
    schema = Schema.fit([table], kinds=KINDS | {"history": "sequence of item"}, min_count=1, length=4)
    return table, y, schema


def test_occurrences_are_those_of_the_rows():
    table, _, schema = encoded()
    embedding = FieldEmbedding(schema, 4)
    counts = occurrences(embedding.table, embedding, schema.encode(table))
    users = dict(zip(schema.field("user").values, counts[3:].tolist(), strict=False))
    assert users == table["user"].value_counts().to_dict()
    genres = table["genres"].str.split("|").explode().value_counts()
    assert counts[embedding.table.offsets[2] + 3 :].tolist() == [genres[v] for v in schema.field("genres").values]
    assert counts[embedding.table.offsets].tolist() == [0, 0, 0]  # padding


def test_the_cut_keeps_what_is_frequent():
    table, y, _ = encoded()
    found = {}
    for by in ("frequency", "random"):
        options = {"table": "cut-off", "table_options": {"share": 0.4, "by": by}}
        model = MLPClickClassifier(kinds=KINDS, max_epochs=1, validation=0, random_state=0, **options)
        found[by] = model.fit(table.drop(columns="history"), y).model_.embedding
    cut = found["frequency"].table
    rows = model.schema_.encode(table)
    counts = occurrences(cut, found["frequency"], rows)
    assert cut.kept.sum() == round(0.4 * cut.num_ids) == found["random"].table.kept.sum()
    kept = cut.kept.cpu()
    assert counts[kept].min() >= counts[~kept].max()
    assert cut.serving_bytes() == found["random"].table.serving_bytes()
    assert not torch.equal(cut.kept, found["random"].table.kept)
    left = cut.kept_values(model.schema_)
    assert list(left) == ["user", "item", "genres"]
    assert [len(v) for v in left.values()] == cut.kept_rows().tolist()  # no reserved id is as frequent as a value
    assert set(left["user"]) <= set(table["user"])


def test_a_model_is_served_without_what_was_cut():
    table, y = impressions(400)
    options = {"table": "cut-off", "table_options": {"share": 0.3}}
    model = MLPClickClassifier(kinds=KINDS, max_epochs=2, random_state=0, **options).fit(table, y)
    small = copy.copy(model)
    small.model_ = served_model(model.model_)
    assert isinstance(small.model_.embedding.table, CompactTable)
    assert isinstance(model.model_.embedding.table, CutTable)
    scores = model.predict_proba(table)[:, 1]
    np.testing.assert_array_equal(small.predict_proba(table)[:, 1], scores)
    rows = model.schema_.encode(table[:9])
    found = small.export(table[:5]).module()(rows.ids, rows.numbers, *rows.lists.values())
    np.testing.assert_allclose(found.detach().numpy(), scores[:9], atol=1e-6)  # an export may fuse operations


def test_redrawn_weights_are_the_same_numbers_elsewhere():
    state = {"w": torch.randn(6, 5), "kept": torch.tensor([True, False])}
    drawn = redrawn(state)
    assert drawn["w"].shape == (6, 5)
    assert not torch.equal(drawn["w"], state["w"])
    assert torch.equal(drawn["w"].flatten().sort().values, state["w"].flatten().sort().values)
    assert torch.equal(drawn["kept"], state["kept"])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        CutTable([3], 2, share=1.5)
    with pytest.raises(ValueError, match="by is 'norm'; allowed: 'frequency', 'random'"):
        CutTable([3], 2, by="norm")
    with pytest.raises(ValueError, match="3 ids in 1 fields, but 4 vectors"):
        CompactTable([3], torch.zeros(4, 2), torch.ones(3, dtype=torch.bool), torch.ones(1))
    with pytest.raises(ValueError, match="the table's"):
        CutTable([3], 2).kept_values(encoded()[2])
