"""When compiled loops serve, how they are checked, and derivatives by the definition."""

import warnings

import pytest
import torch

from workingpapers.errors import UserRemark
from workingpapers.methods.recommenders.compiled import agree, served, slopes


def test_what_is_served():
    x = torch.ones(2)
    assert served(x, None, torch.nn.Parameter(x))
    assert not served(x, x.double())
    assert not served(x.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not served(x)
    with torch.autograd.forward_ad.dual_level():
        assert not served(x)
    seen = []
    torch.func.vmap(lambda x: seen.append(served(x)) or x)(x)
    torch.autograd.grad(_Seen.apply(x.requires_grad_(), seen), x, torch.ones(3, 2), is_grads_batched=True)
    assert seen == [False, False]


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seen):
        ctx.seen = seen
        return x * 1

    @staticmethod
    def backward(ctx, grad):
        ctx.seen.append(served(grad))
        return grad, None


def test_what_agrees():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agree("it", torch.mul, lambda x, y: x / (1 / y), (3, 4), (4,))
    with torch.inference_mode(), pytest.warns(UserRemark, match="it, as compiled here"):
        assert not agree("it", torch.mul, lambda x, y: x * y * 1.01, (3, 4), (4,))
    with pytest.warns(UserRemark, match="it, as compiled here"):  # only the gradient differs
        assert not agree("it", lambda x: x, lambda x: x.detach() + 0 * x, (3,))


def test_slopes_have_slopes_where_they_are_wanted():
    x, y = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
    with torch.enable_grad():
        found = slopes(lambda x, y, _: x**3 * y, [x, y, None], [True, False, False], torch.ones(1))
    assert found[1:] == [None, None]
    (second,) = torch.autograd.grad(found[0], x)
    assert (found[0].item(), second.item()) == (81, 54)
    with torch.no_grad():
        assert not slopes(lambda x: x**2, [x], [True], torch.ones(1))[0].requires_grad


def test_defaults_of_torch_do_not_change_the_example():
    def same(x):
        assert (x.dtype, x.device.type) == (torch.float32, "cpu")
        return x * 2

    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        assert agree("same", same, same, (3, 2))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
