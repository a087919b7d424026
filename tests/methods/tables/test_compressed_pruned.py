"""Pruned tables: dense until something is pruned, then what the definitions leave."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.methods.tables.compressed_pruned import AutoSrhTable, DeepLightTable, PEPTable, SparseTable

IDS = torch.arange(20)


@pytest.mark.parametrize("kind", [DeepLightTable, AutoSrhTable, PEPTable])
def test_dense_before_anything_is_pruned(kind):
    table = kind([12, 8], 4, **({"threshold_init": -150} if kind is PEPTable else {}))  # sigmoid(-150) is 0
    assert torch.equal(table(IDS), table.weight)


@given(share=st.floats(0, 1), dim=st.sampled_from([1, 5, 300]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_sparse_rows_are_the_dense_ones(share, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, dim, generator=generator) * (torch.rand(7, dim, generator=generator) < share)
    table = SparseTable([3, 4], rows)
    assert torch.equal(table(torch.arange(7)), rows)
    assert torch.equal(table(torch.tensor([[6, 0]])), rows[torch.tensor([[6, 0]])])
    count = int((rows != 0).sum())
    assert table.serving_bytes() == count * (4 + (1 if dim <= 256 else 2)) + 8 * 4


def test_deeplight_follows_its_schedule_and_reaches_its_ratio():
    torch.manual_seed(0)
    table = DeepLightTable([100], 16, ratio=0.5, pace=1.0)
    target = 1 - table.entries / 1600
    for step in range(1, 41):
        table.after_step()
        zeros = (table.weight == 0).float().mean().item()
        expected = target * (1 - 0.99 ** (step // 10 * 10))
        assert zeros == pytest.approx(expected, abs=1 / 1600)  # whole entries
    smallest = table.weight.detach()[table.weight != 0].abs().min()
    with torch.no_grad():
        table.weight[table.weight == 0] = smallest / 2  # pruned entries may grow again, and these are the smallest
    table.settle()
    assert int(table.mask.sum()) == table.entries
    assert table.serving_bytes() <= 0.5 * 100 * 16 * 4
    table.weight.data.fill_(3.0)  # but not once the search has settled
    assert int((table(torch.arange(100)) != 0).sum()) == table.entries


def test_pep_is_soft_thresholding():
    table = PEPTable([20], 4)
    with torch.no_grad():
        table.weight.normal_()
        table.thresholds.normal_()
    out = table(IDS)
    for x in range(20):
        for j in range(4):
            e, t = table.weight[x, j].item(), table.thresholds[x, j].sigmoid().item()
            expected = (abs(e) - t) * (1 if e > 0 else -1) if abs(e) > t else 0
            assert out[x, j].item() == pytest.approx(expected, abs=1e-6)
    out.square().sum().backward()
    assert torch.equal(table.thresholds.grad != 0, out != 0)
    kept = int((out != 0).sum())
    table.settle()
    assert torch.equal(table(IDS), out)  # settling changes no vector
    assert table.serving_bytes() == kept * 5 + 21 * 4
    assert table.training_bytes() == 20 * 4 * (4 + 4 + 1)  # entries, thresholds and a mask of bytes


def test_autosrh_gates_groups_of_equal_rank():
    table = AutoSrhTable([12, 6], 2, groups=3, ratio=1)
    with torch.no_grad():
        table.gates.copy_(torch.tensor([[1.0, 0.5], [0.25, 0.0], [0.1, 0.2]]))
    gated = table(torch.arange(18)) / table.weight
    groups = [0] * 4 + [1] * 4 + [2] * 4 + [0] * 2 + [1] * 2 + [2] * 2
    torch.testing.assert_close(gated, table.gates[groups])
    assert table.penalty().item() == pytest.approx(1e-5 * 2.05)
    with torch.no_grad():
        table.gates[0, 0], table.gates[1, 1] = 1.5, -0.5
    table.after_step()
    assert table.gates[0, 0] == 1
    assert table.gates[1, 1] == 0


def test_autosrh_prunes_the_smallest_of_gate_times_entry():
    torch.manual_seed(0)
    table = AutoSrhTable([12, 6], 8, groups=2, ratio=0.5)
    with torch.no_grad():
        table.gates.uniform_()
    gated = table(torch.arange(18)).detach()
    table.settle()
    limit = gated.abs().flatten().sort(descending=True).values[table.entries - 1]
    torch.testing.assert_close(table(torch.arange(18)), torch.where(gated.abs() >= limit, gated, 0.0))
    assert table.penalty() == 0
    assert table.serving_bytes() <= 0.5 * 18 * 8 * 4


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="every 0"):
        DeepLightTable([50], 4, every=0)
    with pytest.raises(ValueError, match="groups is 0"):
        AutoSrhTable([50], 4, groups=0)
