"""The contrastive task on items: losses in closed form, what is hidden, where items come from, and what it changes."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch.nn import functional as F

from workingpapers.methods.recommenders.schema import Schema
from workingpapers.methods.recommenders.sequences import Log
from workingpapers.methods.recommenders.ssl_items import (
    FeatureMasker,
    HistoryTower,
    ItemTower,
    TwoTowerRecommender,
    TwoTowerSSL,
    feature_mutual_info,
    in_batch_info_nce,
)

KINDS = {"words": "multi", "year": "categorical", "genres": "multi", "price": "numerical"}


def catalogue(n=40):
    rng = np.random.default_rng(0)
    group = np.arange(n) % 4
    return pd.DataFrame(
        {
            "year": 1990 + rng.integers(5, size=n),
            "genres": [f"g{g}|g{g + 1}" for g in group],
            "words": [f"w{g}|w{w}" for g, w in zip(group, rng.integers(4, 9, size=n), strict=True)],
            "price": rng.normal(size=n),
        },
        index=[f"i{i}" for i in range(n)],
    )


def tower(dim=8):
    torch.manual_seed(0)
    table = catalogue()
    schema = Schema.fit([table], kinds=KINDS, min_count=1)
    return ItemTower(schema, dim, (16,)), schema.encode(table)


def two_towers(**options):
    items, rows = tower()
    masker = FeatureMasker("rfm", 4, seed=0)
    counts = torch.arange(40)
    return TwoTowerSSL(HistoryTower(40, 8, (16,)), items, rows, counts, masker, **options)


def test_the_loss_is_a_cross_entropy_of_cosines():
    torch.manual_seed(0)
    a, b = torch.randn(6, 4), torch.randn(6, 4)
    logits = torch.stack([F.cosine_similarity(row[None], b) for row in a]) / 0.3
    torch.testing.assert_close(in_batch_info_nce(a, b, 0.3), F.cross_entropy(logits, torch.arange(6)))
    log_q = torch.log_softmax(torch.randn(6), 0)
    torch.testing.assert_close(
        in_batch_info_nce(a, b, 0.3, log_q=log_q), F.cross_entropy(logits - log_q, torch.arange(6))
    )


def test_another_row_of_the_same_item_is_no_negative():
    torch.manual_seed(0)
    a, b, ids = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([5, 2, 5, 7])
    similar = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.5
    allowed = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    wanted = [torch.logsumexp(similar[i, kept], 0) - similar[i, i] for i, kept in enumerate(allowed)]
    torch.testing.assert_close(in_batch_info_nce(a, b, 0.5, ids=ids), torch.stack(wanted).mean())


def test_equal_views_are_a_regulariser_that_spreads_items_out():
    torch.manual_seed(0)
    z, t = torch.randn(5, 3), 0.4
    s = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / t).double()
    others = torch.exp(s).sum(dim=1) - torch.exp(s.diagonal())
    wanted = -torch.log(math.exp(1 / t) / (math.exp(1 / t) + others)).mean()
    torch.testing.assert_close(in_batch_info_nce(z, z, t).double(), wanted, atol=1e-5, rtol=1e-5)


def test_views_that_hide_everything_say_nothing():
    items, rows = tower()
    z = items(rows, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(z, z[:1].expand_as(z))
    # All alike: each of 40 is as likely as the others.
    assert in_batch_info_nce(z, z, 0.1).item() == pytest.approx(math.log(40), abs=1e-4)


def test_hidden_features_have_no_influence_and_shown_ones_do():
    items, rows = tower()
    assert items.embedding.names == ["year", "genres", "words", "price"]
    hidden = torch.tensor([False, True, True, True])
    z = items(rows, hidden)
    same_year = rows.ids[:, 0] == rows.ids[0, 0]
    torch.testing.assert_close(z[same_year], z[:1].expand(int(same_year.sum()), -1))
    assert not torch.isclose(z[~same_year], z[0]).all(dim=1).any()
    torch.testing.assert_close(items(rows, torch.zeros(4, dtype=torch.bool)), items(rows))


@given(k=st.integers(2, 9), seed=st.integers(0, 1000), mode=st.sampled_from(["cfm", "rfm"]))
@settings(max_examples=50, deadline=None)
def test_views_are_complementary_and_of_the_right_size(k, seed, mode):
    information = np.random.default_rng(seed).random((k, k))
    masker = FeatureMasker(mode, k, information + information.T, seed=seed)
    first, second = masker.sample()
    assert torch.equal(first, ~second)
    assert int(first.sum()) == (min(k // 2 + 1, k - 1) if mode == "cfm" else k // 2)


def test_a_feature_is_hidden_with_those_that_tell_most_about_it():
    information = np.array(
        [
            [9.0, 0.8, 0.1, 0.2, 0.7],
            [0.8, 0.1, 0.3, 0.2, 0.9],  # its own information is small and must not matter
            [0.1, 0.3, 9.0, 0.6, 0.2],
            [0.2, 0.2, 0.6, 9.0, 0.5],
            [0.7, 0.9, 0.2, 0.5, 9.0],
        ]
    )
    masker = FeatureMasker("cfm", 5, information, seed=0)
    drawn = {tuple(masker.sample()[0].nonzero().flatten().tolist()) for _ in range(100)}
    assert drawn == {(0, 1, 4), (1, 2, 3), (2, 3, 4)}  # of seeds 0, 1 and 4; of 2; of 3


def test_random_masks_hide_every_feature_equally_often():
    masker = FeatureMasker("rfm", 4, seed=0)
    share = torch.stack([masker.sample()[0] for _ in range(800)]).float().mean(dim=0)
    assert (share - 0.5).abs().max() < 0.07  # four deviations of 800 draws


def test_no_masks_are_no_views():
    assert not any(mask.any() for mask in FeatureMasker("none", 3).sample())


def test_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    a = rng.integers(3, size=200)
    b, c = (a + rng.integers(2, size=200)) % 3, np.zeros(200, int)
    found = feature_mutual_info([a, b, c])
    for i, x in enumerate((a, b, c)):
        for j, y in enumerate((a, b, c)):
            assert found[i, j] == pytest.approx(mutual_info_score(x, y), abs=1e-12)
    normalised = feature_mutual_info([a, b, c], normalized=True)
    np.testing.assert_allclose(normalised[0, 0], 1)
    assert (normalised[2] == 0).all()


def test_sets_of_values_count_whole_and_in_any_order():
    a = np.array([0, 0, 1, 1])
    sets = np.array([[1, 2, 0], [2, 1, 0], [2, 3, 0], [3, 2, 0]])
    assert feature_mutual_info([a, sets])[0, 1] == pytest.approx(math.log(2))


def test_without_weight_the_gradients_are_those_of_the_main_loss_bit_by_bit():
    ids, labels = torch.tensor([[1, 2], [3, 0], [4, 9]]), torch.tensor([[5], [6], [39]])
    plain, weighted = two_towers(alpha=0.0), two_towers(alpha=0.5)
    plain.loss(ids, labels).backward()
    weighted.main_loss(ids, labels[:, 0] - 1).backward()
    for a, b in zip(plain.parameters(), weighted.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    assert weighted.loss(ids, labels) > plain.loss(ids, labels)


def test_the_main_loss_is_corrected_for_popularity():
    model = two_towers()
    ids, targets = torch.tensor([[1, 2], [3, 0], [4, 9]]), torch.tensor([4, 5, 38])
    q, x = model.query_tower(ids), model.item_tower(model.rows[targets])
    logits = F.normalize(q, dim=1) @ F.normalize(x, dim=1).T / 0.07 - torch.log(torch.tensor([4, 5, 38]) / 780)
    torch.testing.assert_close(model.main_loss(ids, targets), F.cross_entropy(logits, torch.arange(3)))


def test_items_are_drawn_evenly_or_as_in_the_log():
    torch.manual_seed(0)
    even = torch.bincount(two_towers().draw(40_000), minlength=40) / 1000
    assert (even - 1).abs().max() < 0.15  # a deviation is 3 %
    logged = torch.bincount(two_towers(items="log").draw(78_000), minlength=40) / 100
    assert logged[0] == 0  # never taken
    torch.testing.assert_close(logged, torch.arange(40.0), atol=4, rtol=0)  # deviations are below 0.7


def test_values_are_dropped_at_their_rate_and_nothing_else():
    model = two_towers(value_dropout=0.5)
    torch.manual_seed(0)
    thin = model._thinned(model.rows)
    assert torch.equal(thin.ids, model.rows.ids)
    for name, x in model.rows.lists.items():
        real = x != 0
        assert ((thin.lists[name] == x) | (thin.lists[name] == 0)).all()
        assert 0.3 < (thin.lists[name][real] != 0).float().mean() < 0.7  # four deviations of 80 values


def grouped(users=60, length=8):
    """Return a log whose users take items of one genre."""
    rng = np.random.default_rng(1)
    histories = [4 * rng.permutation(10)[:length] + user % 4 for user in range(users)]
    table = catalogue()
    return Log(table.index.to_numpy(object), np.arange(users).astype(object), histories, table)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"masking": "cfm"}, {"masking": "rfm", "ssl_items": "log"}])
def test_towers_learn_tastes(options):
    model = TwoTowerRecommender(
        kinds=KINDS, dim=16, learning_rate=0.01, max_epochs=8, batch_size=64, random_state=0, **options
    ).fit(grouped())
    best = model.score([np.array([g, g + 4]) for g in range(4)]).topk(5).indices
    # Items of a genre have equal remainders; by chance a quarter would.
    assert (best % 4 == torch.arange(4)[:, None]).float().mean() > 0.9


def test_encodings_have_length_one_and_scores_are_their_products():
    model = two_towers()
    items, ids = model.encode_items(), torch.tensor([[1, 2], [3, 0]])
    torch.testing.assert_close(items.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(model.scores(ids), F.cosine_similarity(model.query_tower(ids)[:, None], items, dim=2))
    # The mean of a history does not count its padding.
    torch.testing.assert_close(model.scores(ids)[1:], model.scores(torch.tensor([[3]])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: in_batch_info_nce(torch.ones(2, 2), torch.ones(2, 2), 0.0), "temperature is 0.0"),
        (lambda: FeatureMasker("all", 4), "mode is 'all'; allowed: 'cfm', 'rfm', 'none'"),
        (lambda: FeatureMasker("rfm", 1), "there are 1 features"),
        (lambda: FeatureMasker("cfm", 3, np.ones((2, 2))), r"finite and \(3, 3\)"),
        (lambda: two_towers(alpha=-1.0), "alpha is -1.0"),
        (lambda: two_towers(value_dropout=1.0), "value_dropout 1.0"),
        (lambda: two_towers(items="shop"), "items is 'shop'; allowed: 'catalogue', 'log'"),
        (
            lambda: TwoTowerRecommender().fit(Log(*[np.arange(3).astype(object)] * 2, [np.arange(3)] * 3)),
            "needs a log with features",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
