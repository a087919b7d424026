"""Ordinary click models against their definitions."""

import itertools

import pytest
import torch
from clicks import impressions
from torch import nn

from workingpapers.methods.recommenders.autoint import AutoIntClassifier
from workingpapers.methods.recommenders.baselines import (
    FM,
    IPNN,
    CrossNetwork,
    DCNClassifier,
    DeepFMClassifier,
    FMClassifier,
    IPNNClassifier,
    MLPClickClassifier,
    TableMLPClassifier,
)
from workingpapers.methods.recommenders.schema import Schema


def test_fm_is_the_sum_over_pairs():
    e = torch.randn(7, 5, 3, dtype=torch.float64)
    pairs = sum((e[:, i] * e[:, j]).sum(-1) for i, j in itertools.combinations(range(5), 2))
    torch.testing.assert_close(FM()(e), pairs)


def test_ipnn_sees_every_pair_once():
    torch.manual_seed(0)
    model, e = IPNN(4, 3, hidden=(6,)), torch.randn(5, 4, 3)
    products = torch.stack([(e[:, i] * e[:, j]).sum(-1) for i, j in itertools.combinations(range(4), 2)], dim=1)
    expected = model.layers(torch.cat([e.flatten(1), products], dim=1)).squeeze(1)
    torch.testing.assert_close(model(e), expected)


def test_the_cross_network_by_its_recurrence():
    torch.manual_seed(0)
    model, e = CrossNetwork(4, 3, layers=2, hidden=(8, 6)), torch.randn(5, 4, 3)
    first = x = e.flatten(1)
    for layer in model.crosses:
        x = first * (x @ layer.weight.T + layer.bias) + x
    expected = model.out(torch.cat([x, model.deep(first).clamp(min=0)], dim=1)).squeeze(1)
    torch.testing.assert_close(model(e), expected)


def test_crosses_need_a_network_beside_them():
    with pytest.raises(ValueError, match=r"hidden is \(\)"):
        CrossNetwork(3, 4, hidden=())


def built(kind, **options):
    torch.manual_seed(0)
    table, _ = impressions(1000, users=200, items=300)
    return kind(**options)._build(Schema.fit([table[["user", "item"]]], min_count=1))


@pytest.mark.parametrize("kind", [MLPClickClassifier, DeepFMClassifier, IPNNClassifier, DCNClassifier])
def test_networks_start_by_he_et_al(kind):
    model = built(kind, hidden=(128, 64))
    layers = [layer for layer in model.body.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) >= 3
    for layer in layers:
        # Of n normal draws the standard deviation is off by 1 / sqrt(2 n) of itself; five times that never happens.
        far = 5 / (2 * layer.weight.numel()) ** 0.5
        assert float(layer.weight.detach().square().mean().sqrt()) == pytest.approx(
            (2 / layer.in_features) ** 0.5, rel=far
        )
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("scale", "kind", "options"),
    [
        *((1e-3, kind, {}) for kind in (MLPClickClassifier, DeepFMClassifier, DCNClassifier, AutoIntClassifier)),
        (0.01, FMClassifier, {}),
        (0.01, TableMLPClassifier, {}),
        (0.01, MLPClickClassifier, {"table": "hash"}),
        (0.02, MLPClickClassifier, {"table_options": {"init_scale": 0.02}}),
    ],
)
def test_vectors_start_small_where_that_is_better_and_as_asked(scale, kind, options):
    assert float(built(kind, **options).embedding.table.table.weight.detach().std()) == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize(("kind", "options"), [(MLPClickClassifier, {"table": "hash"}), (TableMLPClassifier, {})])
def test_networks_to_compare_tables_with_start_as_torch_draws_them(kind, options):
    layers = [layer for layer in built(kind, **options).body.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        assert 0 < float(layer.weight.detach().abs().max()) <= layer.in_features**-0.5
        assert layer.bias.any()
