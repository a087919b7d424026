"""Crosses with a way back of their own against their recurrence, and against torch's operations in float64."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders import baselines, crossing
from workingpapers.methods.recommenders.baselines import CrossNetwork
from workingpapers.methods.recommenders.crossing import BLOCK, WIDEST, cross, crossed

compiled = pytest.mark.skipif(not crossing._agrees(), reason="no compiler of C++ was found")


def example(rows=19, width=12, layers=2, seed=0, dtype=torch.float32):
    """Return x_0, the output's weights, and those of the crosses, as `cross` takes them."""
    made = torch.Generator().manual_seed(seed)
    shapes = (rows, width), (width,), *((width, width), (width,)) * layers
    x, *weights = (torch.randn(shape, generator=made, dtype=dtype) for shape in shapes)
    return [w.requires_grad_() for w in (x, *(w / width**0.5 for w in weights))]


def in_double(tensors):
    return [x.detach().double().requires_grad_() for x in tensors]


def naive(first, weight, *layers):
    """Return the outputs by the recurrence, number by number."""
    found = []
    for row in first.tolist():
        x = row
        for matrix, bias in zip(layers[::2], layers[1::2], strict=True):
            y = [sum(w * v for w, v in zip(line, x, strict=True)) for line in matrix.tolist()]
            x = [v + u * (p + b) for v, u, p, b in zip(x, row, y, bias.tolist(), strict=True)]
        found.append(sum(w * v for w, v in zip(weight.tolist(), x, strict=True)))
    return torch.tensor(found, dtype=first.dtype)


def test_torchs_operations_are_the_recurrence_and_have_its_slopes():
    given = example(rows=3, width=4, layers=3, dtype=torch.float64)
    torch.testing.assert_close(crossed(*given), naive(*given))
    assert torch.autograd.gradcheck(crossed, given)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 9), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])),
    width=st.one_of(st.integers(1, 40), st.just(384)),
    layers=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_it_is_the_definition_forward_and_back(rows, width, layers, seed):
    given = example(rows, width, layers, seed)
    exact = in_double(given)
    out, wanted = cross(*given), crossed(*exact)
    back = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    grads = torch.autograd.grad(out, given, back)
    sought = torch.autograd.grad(wanted, exact, back.double())
    for a, b in zip((out, *grads), (wanted, *sought), strict=True):
        # Rounding of float32, 1e-7, grows with the terms of a sum, and numbers reach some tens where layers are many.
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * scale + 1e-5)


@compiled
def test_a_network_takes_it_and_its_gradients_are_right(monkeypatch):
    torch.manual_seed(0)
    network, e = CrossNetwork(24, 16), torch.randn(200, 24, 16, requires_grad=True)
    inputs = (e, *network.parameters())

    def results():
        out = network(e)
        return out, *torch.autograd.grad(out.square().mean(), inputs)

    assert "Crosses" in repr(network(e).grad_fn.next_functions)
    found = results()
    monkeypatch.setattr(baselines, "cross", lambda *_: None)
    assert "Crosses" not in repr(network(e).grad_fn.next_functions)
    for a, b in zip(found, results(), strict=True):  # rounding grows with the terms of a sum
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


@compiled
def test_rows_are_computed_alike_wherever_they_stand_and_by_however_many_threads():
    tensors = example(rows=5 * BLOCK + 9, width=21)
    x, *rest = tensors
    out, threads = cross(*tensors), torch.get_num_threads()
    assert torch.equal(cross(x.flip(0), *rest), out.flip(0))
    found = []
    try:
        for number in (1, 3, 7):
            torch.set_num_threads(number)
            found.append((cross(*tensors), *torch.autograd.grad(cross(*tensors).square().sum(), tensors)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@compiled
def test_numbers_in_any_order_of_memory():
    tensors = example()
    turned = [x.detach().mT.contiguous().mT.requires_grad_() if x.ndim == 2 else x for x in tensors]
    wide = torch.stack([tensors[1], tensors[1]], dim=1)[:, 0]  # every second number
    out = cross(turned[0], wide, *turned[2:])
    torch.testing.assert_close(out, cross(*tensors))
    back = torch.linspace(0, 1, 2 * len(out))[::2]
    grads = torch.autograd.grad(out, turned, back)
    torch.testing.assert_close(grads, torch.autograd.grad(cross(*tensors), tensors, back))
    torch.autograd.grad(cross(*tensors).sum(), tensors)  # what comes back to a sum is one number, repeated


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_row(bad):
    x, *rest = example()
    broken = x.detach().clone()
    broken[3, 1] = bad
    out, others = cross(broken, *rest), torch.arange(len(x)) != 3
    assert torch.equal(out.isnan(), crossed(broken, *rest).isnan())
    assert not out[3].isfinite()
    assert torch.equal(out[others], cross(x, *rest)[others])


@compiled
def test_a_tied_cross_and_what_needs_no_gradient():
    x, weight, *layer = example(layers=1)
    given = (x, weight, *layer, *layer)
    found, wanted = (torch.autograd.grad(function(*given).sum(), (x, weight, *layer)) for function in (cross, crossed))
    torch.testing.assert_close(found, wanted)
    [alone] = torch.autograd.grad(cross(x.detach(), weight.detach(), layer[0].detach(), layer[1]).sum(), layer[1])
    torch.testing.assert_close(alone, torch.autograd.grad(cross(x, weight, *layer).sum(), layer[1])[0])
    with torch.inference_mode():
        torch.testing.assert_close(cross(*given), crossed(*given))


@compiled
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_derivatives_of_derivatives_and_several_at_a_time():
    x, *rest = example(rows=2, width=5)

    def loss(x, function):
        return function(x, *rest).square().sum()

    wanted = torch.autograd.functional.hessian(lambda x: loss(x, crossed), x)
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda x: loss(x, cross), x), wanted)
    torch.testing.assert_close(torch.func.hessian(lambda x: loss(x, cross_or_not))(x), wanted)
    jacobian = torch.autograd.functional.jacobian
    found = jacobian(lambda x: cross(x, *rest), x, vectorize=True)
    torch.testing.assert_close(found, jacobian(lambda x: crossed(x, *rest), x))
    _, tangent = torch.func.jvp(lambda x: cross_or_not(x, *rest), (x,), (x,))
    torch.testing.assert_close(tangent, torch.func.jvp(lambda x: crossed(x, *rest), (x,), (x,))[1])


def cross_or_not(*given):
    out = cross(*given)
    return crossed(*given) if out is None else out


@compiled
def test_what_it_does_not_serve():
    given = example()
    assert cross(*given) is not None
    assert cross(*in_double(given)) is None
    assert cross(*given[:2]) is None
    assert cross(given[0], given[1][:5], *given[2:]) is None
    assert cross(given[0], given[1], given[2][:5], *given[3:]) is None
    assert cross(*example(rows=1, width=WIDEST + 1, layers=1)) is None
    assert torch.func.vmap(lambda x: torch.tensor(cross(x[None], *given[1:]) is None))(given[0]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cross(*given) is None
    with torch.autograd.forward_ad.dual_level():
        assert cross(*given) is None
    assert cross(*(x.to("meta") for x in given)) is None
    with pytest.raises(RuntimeError, match="shape"):  # torch's own
        CrossNetwork(4, 3)(torch.randn(5, 3, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what it exports with
def test_a_network_is_copied_exported_and_without_crosses_a_sum():
    torch.manual_seed(0)
    network, e = CrossNetwork(4, 3, hidden=(6, 5)).eval(), torch.randn(5, 4, 3)
    out = network(e)
    assert torch.equal(copy.deepcopy(network)(e), out)
    exported = torch.export.export(network, (e,)).module()
    torch.testing.assert_close(exported(e), out)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(network(e).float(), out, rtol=0.05, atol=0.02)  # 8 bits
    plain = CrossNetwork(4, 3, layers=0, hidden=(6, 5))
    joined = torch.cat([e.flatten(1), plain.deep(e.flatten(1)).relu()], dim=1)
    torch.testing.assert_close(plain(e), plain.out(joined).squeeze(1))


@pytest.fixture
def forgotten():
    crossing._agrees.cache_clear()
    yield
    crossing._agrees.cache_clear()


def test_without_a_compiler_a_network_is_torchs(forgotten, monkeypatch):
    monkeypatch.setattr(crossing, "library", lambda source: None)
    network, e = CrossNetwork(4, 3), torch.randn(5, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cross(*example()) is None
        assert network(e).shape == (5,)
    assert "Crosses" not in repr(network(e).grad_fn.next_functions)


@compiled
def test_a_library_that_computes_something_else_is_left_alone(forgotten, monkeypatch):
    monkeypatch.setattr(crossing, "crossed", lambda *given: 2 * crossed(*given))
    with pytest.warns(UserRemark, match=r"crossing.cpp, as compiled here, does not compute what it should"):
        assert cross(*example()) is None
