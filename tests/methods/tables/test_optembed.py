"""OptEmbed: step, masks and penalty against their definitions, the search on scores with a known best, all of it."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from clicks import KINDS, impressions
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.recommenders.baselines import MLP, IPNNClassifier, MLPClickClassifier
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.training import Plan, optimizers, predict
from workingpapers.methods.tables import optembed
from workingpapers.methods.tables.common import FullTable
from workingpapers.methods.tables.optembed import OptEmbedTable, random_widths, search_widths, step


def test_the_gradient_of_the_step():
    z = torch.tensor([0, 0.2, 0.4, 0.7, 1.1, -0.2, -0.4, -0.7, -1.1], dtype=torch.float64, requires_grad=True)
    out = step(z)
    assert out.tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0]
    out.sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([2, 1.2, 0.4, 0.4, 0, 1.2, 0.4, 0.4, 0], dtype=torch.float64))


def supernet(sizes=(4, 3), dim=5, **options):
    torch.manual_seed(0)
    table = OptEmbedTable(sizes, dim, init_scale=0.1, **options).double()
    table.learn()
    return table


def test_without_thresholds_it_is_a_full_table():
    table = supernet().eval()  # full widths
    table.thresholds.data.fill_(-1e9)
    plain = FullTable(table.sizes, 5, sparse=False).double()
    plain.load_state_dict({"table.weight": table.table.weight.detach()})
    ids, pull = torch.tensor([[0, 4], [3, 6]]), torch.randn(2, 2, 5, dtype=torch.float64)
    for one in (table, plain):
        (one(ids) * pull).sum().backward()
    assert torch.equal(table(ids), plain(ids))
    assert torch.equal(table.table.weight.grad, plain.table.weight.grad)
    assert table.thresholds.grad.eq(0).all()


def test_rows_below_their_threshold_and_the_gradients_at_it():
    table = supernet().eval()
    norms = table.table.weight.detach().abs().sum(1)
    table.thresholds.data.copy_(torch.stack([norms[:4].median() + 0.01, norms[4:].median() + 0.01]))
    ids = torch.arange(7)
    z = (norms - table.thresholds.detach()[table.fields_of(ids)]).numpy()
    assert ((z > 0).any(), (z <= 0).any()) == (True, True)
    out = table(ids)
    torch.testing.assert_close(out, table.table.weight * torch.from_numpy(z > 0)[:, None])
    pull = torch.randn(7, 5, dtype=torch.float64)
    (out * pull).sum().backward()
    # d/dE = [z > 0] pull + S'(z) sign(E) <pull, E>; d/dt = -sum over the field of S'(z) <pull, E>.
    slope = torch.from_numpy(np.select([abs(z) <= 0.4, abs(z) <= 1], [2 - 4 * abs(z), 0.4], 0.0))
    e = table.table.weight.detach()
    through = slope * (pull * e).sum(1)
    expected = torch.from_numpy(z > 0)[:, None] * pull + through[:, None] * e.sign()
    torch.testing.assert_close(table.table.weight.grad, expected)
    torch.testing.assert_close(table.thresholds.grad, -torch.stack([through[:4].sum(), through[4:].sum()]))


def test_the_penalty_is_over_fields():
    table = supernet(alpha=0.3)
    table.thresholds.data.copy_(torch.tensor([0.5, -1.0]))
    table.penalty().backward()
    assert table.penalty().item() == pytest.approx(0.3 * (np.exp(-0.5) + np.exp(1.0)))
    torch.testing.assert_close(table.thresholds.grad, -0.3 * torch.exp(-table.thresholds.detach()))


@pytest.mark.parametrize("shape", [(2000, 2), (2000,)])
def test_widths_are_drawn_for_every_row_and_field(shape):
    table = supernet(dim=4)
    ids = torch.zeros(shape, dtype=torch.long)
    if len(shape) > 1:
        ids[:, 1] = 4
    masks = table.drawn(ids)
    assert torch.equal(masks, masks.long().sort(-1, descending=True).values.bool())  # ones, then zeros
    widths = masks.sum(-1).view(2000, -1)
    for f in range(widths.shape[1]):
        shares = torch.bincount(widths[:, f], minlength=5) / 2000
        assert shares[0] == 0
        # 5 standard deviations of a share of 2,000.
        assert (shares[1:] - 0.25).abs().max() < 5 * np.sqrt(0.25 * 0.75 / 2000)
    if len(shape) > 1:
        # Independent: both fields agree as often as any two draws.
        assert abs(float((widths[:, 0] == widths[:, 1]).double().mean()) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_the_values_of_one_field_share_a_width():
    table = supernet(sizes=(6, 3))
    widths = table.drawn(torch.tensor([[0, 1, 2, 3, 7], [5, 4, 3, 2, 8]])).sum(-1)
    assert (widths[:, :4] == widths[:, :1]).all()


def test_a_width_is_a_slice_and_zeros():
    table = OptEmbedTable([4, 3], 5, widths=[2, 5])
    table.widths.copy_(torch.tensor(table.given))
    out, weight = table(torch.arange(7)), table.table.weight
    assert torch.equal(out[:4], torch.cat([weight[:4, :2], torch.zeros(4, 3)], dim=1))
    assert torch.equal(out[4:], weight[4:])


def test_the_frozen_table_is_the_masked_supernet():
    table = supernet().eval()
    table.thresholds.data.copy_(table.table.weight.abs().sum(1).median())
    ids = torch.arange(7)
    before = table(ids)
    counts = torch.tensor([1, 1, 0, 1, 1, 1, 1])
    table.fix_rows(counts)
    expected = before * (counts > 0)[:, None]
    assert torch.equal(table(ids), expected)  # ids that were never seen go too
    assert torch.equal(table.served()(ids), expected)
    table.widths.copy_(torch.tensor([2, 3]))
    assert table.kept_parameters() == 2 * int(table.kept[:4].sum()) + 3 * int(table.kept[4:].sum())
    assert torch.equal(table.served()(ids), table(ids))
    assert table.penalty() == 0


def test_thresholds_have_their_own_rate_and_no_weight_decay():
    table = supernet(threshold_learning_rate=0.2)
    groups = optimizers(table, Plan(learning_rate=0.01, weight_decay=0.1))[0].param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found == {id(table.table.weight): (0.01, 0.1), id(table.thresholds): (0.2, 0.0)}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), fields=st.integers(1, 6), dim=st.integers(1, 5))
def test_the_search_returns_the_best_of_what_it_scored(seed, fields, dim):
    target = np.random.default_rng(seed).normal(size=(fields, dim))
    asked = []

    def score(widths):
        asked.append(widths)
        return float(target[range(fields), np.array(widths) - 1].sum())

    found = search_widths(score, fields, dim, rounds=6, seed=seed)
    assert len(set(asked)) == len(asked) <= 6 * 20  # none twice
    assert all(len(widths) == fields and 1 <= min(widths) <= max(widths) <= dim for widths in asked)
    assert found.widths in asked
    assert found.score == max(map(score, asked[: len(asked)])) == score(found.widths)
    assert found.best == sorted(found.best)
    assert found == search_widths(score, fields, dim, rounds=6, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_optimum_of_a_separable_score(seed):
    best = np.random.default_rng(seed).integers(1, 9, size=5)
    found = search_widths(lambda w: -float(abs(np.array(w) - best).sum()), 5, 8, rounds=60, seed=seed)
    assert found.widths == tuple(best)  # one of 32,768, by at most 1,200 scores


@given(
    rows=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(sum),
    dim=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_random_widths_keep_to_their_budget(rows, dim, share, seed):
    least, most = sum(rows), sum(rows) * dim
    budget = int(least + share * (most - least))
    widths = random_widths(rows, dim, budget, seed=seed)
    assert all(1 <= width <= dim for width in widths)
    total = np.dot(rows, widths)
    assert total <= budget
    # No field could be made wider.
    assert all(total + n > budget for n, width in zip(rows, widths, strict=True) if n and width < dim)
    with pytest.raises(ValueError, match="more than"):
        random_widths(rows, dim, least - 1)


def model_of(**options):
    table, y = impressions(800)
    schema = Schema.fit([table], kinds=KINDS)
    torch.manual_seed(0)
    embedding = FieldEmbedding(schema, 4, table="optembed", table_options={"rounds": 3, **options})
    rows, labels = schema.encode(table), torch.from_numpy(y)
    return (
        ClickModel(embedding, MLP(4, 4, (8,))),
        embedding.table,
        (rows[:600], labels[:600]),
        (rows[600:], labels[600:]),
    )


PLAN = Plan(learning_rate=0.02, batch_size=100, max_epochs=2)


def test_rows_of_one_class_score_no_widths(monkeypatch):
    model, table, (rows, labels), valid = model_of(search_rows=1)
    held, real = [], optembed.predict
    monkeypatch.setattr(optembed, "predict", lambda model, rows: held.append(len(rows)) or real(model, rows))
    table.search(model, rows, labels, PLAN, valid=valid, seed=0)
    assert set(held) == {200}


def test_the_three_stages(monkeypatch):
    model, table, (rows, labels), valid = model_of(search_rows=150)
    initial = {name: x.clone() for name, x in model.state_dict().items()}
    starts, scored, real = [], {}, optembed.train

    def watch(*args, **options):
        starts.append(({name: x.clone() for name, x in model.state_dict().items()}, table.learning))
        return real(*args, **options)

    def search(score, fields, dim, **options):
        found = search_widths(score, fields, dim, **options)
        scored.update({found.widths: (found.score, score(found.widths))})
        return found

    monkeypatch.setattr(optembed, "train", watch)
    monkeypatch.setattr(optembed, "search_widths", search)
    table.search(model, rows, labels, PLAN, valid=valid, seed=0)
    optembed.train(model, rows, labels, PLAN, valid=valid)
    (_, first), (before, second) = starts
    assert (first, second) == (True, False)
    chosen = {"embedding.table.kept", "embedding.table.widths", "embedding.table.thresholds"}
    assert all(torch.equal(before[name], initial[name]) for name in before if name not in chosen)
    (widths, (score, again)), *more = scored.items()
    assert not more
    assert score == again
    assert tuple(table.widths.tolist()) == widths
    assert torch.equal(table.kept, before["embedding.table.kept"])
    assert table.thresholds.min() > 0
    assert not table.kept[table.offsets].any()  # padding is no value of any row
    assert 0 < table.keep_ratio < 1


@pytest.mark.parametrize("prune", ["rows", "widths"])
def test_either_direction_alone(prune):
    model, table, data, valid = model_of(prune=prune)
    table.search(model, *data, PLAN, valid=valid, seed=0)
    assert table.widths.eq(4).all() == (prune == "rows")
    assert table.kept.all() == (prune == "widths")


def test_given_widths_replace_the_search():
    model, table, data, _ = model_of(widths=[1, 2, 3])
    table.search(model, *data, PLAN, valid=None, seed=0)
    assert table.widths.tolist() == [1, 2, 3]


def test_a_candidate_is_scored_by_the_supernet_as_it_stands():
    model, table, _, (rows, labels) = model_of()
    table.table.weight.data.mul_(50)
    scores = {}
    for widths in itertools.product((1, 4), repeat=3):
        table.widths.copy_(torch.tensor(widths))
        scores[widths] = auc(labels, predict(model, rows))
    assert len(set(scores.values())) > 1
    table.widths.fill_(4)
    table._search(model, rows, labels, seed=0)
    found = auc(labels, predict(model, rows))
    assert found >= max(scores.values()) - 0.02  # 3 rounds score 60 of 64 widths at most


def test_a_click_model_learns_and_comes_back_from_a_folder(tmp_path):
    (table, y), (held, held_y) = impressions(2000), impressions(1000, seed=1)
    options = {"table": "optembed", "table_options": {"rounds": 3, "search_rows": 200}}
    plan = {"learning_rate": 0.03, "batch_size": 256, "patience": 6, "max_epochs": 12, "weight_decay": 1e-5}
    model = IPNNClassifier(kinds=KINDS, dim=8, random_state=0, **plan, **options).fit(table, y)
    scores = model.predict_proba(held)[:, 1]
    assert auc(held_y, scores) > 0.65
    model.save(tmp_path)
    again = IPNNClassifier.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(held)[:, 1], scores)
    assert again.model_.embedding.table.serving_bytes() == model.model_.embedding.table.serving_bytes()


def test_noise_is_pruned_before_what_decides():
    rng = np.random.default_rng(0)
    sizes = {"user": 100, "item": 150, "noise": 200}
    table = pd.DataFrame({name: rng.integers(size, size=3000) for name, size in sizes.items()})
    logit = 2 * rng.normal(size=100)[table["user"]] + rng.normal(size=150)[table["item"]]
    y = rng.random(3000) < 1 / (1 + np.exp(-logit))
    options = {"table": "optembed", "table_options": {"alpha": 0.01, "rounds": 2}, "weight_decay": 1e-3}
    plan = {"learning_rate": 0.01, "batch_size": 256, "max_epochs": 8, "random_state": 0}
    chosen = MLPClickClassifier(**options, **plan).fit(table, y).model_.embedding.table
    left = chosen.kept_rows().cpu() / torch.tensor(chosen.sizes)
    assert left[2] < 0.5 * left[:2].min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"threshold_learning_rate": 0.0}, "threshold_learning_rate 0.0"),
        ({"rounds": 0}, "rounds 0"),
        ({"prune": "all"}, "prune is 'all'; allowed: 'both', 'rows', 'widths'"),
        ({"widths": [1]}, r"widths is \[1\]; need one from 1 to 4 for each of 2 fields"),
        ({"widths": [1, 5]}, r"widths is \[1, 5\]"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OptEmbedTable([3, 5], 4, **options)


def test_bad_searches_are_named():
    for options in ({"rounds": 0}, {"mutations": -1}, {"mutations": 0, "crossovers": 0}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            search_widths(sum, 3, 4, **options)
    with pytest.raises(ValueError, match="rate is 0"):
        search_widths(sum, 3, 4, rate=0)
