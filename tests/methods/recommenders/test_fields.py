"""The field embedding against a loop over rows and fields."""

import pandas as pd
import pytest
import torch
from clicks import KINDS, impressions

from workingpapers.methods.recommenders.baselines import MLP
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.tables.common import FullTable


@pytest.fixture
def encoded():
    table, _ = impressions(50)
    table["history"] = [["1", "2"]] * 49 + [[]]
    schema = Schema.fit([table], kinds=KINDS | {"history": "sequence of item"}, min_count=1, length=4)
    return schema, schema.encode(table)


def test_every_field_by_its_definition(encoded):
    schema, rows = encoded
    torch.manual_seed(0)
    embedding = FieldEmbedding(schema, 3)
    out = embedding(rows)
    assert embedding.names == ["user", "item", "genres", "number"]
    assert out.shape == (50, 4, 3)
    weight, offsets = embedding.table.table.weight, embedding.table.offsets
    for i in range(50):
        for column in (0, 1):
            assert torch.equal(out[i, column], weight[offsets[column] + rows.ids[i, column]])
        genres = [weight[offsets[2] + v] for v in rows.lists["genres"][i] if v != 0]
        torch.testing.assert_close(out[i, 2], torch.stack(genres).mean(0))
        torch.testing.assert_close(out[i, 3], rows.numbers[i, 0] * embedding.directions[0])


def test_a_sequence_shares_the_vectors_of_its_field(encoded):
    schema, rows = encoded
    embedding = FieldEmbedding(schema, 3)
    vectors, real = embedding.lists(rows, "history")
    assert vectors.shape == (50, 4, 3)
    assert real.sum(1).tolist() == [2] * 49 + [0]
    assert vectors[~real].eq(0).all()
    item = 3 + schema.field("item").values.index("2")
    assert torch.equal(vectors[0, -1], embedding.table.table.weight[embedding.table.offsets[1] + item])


def test_the_ids_of_rows_are_those_that_the_table_is_asked_for(encoded):
    schema, rows = encoded
    embedding = FieldEmbedding(schema, 3)
    expected = [(schema.field(f).size, rows.ids[:, i].tolist()) for i, f in enumerate(("user", "item"))]
    users, items = expected[0][0], expected[1][0]
    wanted = expected[0][1] + [users + i for i in expected[1][1]]
    wanted += [users + items + i for i in rows.lists["genres"].flatten().tolist() if i]
    wanted += [users + i for i in rows.lists["history"].flatten().tolist() if i]
    assert sorted(embedding.global_ids(rows).tolist()) == sorted(wanted)


def test_a_row_without_values_is_zero():
    table = pd.DataFrame({"tags": ["a|b", "a", None], "c": ["x", "x", "y"]})
    schema = Schema.fit([table], kinds={"tags": "multi"}, min_count=1)
    embedding = FieldEmbedding(schema, 2)
    out = embedding(schema.encode(table))
    a = 3 + schema.field("tags").values.index("a")
    assert torch.equal(out[1, 1], embedding.table.table.weight[a])  # one value: itself
    assert out[2, 1].eq(0).all()  # and finite, for it isn't divided by zero


def test_categories_alone_leave_no_direction_to_train():
    schema = Schema.fit([pd.DataFrame({"a": ["x", "y"], "b": ["u", "u"]})], min_count=1)
    embedding = FieldEmbedding(schema, 3)
    embedding(schema.encode(pd.DataFrame({"a": ["x"], "b": ["u"]}))).sum().backward()
    assert {name for name, p in embedding.named_parameters() if p.requires_grad} == {"table.table.weight"}
    assert embedding.table.table.weight.grad.abs().sum() == 6  # two fields of three numbers
    assert embedding.state_dict()["directions"].shape == (0, 3)  # as saved models hold it


def test_any_table_can_be_given(encoded):
    schema, rows = encoded
    made = []
    FieldEmbedding(schema, 3, table=lambda sizes, dim: made.append(FullTable(sizes, dim)) or made[0])(rows)
    assert made[0].sizes == tuple(schema.field(name).size for name in ("user", "item", "genres"))
    with pytest.raises(ValueError, match="Unknown table 'ful'"):
        FieldEmbedding(schema, 3, table="ful")


def test_a_first_order_term_adds_a_weight_for_every_value(encoded):
    schema, rows = encoded
    model = ClickModel(FieldEmbedding(schema, 3), MLP(4, 3, (5,)), linear=True)
    plain = model(rows) - model.first_order(rows).sum(dim=(1, 2))
    torch.testing.assert_close(plain, model.body(model.embedding(rows)) + model.bias)


def test_a_schema_with_nothing_to_embed_is_refused():
    schema = Schema.fit([pd.DataFrame({"h": [["a"], ["b"]]})], kinds={"h": "sequence"})
    with pytest.raises(ValueError, match="no categorical, multi or numerical field"):
        FieldEmbedding(schema, 2)
