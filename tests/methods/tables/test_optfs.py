"""OptFS: gates and penalty against their formulas, then search, rewinding and retraining step by step."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from clicks import KINDS, impressions
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders.baselines import FM, MLP, MLPClickClassifier
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.training import Plan, optimizers
from workingpapers.methods.tables.common import FullTable
from workingpapers.methods.tables.optfs import SCALE, FeatureGate, temperatures


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(temperature=None, n=6, dim=3, **options):
    """A table in float64 whose logits differ."""
    table = FeatureGate([n - 2, 2], dim, **options).double()
    if temperature is not None:
        table.soften(temperature)
    table.logits.data.copy_(torch.linspace(-0.7, 0.9, n))
    return table


def small(seed=0, body=None, **options):
    """A click model on gates, its rows and labels."""
    table, y = impressions(600)
    schema = Schema.fit([table], kinds=KINDS)
    torch.manual_seed(seed)
    embedding = FieldEmbedding(schema, 4, table="optfs", table_options=options)
    model = ClickModel(embedding, MLP(4, 4, (8,)) if body is None else body)
    return model, embedding.table, schema.encode(table), torch.from_numpy(y)


def test_untrained_gates_change_nothing_at_temperature_one():
    model, gate, rows, _ = small()
    gate.soften(1.0)
    plain = FullTable(gate.sizes, 4)
    plain.table.weight.data.copy_(gate.table.weight)
    expected = model(rows)
    model.embedding.table = plain
    torch.testing.assert_close(model(rows), expected)


def test_soft_and_hard_gates_by_their_formulas():
    table = gated(7.0)
    ids = torch.tensor([[0, 5], [3, 3]])
    g, e = table.logits.detach().numpy(), table.table.weight.detach().numpy()
    expected = (sigmoid(7 * g) / sigmoid(0.5))[ids][..., None] * e[ids]
    np.testing.assert_allclose(table(ids).detach().numpy(), expected, rtol=1e-12)
    table.harden()
    assert torch.equal(table.kept, table.logits > 0)  # exactly these
    np.testing.assert_allclose(table(ids).detach().numpy(), ((g > 0) / sigmoid(0.5))[ids][..., None] * e[ids])


def test_hard_gates_are_the_limit_of_soft_ones():
    soft, hard = gated(1e6), gated()
    hard.harden()
    hard.table.load_state_dict(soft.table.state_dict())
    ids = torch.arange(6)
    torch.testing.assert_close(soft(ids), hard(ids))


def test_gradients():
    table = gated(3.0)
    ids = torch.tensor([[0, 4, 0], [2, 5, 1]])

    def out(weight, logits):
        return torch.func.functional_call(table, {"table.weight": weight, "logits": logits}, (ids,))

    assert torch.autograd.gradcheck(out, (table.table.weight, table.logits))


def test_interactions_carry_the_product_of_gates():
    table = gated(2.0)
    ids = torch.tensor([[0, 4], [3, 5], [1, 4]])
    m = torch.sigmoid(2 * table.logits) * SCALE
    e = table.table.weight
    pairs = [sum(m[i] * m[j] * (e[i] @ e[j]) for i, j in itertools.combinations(row, 2)) for row in ids.tolist()]
    torch.testing.assert_close(FM()(table(ids)), torch.stack(pairs))


def test_the_penalty_and_its_gradient():
    table = gated(5.0, strength=0.6)
    table.penalty().backward()
    s = sigmoid(5 * table.logits.detach().numpy())
    weight = 0.6 / 6  # lambda
    assert table.penalty().item() == pytest.approx(weight * s.sum())
    np.testing.assert_allclose(table.logits.grad.numpy(), weight * 5 * s * (1 - s), rtol=1e-12)
    table.harden()
    assert table.penalty() == 0


@given(epochs=st.integers(2, 30), final=st.floats(1, 1e5))
def test_the_temperature_reaches_its_end_by_equal_factors(epochs, final):
    made = temperatures(epochs, final)
    assert len(made) == epochs
    assert made[0] == 1
    assert made[-1] == pytest.approx(final)
    np.testing.assert_allclose(np.diff(np.log(made)), np.log(final) / (epochs - 1), atol=1e-12)


def test_gates_have_no_weight_decay():
    model, gate, _, _ = small(learning_rate=0.3)
    plan = Plan(learning_rate=0.01, weight_decay=0.1)

    def settings():
        return {
            id(p): (g["lr"], g["weight_decay"]) for g in optimizers(model, plan)[0].param_groups for p in g["params"]
        }

    assert id(gate.logits) not in settings()
    gate.soften(1.0)
    assert settings()[id(gate.logits)] == (0.3, 0.0)
    assert settings()[id(gate.table.weight)] == (0.01, 0.1)
    gate.harden()
    assert id(gate.logits) not in settings()


def searched(rewind_epoch):
    """A model after its search, the state to retrain from, and its states at the beginning of each epoch."""
    model, gate, rows, y = small(search_epochs=4, rewind_epoch=rewind_epoch, strength=0.05)
    states, schedule = [], []
    soften = gate.soften

    def watch(temperature):
        states.append({name: x.clone() for name, x in model.state_dict().items()})
        schedule.append(temperature)
        soften(temperature)

    gate.soften = watch
    plan = Plan(learning_rate=0.03, batch_size=100)
    start = gate.learn(model, rows, y, plan, seed=3)
    return model, gate, start, states[1:], schedule[1:], (rows, y, plan)


@pytest.mark.parametrize("epoch", [0, 2])
def test_weights_are_remembered_at_the_beginning_of_an_epoch(epoch):
    _, gate, start, states, schedule, _ = searched(epoch)
    assert schedule == temperatures(4, 1000.0)
    for name, value in states[epoch].items():
        assert torch.equal(start[name], value)  # bit for bit
    assert not torch.equal(start["embedding.table.table.weight"], gate.table.weight)
    assert gate.temperature is None
    assert torch.equal(gate.kept, gate.logits > 0)
    assert 0 < gate.keep_ratio < 1


@pytest.mark.parametrize("restart", ["rewind", "random"])
def test_retraining_starts_from_the_remembered_weights_under_the_mask(restart, monkeypatch):
    import workingpapers.methods.tables.optfs as module

    model, gate, rows, y = small(search_epochs=4, rewind_epoch=1, strength=0.05, restart=restart)
    initial = {name: x.clone() for name, x in model.state_dict().items()}
    calls, real, remembered = [], module.train, {}

    def watch(given, *args, **options):
        calls.append(({name: x.clone() for name, x in model.state_dict().items()}, gate.temperature))
        return real(given, *args, **options)

    learn = gate.learn
    monkeypatch.setattr(gate, "learn", lambda *a, **o: remembered.update(learn(*a, **o)) or remembered)
    monkeypatch.setattr(module, "train", watch)
    plan = Plan(learning_rate=0.03, batch_size=100, max_epochs=1)
    gate.search(model, rows, y, plan, valid=None, seed=0)
    module.train(model, rows, y, plan)
    (_, soft), (before, hard) = calls
    assert (soft, hard) == (1.0, None)
    kept = before.pop("embedding.table.kept")
    logits = before.pop("embedding.table.logits")
    assert torch.equal(kept, logits > 0)
    assert torch.equal(gate.kept, kept)  # retraining leaves the gates alone
    assert torch.equal(gate.logits, logits)
    for name, value in before.items():
        if restart == "rewind":
            assert torch.equal(value, remembered[name])
        elif value.numel() > 1 and value.is_floating_point():
            assert not torch.equal(value, initial[name])
            assert torch.equal(value.flatten().sort().values, initial[name].flatten().sort().values)


def test_dropped_rows_get_no_gradient_and_leave_the_served_table():
    model, gate, _, _, _, (rows, y, _) = searched(1)
    model.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(model(rows), y.float()).backward()
    assert gate.logits.grad is None
    assert gate.table.weight.grad[~gate.kept].eq(0).all()
    ids = torch.arange(gate.num_ids)
    assert torch.equal(gate.served()(ids), gate(ids))
    assert gate.serving_bytes() == 4 * 4 * int(gate.kept.sum()) + 4 * gate.num_ids + 8 * 3


def test_noise_goes_and_what_decides_stays(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"signal": rng.integers(6, size=3000), "noise": rng.integers(60, size=3000)})
    y = (rng.random(3000) < np.array([0.1, 0.9, 0.15, 0.85, 0.05, 0.8])[table["signal"]]).astype(int)
    options = {"table": "optfs", "table_options": {"search_epochs": 8, "strength": 0.3}}
    plan = {"learning_rate": 0.01, "batch_size": 256, "max_epochs": 8, "dim": 4}
    model = MLPClickClassifier(random_state=0, **plan, **options).fit(table, y)
    gate = model.model_.embedding.table
    left = gate.kept_values(model.schema_)
    assert set(left["signal"]) == set("012345")
    assert len(left["noise"]) < 6
    assert not gate.kept[gate.offsets].any()  # padding is never asked for, so nothing speaks for it
    assert model.score(table, y) > 0.83  # the best that a rule can do is 0.875
    model.save(tmp_path)
    again = MLPClickClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(table), model.predict_proba(table))
    assert again.model_.embedding.table.serving_bytes() == gate.serving_bytes()


def test_a_search_that_chooses_nothing_is_told():
    table, y = impressions(300)
    for strength, rate, kept in ((0.0, 1e-6, "every"), (50.0, 0.5, "no")):
        options = {"search_epochs": 2, "strength": strength, "learning_rate": rate, "rewind_epoch": 0}
        model = MLPClickClassifier(kinds=KINDS, table="optfs", table_options=options, max_epochs=1, random_state=0)
        with pytest.warns(UserRemark, match=f"OptFS kept {kept} value"):
            model.fit(table, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search_epochs": 1}, "got search_epochs 1"),
        ({"final_temperature": 0.5}, "final_temperature 0.5"),
        ({"rewind_epoch": 5}, "rewind_epoch is 5; it must be from 0 to 4"),
        ({"strength": -1.0}, "strength is -1.0"),
        ({"learning_rate": 0.0}, "learning_rate 0.0"),
        ({"restart": "keep"}, "restart is 'keep'; allowed: 'rewind', 'random'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FeatureGate([3], 2, **options)
