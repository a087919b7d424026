"""Ordinary click models against their definitions."""

import itertools

import pytest
import torch

from workingpapers.methods.recommenders.baselines import FM, IPNN, CrossNetwork


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
