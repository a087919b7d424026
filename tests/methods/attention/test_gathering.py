"""What is gathered, against plain indexing."""

import pytest
import torch

from workingpapers.methods.attention.gathering import Runs, Vectors, split


def layouts():
    """Yield (B, G, T, d) tensors of the same numbers that lie differently in memory."""
    x = torch.randn(2, 3, 9, 4, generator=torch.Generator().manual_seed(0))
    yield "as it comes", x
    yield "token by token", x.transpose(1, 2).contiguous().transpose(1, 2)
    yield "beside others", torch.cat([x, x[..., :1]], dim=3)[..., :4]  # strides that are no multiple of d
    yield "last tokens of more", torch.cat([x, x], dim=2)[:, :, 9:]


@pytest.mark.parametrize(("name", "x"), list(layouts()))
@pytest.mark.parametrize("run", [1, 2, 3])
def test_vectors_and_runs_of_them(name, x, run):
    owner, tokens = torch.tensor([0, 5, 7, 11]), torch.tensor([[0, 1], [6, 6], [9 - run, 2], [3, 0]])
    vectors = Vectors(x, 6)  # six heads, two for each of the three of x
    for places, tokens_, heads in split(2, vectors.places(owner, tokens), tokens, owner):
        b, g = heads // 6, heads % 6 // 2
        expected = x[b[:, None, None], g[:, None, None], tokens_[:, :, None] + torch.arange(run)]
        assert torch.equal(vectors.runs(run).take(places), expected.flatten(1, 2))


@pytest.mark.parametrize(("run", "step"), [(1, 1), (2, 1), (2, 2)])
def test_runs_are_taken_into_the_same_room_unless_gradients_are_wanted(run, step):
    x = torch.randn(5, 3)
    runs = Runs(x, run, step)
    first = runs.take(torch.tensor([[0, 1]]))
    assert runs.take(torch.tensor([[2]])).data_ptr() == first.data_ptr()
    x.requires_grad_()
    kept = Runs(x, run, step).take(torch.tensor([[1, 1]]))
    expected = torch.zeros(5, 3)
    expected[1 : 1 + run * step : step] = 2
    assert torch.equal(torch.autograd.grad(kept.sum(), x)[0], expected)
    assert runs.take(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 3)


def test_chunks_fit_their_room():
    vectors = Vectors(torch.zeros(1, 1, 4, 64), 1)
    assert vectors.chunk(512) == 2**18 // (512 * 64)
    assert vectors.chunk(2**30) == 1
