"""The nested recommender: every cut equals the large model's first channels; recurrence and layers by definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from workingpapers.methods.recommenders.fmrlrec import (
    LRU,
    FMRLRec,
    FMRLRecRecommender,
    NestedLayerNorm,
    NestedLinear,
    scan,
)
from workingpapers.methods.recommenders.sequences import Log, padded

SIZES = (4, 8, 16)
ROWS = [np.array([3, 1, 4, 1]), np.array([2]), np.array([5, 8, 0, 7, 6, 2])]


def model(features=True, sizes=SIZES, **options):
    torch.manual_seed(0)
    given_ = torch.randn(9, 5) if features else 9
    made = FMRLRec(given_, sizes, **{"num_blocks": 2, "dropout": 0.0} | options)
    with torch.no_grad():  # imaginary parts, norms and biases away from where they start
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_cut_equals_the_first_channels_of_the_large_model(features, size):
    large, ids = model(features), padded(ROWS, 6)
    small = large.extract(size)
    assert small.sizes[-1] == size
    # Float32 through two blocks.
    torch.testing.assert_close(small(ids), large(ids)[..., :size], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small(ids), large(ids, size), atol=1e-5, rtol=1e-5)
    items = large.items()
    by_hand = torch.stack([large(padded([row], 6))[0, -1, :size] @ items[:, :size].T for row in ROWS])
    torch.testing.assert_close(small.scores(ids), by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(large.scores(ids, size), by_hand, atol=1e-5, rtol=1e-5)


def test_early_outputs_have_no_gradient_in_later_channels():
    large, ids = model(), padded(ROWS, 6)
    (large(ids)[..., :8] * torch.randn(3, 6, 8)).sum().backward()
    seen = dict(large.named_parameters())
    later = [p for name, p in seen.items() if ".blocks.2." in name]
    assert later
    assert all(p.grad is None or (p.grad == 0).all() for p in later)
    for name, parameter in seen.items():
        if name.endswith(("nu", "theta", "gamma")) or name.startswith("project"):
            assert (parameter.grad[8:] == 0).all()
            assert (parameter.grad[:8] != 0).any()
    assert all((p.grad != 0).any() for name, p in seen.items() if ".blocks.1." in name and name.endswith("weight"))


@given(steps=st.lists(st.integers(4, 7), min_size=1, max_size=4), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_nested_linear_equals_a_masked_matrix(steps, seed):
    torch.manual_seed(seed)
    sizes = np.cumsum(steps).tolist()
    layer, x = NestedLinear(sizes), torch.randn(3, sizes[-1])
    block = torch.repeat_interleave(torch.arange(len(steps)), torch.tensor(steps))
    assert (layer.dense()[block[None, :] > block[:, None]] == 0).all()
    bias = torch.cat([one.bias for one in layer.blocks])
    torch.testing.assert_close(layer(x), F.linear(x, layer.dense(), bias), atol=1e-5, rtol=1e-5)
    # Numbers of a square layer: sum of m_s (m_s - m_{s-1}), and of no others.
    wanted = sum(m * step for m, step in zip(sizes, steps, strict=True))
    assert sum(one.weight.numel() for one in layer.blocks) == wanted


def test_powers_of_two_take_two_thirds_of_a_dense_layer():
    sizes = [4 * 2**i for i in range(6)]
    wanted = sizes[0] ** 2 + sum(m**2 for m in sizes[1:]) / 2
    assert sum(one.weight.numel() for one in NestedLinear(sizes, bias=False).blocks) == wanted
    assert wanted / sizes[-1] ** 2 == pytest.approx(2 / 3, abs=1e-3)


def test_a_single_size_is_made_of_ordinary_layers():
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    linear, norm = NestedLinear([8]), NestedLayerNorm([8])
    torch.testing.assert_close(linear(x), F.linear(x, linear.blocks[0].weight, linear.blocks[0].bias))
    torch.testing.assert_close(norm(x), nn.LayerNorm(8)(x))


def test_the_norm_is_one_for_each_block():
    x = torch.randn(3, 16) * 5 + 2
    wanted = torch.cat([F.layer_norm(part, part.shape[1:]) for part in x.split([4, 4, 8], dim=1)], dim=1)
    torch.testing.assert_close(NestedLayerNorm(SIZES)(x), wanted)


@given(length=st.integers(1, 20), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_doubling_equals_the_loop(length, seed):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(2, length, 3, dtype=torch.cdouble, generator=generator)
    decay = 0.9 * torch.exp(1j * torch.rand(3, dtype=torch.double, generator=generator))
    h, wanted = torch.zeros(2, 3, dtype=torch.cdouble), []
    for k in range(length):
        h = decay * h + u[:, k]
        wanted.append(h)
    torch.testing.assert_close(scan(u, decay), torch.stack(wanted, dim=1))


def test_the_unit_equals_its_recurrence():
    torch.manual_seed(0)
    unit, x = LRU(SIZES, r_min=0.5, r_max=0.9), torch.randn(2, 7, 16)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    decay = torch.exp(-torch.exp(unit.nu) + 1j * torch.exp(unit.theta))
    biases = [torch.cat([one.bias for one in layer.blocks]) for layer in (unit.inner, unit.outer)]
    h, wanted = torch.zeros(2, 16, dtype=torch.cfloat), []
    for k in range(7):
        u = x[:, k].to(torch.cfloat) @ unit.inner.dense().T + biases[0]
        h = decay * h + torch.exp(unit.gamma) * u
        wanted.append((h @ unit.outer.dense().T + biases[1]).real)
    torch.testing.assert_close(unit(x), torch.stack(wanted, dim=1), atol=1e-5, rtol=1e-4)


def test_states_start_on_the_ring_and_normalised():
    torch.manual_seed(0)
    unit = LRU([4096], r_min=0.3, r_max=0.6)
    radius = unit.decay(4096).abs()
    assert 0.3 <= radius.min() < 0.31
    assert 0.59 < radius.max() <= 0.6001
    # Uniform on the ring: half of the area lies within this radius; 4,096 draws have a deviation of 0.8 %.
    assert (radius < np.sqrt((0.3**2 + 0.6**2) / 2)).float().mean() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(unit.gamma.exp(), (1 - radius**2).sqrt(), atol=1e-5, rtol=1e-5)
    assert all((one.weight.imag == 0).all() for one in (*unit.inner.blocks, *unit.outer.blocks))


def test_padding_and_the_future_change_no_state():
    made = model()
    together = made(padded(ROWS, 6))
    for row, history in enumerate(ROWS):
        alone = made(padded([history], 6))[0]
        torch.testing.assert_close(alone, together[row, : len(history)], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made(padded([history[:1]], 6))[0, 0], alone[0], atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_mean_over_sizes_and_labels():
    made = model()
    ids, labels = padded([row[:-1] for row in ROWS[::2]], 6), padded([row[1:] for row in ROWS[::2]], 6)
    wanted = [
        F.cross_entropy(made.extract(size).scores(padded([row[:i]], 6))[0], torch.tensor(row[i]))
        for size in SIZES
        for row in ROWS[::2]
        for i in range(1, len(row))
    ]
    torch.testing.assert_close(made.loss(ids, labels), torch.stack(wanted).mean(), atol=1e-5, rtol=1e-5)


def chain(users=200, items=20):
    """Return a log of pairs, in which item i + 3 follows item i; pairs are too short to be validated on."""
    histories = [np.array([user, user + 3]) % items for user in range(users)]
    return Log(np.arange(items).astype(object), np.arange(users).astype(object), histories)


def test_learns_a_chain_at_every_size():
    features = np.random.default_rng(0).normal(size=(20, 12))
    options = {"dim": 32, "learning_rate": 0.01, "batch_size": 20, "max_epochs": 15, "dropout": 0.0}
    found = FMRLRecRecommender(item_features=features, sizes=(8, 32), random_state=0, **options).fit(chain())
    for fitted in (found, found.cut(8)):
        best = fitted.score([np.array([i]) for i in range(20)]).argmax(dim=1)
        assert (best == (torch.arange(20) + 3) % 20).sum() >= 18  # guesses are right once in twenty
    assert found.cut(8).parameters_ < found.parameters_ / 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NestedLinear([]), "each must be 4 or more above"),
        (lambda: NestedLinear([2, 8]), "each must be 4 or more above"),
        (lambda: NestedLayerNorm([8, 8]), "each must be 4 or more above"),
        (lambda: NestedLinear(SIZES)(torch.zeros(1, 5)), "size is 5; allowed: 4, 8, 16"),
        (lambda: model().extract(5), "size is 5; allowed: 4, 8, 16"),
        (lambda: model().scores(padded(ROWS, 6), 32), "size is 32"),
        (lambda: LRU(SIZES, r_min=0.5, r_max=0.2), "r_min is 0.5"),
        (lambda: FMRLRec(torch.full((3, 2), torch.nan), SIZES), "finite"),
        (lambda: FMRLRec(3, SIZES, num_blocks=0), "num_blocks is 0"),
        (lambda: FMRLRecRecommender(sizes=()).fit(chain()), r"sizes are \(\)"),
        (lambda: FMRLRecRecommender(item_features="many").fit(chain()), r"item_features must be numbers, \(20, D\)"),
        (lambda: FMRLRecRecommender(item_features=np.ones((3, 2))).fit(chain()), r"\(20, D\); got \(3, 2\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
