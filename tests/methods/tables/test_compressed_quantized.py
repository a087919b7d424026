"""Rounding against its expectation, and the gradient of a step against finite differences."""

import pytest
import torch

from workingpapers.methods.tables.compressed_quantized import ALPTTable, QuantizedTable, rounded

IDS = torch.arange(20)


def test_random_rounding_is_right_on_average_and_next_to_the_number():
    torch.manual_seed(0)
    x = torch.tensor([-3.7, -0.2, 0.0, 0.5, 41.9])
    draws = torch.stack([rounded(x, 8, at_random=True) for _ in range(4000)])
    # The mean of 4,000 draws of a variance up to 1/4 has a standard deviation of 0.008.
    torch.testing.assert_close(draws.mean(0), x, atol=0.04, rtol=0)
    assert ((draws - x).abs() < 1).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_evaluation_rounds_to_the_nearest_and_clips(bits):
    table = QuantizedTable([20], 4, bits=bits, step=0.01).eval()
    with torch.no_grad():
        table.table.weight.uniform_(-1.2, 1.2)
        table.table.weight[0, 0], table.table.weight[0, 1] = 500.0, -500.0
    out = table(IDS)
    expected = (table.table.weight / 0.01).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * 0.01
    torch.testing.assert_close(out, expected)
    assert (out[1:] - table.table.weight[1:]).abs().max() <= 0.00501
    assert table.serving_bytes() == 20 * 4 * bits // 8 + 4
    assert table.training_bytes() == 20 * 4 * 4
    assert torch.equal(out, table(IDS))


def test_training_rounds_at_random_and_gradients_pass_straight_through():
    table = QuantizedTable([20], 4)
    assert not torch.equal(table(IDS), table(IDS))
    weight = torch.randn(20, 4)
    (table(IDS) * weight).sum().backward()
    assert torch.equal(table.table.weight.grad, weight)


def test_alpt_steps_learn_by_the_published_gradient():
    table = ALPTTable([3], 4, bits=8).eval()
    with torch.no_grad():
        table.table.weight.uniform_(-1, 1)
        table.table.weight[0, 0], table.table.weight[1, 1] = 5.0, -5.0  # beyond 127 steps of 0.01
    entry = table.table.weight.detach()
    code = (entry / 0.01).round().clamp(-128, 127)
    torch.testing.assert_close(table(torch.arange(3)), code * 0.01)
    weight = torch.randn(3, 4)
    (table(torch.arange(3)) * weight).sum().backward()
    clipped = entry.abs() > 1.28
    slope = torch.where(clipped, code, code - entry / 0.01) / (3 * 4 * 127) ** 0.5
    torch.testing.assert_close(table.steps.grad, (slope * weight).sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(table.table.weight.grad, torch.where(clipped, 0.0, weight))


def test_alpt_bytes_and_learning_rate():
    table = ALPTTable([20], 4)
    assert table.serving_bytes() == 20 * (4 + 4)
    (group,) = table.groups()
    assert group["params"][0] is table.steps
    assert group["lr"] == 2e-5
    with torch.no_grad():
        table.steps.fill_(-1.0)  # Adam went too far
    assert torch.isfinite(table.eval()(IDS)).all()


def test_a_whole_step_serves_numbers_too():
    table = QuantizedTable([20], 4, step=1, init_scale=9.0).eval()
    torch.testing.assert_close(table.served()(IDS), table(IDS))


@pytest.mark.parametrize("kind", [QuantizedTable, ALPTTable])
def test_bad_options_are_named(kind):
    with pytest.raises(ValueError, match="bits is 4"):
        kind([5], 4, bits=4)
    with pytest.raises(ValueError, match="step 0"):
        kind([5], 4, step=0)
