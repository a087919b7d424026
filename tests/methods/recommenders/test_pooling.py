"""What follows a convolution, compiled, against the same in torch's operations and float64."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders import pooling
from workingpapers.methods.recommenders.fgcnn import FeatureGenerator
from workingpapers.methods.recommenders.pooling import pool

compiled = pytest.mark.skipif(not pooling._agrees(), reason="no compiler of C++ was found")


def maps(rows=9, channels=3, height=7, width=5, seed=0):
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, channels, height, width, generator=made) * 2 + 3).requires_grad_()


def norms(channels, training, seed=0):
    """Return a norm with weights and means of its own, and the same in float64."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels).train(training)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    exact = nn.BatchNorm2d(channels).double().train(training)
    exact.load_state_dict(norm.state_dict())
    return norm, exact


def by_torch(y, norm, size):
    return nn.functional.max_pool2d(y if norm is None else norm(y), (size, 1), ceil_mode=True).tanh()


@compiled
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 40),
    channels=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 4),
    kind=st.sampled_from(["training", "evaluation", "none"]),
    seed=st.integers(0, 99),
)
def test_it_is_what_torch_computes_forward_and_back(rows, channels, height, width, size, kind, seed):
    y = maps(rows, channels, height, width, seed)
    norm, exact = (None, None) if kind == "none" else norms(channels, kind == "training", seed)
    double = y.detach().double().requires_grad_()
    out, wanted = pool(y, norm, size), by_torch(double, exact, size)
    # Two numbers can have next to no variance, by whose root rounding is divided.
    loose = {"rtol": 1e-3, "atol": 1e-3} if rows * height * width < 9 else {"rtol": 1e-4, "atol": 5e-6}
    torch.testing.assert_close(out.double(), wanted, **loose)
    parameters, others = ([] if n is None else list(n.parameters()) for n in (norm, exact))
    grads = torch.autograd.grad(out.square().sum(), [y, *parameters])
    for found, sought in zip(grads, torch.autograd.grad(wanted.square().sum(), [double, *others]), strict=True):
        scale = float(sought.abs().max()) + 1
        torch.testing.assert_close(found.double(), sought, rtol=1e-3, atol=loose["atol"] * scale * 10)
    if norm is not None:
        for found, sought in zip(norm.buffers(), exact.buffers(), strict=True):
            torch.testing.assert_close(found.double(), sought.double(), rtol=1e-5, atol=1e-6)


@compiled
def test_a_generator_takes_it():
    torch.manual_seed(0)
    generator, e = FeatureGenerator(9, 16), torch.randn(40, 9, 16)
    assert "Pool" in type(pool(generator.convolutions[0][0](e[:, None]), None, 2).grad_fn).__name__
    before = generator.convolutions[0][1].running_mean.clone()
    out = generator(e)
    assert not torch.equal(generator.convolutions[0][1].running_mean, before)
    torch.testing.assert_close(out.double(), generator.double()(e.double()), rtol=1e-4, atol=1e-5)


@compiled
def test_a_mean_far_from_zero_leaves_the_variance_right():
    y = (maps(64).detach() / 100 + 1000).contiguous(memory_format=torch.channels_last)
    mean, variance = pooling._moments(y)
    torch.testing.assert_close(mean.double(), y.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), y.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


@compiled
def test_the_tangent_is_right_to_the_last_digits():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.logspace(-30, 2, 999), torch.tensor([0.0, -0.0, 200, -200])])
    out = pool(x.view(-1, 1, 1, 1), None, 1).flatten()
    torch.testing.assert_close(out.double(), x.double().tanh(), rtol=3e-7, atol=0)


@compiled
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_number_wins_every_maximum(place):
    y = maps().detach()
    clean = pool(y, None, 2)
    y[2, 1, place, 3] = float("nan")
    out = pool(y, None, 2)
    assert out[2, 1, 0, 3].isnan()
    assert torch.equal(out.isnan(), by_torch(y, None, 2).isnan())
    assert torch.equal(out[~out.isnan()], clean[~out.isnan()])
    norm, _ = norms(3, training=True)
    assert torch.equal(pool(y, norm, 2).isnan().any((0, 2, 3)), torch.tensor([False, True, False]))


@compiled
def test_the_first_of_equal_fields_takes_the_slope():
    y = torch.ones(2, 1, 4, 1, requires_grad=True)
    (found,) = torch.autograd.grad(pool(y, None, 2).sum(), y)
    (wanted,) = torch.autograd.grad(by_torch(y, None, 2).sum(), y)
    torch.testing.assert_close(found, wanted)
    assert found[0, 0, :, 0].ne(0).tolist() == [True, False, True, False]


@compiled
def test_derivatives_of_derivatives():
    y, (norm, exact) = maps(3, 2, 3, 2).detach(), norms(2, training=True)
    hessian = torch.autograd.functional.hessian
    found = hessian(lambda y: pool(y, norm, 2).square().sum(), y)
    wanted = hessian(lambda y: by_torch(y, exact, 2).square().sum(), y.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


@compiled
def test_what_it_does_not_serve():
    y, (norm, exact) = maps(), norms(3, training=True)
    assert pool(y.double(), exact, 2) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pool(y, norm, 2) is None
    assert pool(y[:0], norm, 2) is None
    assert pool(y, nn.SyncBatchNorm(3), 2) is None
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # torch's own
        FeatureGenerator(1, 1, (2,))(torch.ones(1, 1, 1))


@pytest.fixture
def forgotten():
    pooling._agrees.cache_clear()
    yield
    pooling._agrees.cache_clear()


def test_without_a_compiler_a_generator_is_torchs(forgotten, monkeypatch):
    monkeypatch.setattr(pooling, "library", lambda source: None)
    generator, e = FeatureGenerator(7, 4, (3, 2), kernel=3), torch.randn(6, 7, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = generator(e)
    torch.testing.assert_close(out.double(), generator.double()(e.double()), rtol=1e-4, atol=1e-5)


@compiled
def test_a_library_that_computes_something_else_is_left_alone(forgotten, monkeypatch):
    right = pooling.pooled
    monkeypatch.setattr(pooling, "pooled", lambda *given, **options: 2 * right(*given, **options))
    with pytest.warns(UserRemark, match=r"pooling.cpp, as compiled here, does not compute what it should"):
        assert pool(maps(), None, 2) is None


@compiled
@pytest.mark.parametrize("default", [{"dtype": torch.float64}, {"device": "meta"}])
def test_defaults_of_torch_change_nothing(default, monkeypatch):
    y = maps().detach()
    norm, _ = norms(3, True)
    wanted = pool(y, norm, 2)
    monkeypatch.setattr(pooling, "served", lambda *tensors: True)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(default.get("dtype", kept))
    torch.set_default_device(default.get("device"))
    try:
        found = pool(y, norm, 2)
    finally:
        torch.set_default_dtype(kept)
        torch.set_default_device(None)
    assert torch.equal(found, wanted)
