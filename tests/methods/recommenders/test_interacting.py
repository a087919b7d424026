"""A compiled layer of attention against the same in torch's operations and float64."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders import interacting
from workingpapers.methods.recommenders.autoint import InteractingLayer
from workingpapers.methods.recommenders.interacting import WIDEST, interact, interacted

compiled = pytest.mark.skipif(not interacting._agrees(), reason="no compiler of C++ was found")


def example(rows=19, fields=5, dim=3, width=4, heads=2, residual=True, seed=0):
    """Return fields, heads, a scale, and weights, as `interact` takes them."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, fields, dim, generator=made, requires_grad=True)
    weights = [torch.randn(width, dim, generator=made).div_(dim**0.5).requires_grad_() for _ in range(4)]
    return x, heads, 0.7, *weights[:3], weights[3] if residual else None


def tensors(arguments):
    return [x for x in arguments if isinstance(x, torch.Tensor)]


def in_double(arguments):
    return [x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in arguments]


@compiled
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    fields=st.one_of(st.integers(1, 12), st.sampled_from([24, 25, 49])),  # queries are taken by 24
    dim=st.integers(1, 19),
    head=st.integers(1, 9),
    heads=st.integers(1, 3),
    residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_definition_forward_and_back(rows, fields, dim, head, heads, residual, seed):
    given = example(rows, fields, dim, head * heads, heads, residual, seed)
    exact = in_double(given)
    out, wanted = interact(*given), interacted(*exact)
    # Rounding of float32, 1e-7, grows with the scores, which reach some tens here, and with the numbers in a sum.
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=2e-5)
    # Where rounding decides whether an output is 0, its slope is left out.
    back = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)) * (wanted > 1e-4)
    grads = torch.autograd.grad(out, tensors(given), back)
    for found, sought in zip(grads, torch.autograd.grad(wanted, tensors(exact), back.double()), strict=True):
        torch.testing.assert_close(found.double(), sought, rtol=1e-3, atol=2e-5 * float(sought.abs().max()) + 1e-5)


@compiled
def test_a_layer_takes_it_and_its_gradients_are_right():
    torch.manual_seed(0)
    layer, x = InteractingLayer(16, 16), torch.randn(40, 24, 16)
    assert "Interaction" in type(layer(x).grad_fn).__name__
    found = torch.autograd.grad(layer(x).square().mean(), layer.parameters())
    torch.testing.assert_close(layer(x), layer._by_torch(x))
    for grad, wanted in zip(
        found, torch.autograd.grad(layer._by_torch(x).square().mean(), layer.parameters()), strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)


@compiled
def test_rows_are_computed_alike_wherever_they_stand_and_by_however_many_threads():
    x, *rest = example(rows=50)
    out = interact(x, *rest)
    assert torch.equal(interact(x[7:30], *rest), out[7:30])
    assert torch.equal(interact(x.flip(0), *rest), out.flip(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = torch.autograd.grad(interact(x, *rest).sum(), tensors((x, *rest)))
        torch.set_num_threads(1)
        one = torch.autograd.grad(interact(x, *rest).sum(), tensors((x, *rest)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(several[0], one[0])
    torch.testing.assert_close(several, one)  # sums over rows are split by thread


@compiled
def test_fields_in_any_order_of_memory():
    x, *rest = example()
    turned = x.detach().mT.contiguous().mT.requires_grad_()
    weights = [w if w is None else w.detach().mT.contiguous().mT.requires_grad_() for w in rest[2:]]
    out = interact(turned, *rest[:2], *weights)
    assert torch.equal(out, interact(x, *rest))
    grads = torch.autograd.grad(out.sum(), (turned, *weights))
    torch.testing.assert_close(grads, torch.autograd.grad(interact(x, *rest).sum(), tensors((x, *rest))))


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_row(bad):
    x, *rest = example()
    clean = interact(x, *rest)
    broken = x.detach().clone()
    broken[3, 1, 0] = bad
    out = interact(broken, *rest)
    assert torch.equal(out.isnan(), interacted(broken, *rest).isnan())
    assert out[3].isnan().any()
    others = torch.arange(len(x)) != 3
    assert torch.equal(out[others], clean[others])


@compiled
def test_large_scores_neither_overflow_nor_lose_the_largest():
    x, heads, _, *weights = example()
    out = interact(x * 30, heads, 10.0, *weights)
    torch.testing.assert_close(out, interacted(x.double() * 30, heads, 10.0, *in_double(weights)).float())


@compiled
def test_no_rows_and_no_gradient():
    x, *rest = example()
    empty = interact(x[:0], *rest)
    assert empty.shape == (0, 5, 4)
    assert all(grad.abs().sum() == 0 for grad in torch.autograd.grad(empty.sum(), tensors(rest)))
    with torch.inference_mode():
        assert torch.equal(interact(x, *rest), interact(x, *rest).clone())


@compiled
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_derivatives_of_derivatives_and_several_at_a_time():
    given = example(rows=2, fields=3)
    x, rest = given[0].detach(), given[1:]

    def loss(x, function):
        return function(x, *rest).square().sum()

    wanted = torch.autograd.functional.hessian(lambda x: loss(x, interacted), x)
    found = torch.autograd.functional.hessian(lambda x: loss(x, interact), x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.func.hessian(lambda x: loss(x, interact_or_not))(x), wanted)
    jacobian = torch.autograd.functional.jacobian
    found = jacobian(lambda x: interact(x, *rest), x, vectorize=True)
    torch.testing.assert_close(found, jacobian(lambda x: interacted(x, *rest), x))
    _, tangent = torch.func.jvp(lambda x: interact_or_not(x, *rest), (x,), (x,))
    torch.testing.assert_close(tangent, torch.func.jvp(lambda x: interacted(x, *rest), (x,), (x,))[1])


def interact_or_not(*arguments):
    out = interact(*arguments)
    return interacted(*arguments) if out is None else out


@compiled
def test_what_it_does_not_serve():
    given = example()
    assert interact(*given) is not None
    assert interact(*in_double(given)) is None
    assert torch.func.vmap(lambda x: torch.tensor(interact(x[None], *given[1:]) is None))(given[0]).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert interact(*given) is None
    with torch.autograd.forward_ad.dual_level():
        assert interact(*given) is None
    assert interact(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in given)) is None
    assert interact(*example(dim=2, width=WIDEST)) is None
    assert InteractingLayer(3, 4, dropout=0.5)(given[0]).grad_fn is not None
    with pytest.raises(RuntimeError, match="shape"):  # torch's own
        InteractingLayer(4, 4)(given[0])


@pytest.fixture
def forgotten():
    interacting._agrees.cache_clear()
    yield
    interacting._agrees.cache_clear()


def test_without_a_compiler_a_layer_is_torchs(forgotten, monkeypatch):
    monkeypatch.setattr(interacting, "library", lambda source: None)
    layer, x = InteractingLayer(3, 4), torch.randn(5, 4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x), layer._by_torch(x))


@compiled
def test_a_library_that_computes_something_else_is_left_alone(forgotten, monkeypatch):
    monkeypatch.setattr(interacting, "interacted", lambda *given: 2 * interacted(*given))
    with pytest.warns(UserRemark, match=r"interacting.cpp, as compiled here, does not compute what it should"):
        assert interact(*example()) is None
