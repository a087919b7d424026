"""DIN and its parts against their definitions and limits."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from clicks import impressions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders.din import DIN, Dice, DINClassifier, LocalActivationUnit, batch_aware_l2
from workingpapers.methods.recommenders.fields import FieldEmbedding
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Schema

KINDS = {"history": "sequence of item"}
CHEAP = {"hidden": (16,), "attention_hidden": (16,), "dim": 8, "kinds": KINDS, "random_state": 0}
PATIENT = {"learning_rate": 0.01, "batch_size": 128, "max_epochs": 15, "patience": 15}


# Without held-out rows: on data this easy their AUC is 1 after an epoch, which would end the training.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no column is a history")
@parametrize_with_checks(
    [DINClassifier(**CHEAP | {"kinds": None}, max_epochs=20, learning_rate=0.02, batch_size=32, validation=0)]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# Dice


def test_dice_by_its_definition():
    torch.manual_seed(0)
    dice, s = Dice(3).double(), torch.randn(20, 3, dtype=torch.float64) * 2 + 1
    nn.init.normal_(dice.alpha)

    def expected(mean, variance):
        gate = 1 / (1 + torch.exp(-(s - mean) / (variance + 1e-8).sqrt()))
        return gate * s + (1 - gate) * dice.alpha * s

    torch.testing.assert_close(dice(s), expected(s.mean(0), s.var(0, unbiased=False)))
    torch.testing.assert_close(dice.mean, 0.1 * s.mean(0))
    dice.eval()
    torch.testing.assert_close(dice(s), expected(dice.mean, dice.variance))


@pytest.mark.parametrize("training", [True, False])
def test_dice_of_alpha_one_is_the_identity(training):
    dice, s = Dice(3).double().train(training), torch.randn(20, 3, dtype=torch.float64)
    nn.init.ones_(dice.alpha)
    torch.testing.assert_close(dice(s), s)


@given(st.floats(0.1, 100))
def test_dice_follows_the_scale_of_the_data(factor):
    torch.manual_seed(0)
    dice, s = Dice(3).double(), torch.randn(20, 3, dtype=torch.float64)
    nn.init.normal_(dice.alpha)
    # eps = 1e-8 beside a variance of 0.01 or more
    torch.testing.assert_close(dice(factor * s), factor * dice(s), rtol=1e-5, atol=1e-5)


def test_dice_without_variance_is_prelu():
    dice, peer = Dice(3).eval(), nn.PReLU(3)
    nn.init.zeros_(dice.variance)
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.1, -0.5, 2.0]))
        peer.weight.copy_(dice.alpha)
    s = torch.randn(200, 3)
    s = s + s.sign() * 0.01  # the gate is sigmoid(1e4 s)
    torch.testing.assert_close(dice(s), peer(s))


def test_dice_of_one_row_or_none():
    dice = Dice(3)
    assert dice(torch.ones(1, 3)).isfinite().all()
    assert dice(torch.ones(0, 3)).shape == (0, 3)
    assert dice.mean.eq(0).all()


def test_gradient_of_dice():
    torch.manual_seed(0)
    dice, s = Dice(2).double(), torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    nn.init.normal_(dice.alpha)
    assert torch.autograd.gradcheck(lambda s, alpha: dice(s), (s, dice.alpha))


# The local activation unit


def histories(seed=0, rows=4, steps=5, dim=3):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    keys = torch.randn(rows, steps, dim, generator=generator, dtype=torch.float64)
    real = torch.arange(steps) >= steps - torch.randint(steps + 1, (rows, 1), generator=generator)
    real[0], real[-1] = True, False  # a full history and an empty one
    return query, keys * real[..., None], real


def unit(**options):
    torch.manual_seed(0)
    return LocalActivationUnit(3, (6, 4), **options).double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_weights_by_their_definition(training, softmax, seed):
    scorer = unit(softmax=softmax).train(training)
    query, keys, real = histories(seed)
    pairs = [(b, t) for b in range(4) for t in range(5) if real[b, t]]
    joined = torch.stack(
        [torch.cat([query[b], keys[b, t], query[b] - keys[b, t], query[b] * keys[b, t]]) for b, t in pairs]
    )
    scores = nn.Sequential(scorer.first, scorer.rest)(joined)[:, 0]  # Dice sees the real steps and no others
    expected = torch.zeros_like(real, dtype=torch.float64)
    for (b, t), score in zip(pairs, scores, strict=True):
        expected[b, t] = (score / 3**0.5).exp() if softmax else score
    if softmax:
        expected = expected / expected.sum(1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(scorer(query, keys, real), expected)


@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_gradients_of_the_unit(activation):
    scorer = unit(activation=activation)
    query, keys, real = histories()
    inputs = query.requires_grad_(), keys.requires_grad_(), *scorer.parameters()
    assert torch.autograd.gradcheck(lambda q, k, *w: scorer(q, k, real), inputs)


def constant(scorer, value):
    nn.init.zeros_(scorer.rest[-1].weight)
    nn.init.constant_(scorer.rest[-1].bias, value)
    return scorer


def test_constant_scores_pool_evenly():
    query, keys, real = histories()
    assert torch.equal(constant(unit(), 1.0)(query, keys, real), real.double())
    shares = constant(unit(softmax=True), 2.0)(query, keys, real)
    torch.testing.assert_close(shares, real / real.sum(1, keepdim=True).clamp(min=1).double())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("softmax", [True, False])
def test_the_order_of_a_history_and_its_padding_do_not_matter(training, softmax):
    scorer = unit(softmax=softmax).train(training)
    query, keys, real = histories()
    weights = scorer(query, keys, real)
    order = torch.randperm(5)
    torch.testing.assert_close(scorer(query, keys[:, order], real[:, order]), weights[:, order])
    longer = torch.cat([torch.zeros(4, 2, 3, dtype=torch.float64), keys], dim=1)
    padded = scorer(query, longer, torch.cat([torch.zeros(4, 2, dtype=torch.bool), real], dim=1))
    torch.testing.assert_close(padded[:, 2:], weights)
    assert padded[:, :2].eq(0).all()


@pytest.mark.parametrize("softmax", [True, False])
def test_histories_that_are_all_empty(softmax):
    scorer = unit(softmax=softmax)
    query, keys, _ = histories()
    weights = scorer(query, keys * 0, torch.zeros(4, 5, dtype=torch.bool))
    assert weights.eq(0).all()
    weights.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in scorer.parameters())


# Batch-aware regularisation


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ids=st.integers(1, 12), size=st.integers(1, 5))
def test_an_epoch_of_penalties_is_the_squared_norm_where_no_batch_repeats_an_id(seed, ids, size):
    torch.manual_seed(seed)
    weight = torch.randn(ids, 3, dtype=torch.float64)
    batches = [torch.randperm(ids)[:size] for _ in range(6)]
    counts = torch.bincount(torch.cat(batches), minlength=ids)
    total = sum(batch_aware_l2(weight.__getitem__, batch, counts) for batch in batches)
    torch.testing.assert_close(total, weight[counts > 0].square().sum())


def test_an_id_counts_once_in_a_batch_and_absent_ones_get_no_gradient():
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([1, 4, 2, 1, 3])
    batch_aware_l2(weight.__getitem__, torch.tensor([1, 2, 1, 1]), counts).backward()
    expected = torch.zeros_like(weight)
    expected[1], expected[2] = 2 * weight[1] / 4, 2 * weight[2] / 2
    torch.testing.assert_close(weight.grad, expected.detach())


# The model


def visits(n=2000, seed=0):
    """Return a table and labels: an item is mostly clicked if the history holds one of its kind, of 8."""
    rng = np.random.default_rng(seed)
    item = rng.integers(16, size=n)
    past = [rng.integers(16, size=k).tolist() for k in rng.integers(0, 9, size=n)]
    met = np.array([any((i - j) % 8 == 0 for j in history) for i, history in zip(item, past, strict=True)])
    table = pd.DataFrame({"item": item, "history": past, "hour": rng.integers(24, size=n)})
    more = table.assign(kind=item % 8, kinds=[[i % 8 for i in history] for history in past])
    return more, (rng.random(n) < np.where(met, 0.9, 0.1)).astype(int)


JOINT = KINDS | {"kinds": "sequence of kind"}
PLAIN = ["item", "history", "hour"]


def encoded(kinds=KINDS):
    table, _ = visits(60)
    schema = Schema.fit([table if kinds is JOINT else table[PLAIN]], kinds=kinds, min_count=1, length=6)
    return schema, schema.encode(table)


def test_the_model_by_its_definition():
    schema, rows = encoded()
    torch.manual_seed(0)
    embedding = FieldEmbedding(schema, 4)
    model = DIN(embedding, (8,), attention_hidden=(6,)).eval()
    weight = embedding.table.table.weight  # the candidate's field comes first
    pooled = []
    for i in range(60):
        candidate, past = weight[rows.ids[i, 0]], rows.lists["history"][i]
        terms = [candidate * 0]
        for k in (weight[j] for j in past.tolist() if j):
            joined = torch.cat([candidate, k, candidate - k, candidate * k])[None]
            terms.append(model.units[0].rest(model.units[0].first(joined))[0] * k)
        pooled.append(sum(terms))
    expected = model.layers(torch.cat([embedding(rows).flatten(1), torch.stack(pooled)], dim=1)).squeeze(1)
    torch.testing.assert_close(model(rows), expected)


def test_scores_of_one_are_the_model_without_attention():
    schema, rows = encoded()
    torch.manual_seed(0)
    model = DIN(FieldEmbedding(schema, 4), (8,)).eval()
    plain = DIN(model.embedding, (8,), pooling="sum").eval()
    plain.layers = model.layers
    constant(model.units[0], 1.0)
    torch.testing.assert_close(model(rows), plain(rows))


def test_joint_histories_are_scored_by_all_their_columns():
    schema, rows = encoded(JOINT)
    torch.manual_seed(0)
    model = DIN(FieldEmbedding(schema, 4), (8,), joint=True).eval()
    assert len(model.units) == 1
    e, (items, real) = model.embedding(rows), model.embedding.lists(rows, "history")
    kinds, _ = model.embedding.lists(rows, "kinds")
    query = e[:, [model.embedding.names.index("item"), model.embedding.names.index("kind")]].flatten(1)
    expected = model.units[0](query, torch.cat([items, kinds], dim=2), real)
    found = model.weights(rows)
    assert found["history"] is found["kinds"]
    torch.testing.assert_close(found["history"], expected)
    assert len(DIN(FieldEmbedding(schema, 4)).units) == 2
    row = int(real.any(dim=1).nonzero()[0])
    rows.lists["kinds"][row] = 0
    with pytest.raises(ValueError, match=rf"'history' and 'kinds' have {real[row].sum()} and 0 .*in row {row} "):
        model(rows)


def test_regularisation_by_its_definition():
    schema, rows = encoded()
    torch.manual_seed(0)
    model = DIN(FieldEmbedding(schema, 4), (8,), regularisation=0.1)
    model(rows[:20])
    with pytest.raises(ValueError, match="call count"):
        model.penalty()
    model.count(rows)
    ids = model.embedding.global_ids(rows)
    assert torch.equal(model.counts, torch.bincount(ids, minlength=model.embedding.table.num_ids).float())
    expected = sum(
        model.embedding.table.table.weight[j].square().sum() / (ids == j).sum()
        for j in set(model.embedding.global_ids(rows[:20]).tolist())
    )
    torch.testing.assert_close(model.penalty(), 0.1 * expected)
    assert DIN(FieldEmbedding(schema, 4)).penalty() == 0


def test_what_a_step_looks_up_is_in_the_penalty_of_that_step(data):
    table, y = data[1][0][PLAIN], data[1][1]
    model = DINClassifier(**CHEAP, table="dpq", regularisation=0.1, max_epochs=1).fit(table, y)
    # Lookups whose penalty is still to come would hold their gradients, which cannot be copied.
    np.testing.assert_array_equal(copy.deepcopy(model).predict_proba(table), model.predict_proba(table))


@pytest.fixture(scope="module")
def data():
    return visits(4000), visits(1000, seed=1)


@pytest.mark.parametrize("options", [{"activation": "prelu"}, {"kinds": JOINT, "joint": True}])
def test_learns_comes_back_from_a_folder_and_exports(options, data, tmp_path):
    (table, y), (held, held_y) = data
    if "joint" not in options:
        table = table[PLAIN]
    model = DINClassifier(**CHEAP | PATIENT | options).fit(table, y)
    scores = model.predict_proba(held)[:, 1]
    assert auc(held_y, scores) > 0.85
    model.save(tmp_path)
    again = DINClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(held)[:, 1], scores)
    pd.testing.assert_frame_equal(again.explain(held[:20]), model.explain(held[:20]))
    program, rows = model.export(held[:5]).module(), model.schema_.encode(held[:9])
    found = program(rows.ids, rows.numbers, *rows.lists.values()).detach().numpy()
    np.testing.assert_allclose(found, scores[:9], atol=1e-6)  # an export may fuse operations


def test_attention_beats_even_pooling_and_explains_itself(data):
    (table, y), (held, held_y) = data
    even, model = (DINClassifier(**CHEAP | PATIENT, pooling=name).fit(table[PLAIN], y) for name in ("sum", "attention"))
    assert auc(held_y, model.decision_function(held)) > auc(held_y, even.decision_function(held)) + 0.05
    assert even.explain(held)["weight"].eq(1).all()
    told = model.explain(held)
    alike = (held["item"].to_numpy()[told["row"]] - told["value"].astype(int)) % 8 == 0
    found = auc(alike, told["weight"])
    assert max(found, 1 - found) > 0.95  # the network on top may want them negative


def test_explanations_stand_beside_the_values(data):
    (table, y), _ = data
    model = DINClassifier(**CHEAP, max_epochs=1).fit(table[PLAIN], y)
    long = list(range(30)) * 2
    odd = pd.DataFrame({"item": [1, 2, 3], "history": [long, [], [7, 12345]], "hour": [1, 2, 3]})
    told = model.explain(odd)
    assert told["row"].tolist() == [0] * 50 + [2] * 2
    assert told["position"].tolist() == [*range(10, 60), 0, 1]  # the latest 50 are kept
    assert told["value"].tolist() == [*long[10:], 7, 12345]
    # Alone in a history, a value has the same weight for the same candidate.
    one = model.explain(pd.DataFrame({"item": [3], "history": ["7"], "hour": [9]}))
    assert one["weight"][0] == pytest.approx(told["weight"][50], abs=1e-6)
    assert model.explain(odd[1:2]).empty


def test_regularised_vectors_are_smaller(data):
    (table, y), _ = data
    norms = []
    for strength in (0.0, 1.0):
        model = DINClassifier(**CHEAP | PATIENT | {"max_epochs": 4}, regularisation=strength, validation=0)
        norms.append(model.fit(table[PLAIN], y).model_.embedding.table.table.weight.norm().item())
    assert norms[1] < 0.8 * norms[0]


def test_without_a_history_it_says_so():
    table, y = impressions(100)
    with pytest.warns(UserRemark, match="no column is a history"):
        model = DINClassifier(**CHEAP | {"kinds": None}, max_epochs=1).fit(table, y)
    assert model.explain(table).empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "Unknown pooling 'mean'"),
        ({"activation": "dise"}, "Unknown activation 'dise'. Did you mean 'dice'"),
        ({"regularisation": -1.0}, "regularisation is -1.0"),
        ({"kinds": {"history": "sequence"}}, r"sequences \['history'\] have no candidate"),
    ],
)
def test_bad_options_are_named(options, message):
    table, y = visits(100)
    with pytest.raises(ValueError, match=message):
        DINClassifier(**CHEAP | options).fit(table[["item", "history"]], y)


@pytest.mark.parametrize(("table", "he"), [("full", True), ("hash", False)])
def test_its_networks_start_by_he_et_al_on_a_full_table(table, he):
    torch.manual_seed(0)
    frame = pd.DataFrame({"item": ["a", "b"], "history": [["b"], ["a", "b"]]})
    model = DINClassifier(table=table)._build(Schema.fit([frame], kinds=KINDS, min_count=1))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 6
    assert [not layer.bias.any() for layer in layers] == [he] * 6
    for layer in layers[:2] if he else []:
        # of n normal draws the standard deviation is off by 1 / sqrt(2 n) of itself; five times that never happens
        far = 5 / (2 * layer.weight.numel()) ** 0.5
        assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(
            (2 / layer.in_features) ** 0.5, rel=far
        )
