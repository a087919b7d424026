"""Parts side by side: the same results, states and errors as one after the other."""

import multiprocessing
import threading

import pytest
import torch

from workingpapers.methods.attention import parallel
from workingpapers.methods.attention.parallel import each


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def meeting(count=2):
    """Return a function that only returns where `count` threads call it at once."""
    barrier = threading.Barrier(count)
    return lambda item: (barrier.wait(10), item)[1]


def place(_):
    return threading.get_ident()


def test_items_are_done_side_by_side_and_come_back_in_order():
    assert each(meeting(), range(6)) == list(range(6))
    x = torch.randn(4, 300, 200)
    torch.testing.assert_close(torch.stack(each(lambda i: x[i] @ x[i].T, range(4), x)), x @ x.mT)


def test_threads_have_one_thread_each_and_nobody_else_changes():
    seen = []
    assert each(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), seen) == (2, [2])


def test_calls_within_calls_work_in_place():
    inner = each(lambda _: (place(0), each(place, range(3))), range(4))
    assert all(found == [outer] * 3 for outer, found in inner)


def test_modes_are_those_of_the_caller():
    def modes(_):
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast

    assert each(modes, range(3)) == [(True, False, False)] * 3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert each(modes, range(3)) == [(False, False, torch.float16)] * 3
    with torch.inference_mode():
        assert each(modes, range(3)) == [(False, True, False)] * 3
    with torch.inference_mode(), torch.enable_grad():
        assert each(modes, range(3)) == [(True, True, False)] * 3


def test_errors_arrive_and_the_next_call_works():
    def fail(item):
        if item == 1:
            raise ValueError("item 1")
        return item

    with pytest.raises(ValueError, match="item 1"):
        each(fail, range(4))
    assert torch.get_num_threads() == 2
    assert each(meeting(), range(2)) == [0, 1]


def test_gradients_other_devices_and_watchers_stay_here():
    from torch.utils.flop_counter import FlopCounterMode

    here = [threading.get_ident()] * 3
    x = torch.ones(3, requires_grad=True)
    assert each(place, range(3), x) == here
    assert each(place, range(3), torch.ones(3, device="meta")) == here
    with torch.no_grad():
        assert each(place, range(3), x) != here
    with FlopCounterMode(display=False):
        assert each(place, range(3)) == here
    torch.set_num_threads(1)
    assert each(place, range(3)) == here


def test_a_forked_process_has_threads_of_its_own():
    each(place, range(2))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_child).get(30) == [0, 1]


def _in_child():
    torch.set_num_threads(2)
    return each(meeting(), range(2))


def test_two_callers_at_once():
    found = {}

    def call(name):
        found[name] = each(lambda i: float(torch.full((1000,), i + name).sum()), range(20))

    callers = [threading.Thread(target=call, args=(name,)) for name in (1, 2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert found == {name: [1000.0 * (i + name) for i in range(20)] for name in (1, 2, 3)}


def methods():
    from workingpapers.methods.attention.hip import HiPAttention
    from workingpapers.methods.attention.hyper import HyperAttention
    from workingpapers.methods.attention.lm_infinite import lambda_attention
    from workingpapers.methods.attention.minference import minference_attention
    from workingpapers.methods.attention.minference_patterns import AShape, BlockSparse, VerticalSlash

    inv_freq = torch.tensor([1.0, 0.1, 0.01, 0.001])
    yield "lm-infinite", lambda q, k, v: lambda_attention(q, k, v, inv_freq=inv_freq, n_local=100, n_global=4)
    for pattern in (AShape(20, 100), VerticalSlash(50, 60), BlockSparse(4)):
        yield type(pattern).__name__, lambda q, k, v, p=pattern: minference_attention(q, k, v, p)[0]
    yield "hip", lambda q, k, v: HiPAttention(top_k=64)(q, k, v)[0]
    hyper = HyperAttention(block_size=64, sample_size=64, min_seq_len=512)
    yield "hyper", lambda q, k, v: hyper(q, k, v)[0]


@pytest.mark.parametrize(("name", "method"), list(methods()))
def test_sparse_attentions_are_the_same_on_two_threads(name, method, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 4500, 8, generator=generator)
    pools = []
    found = parallel._workers

    def workers(count):
        pools.append(count)
        return found(count)

    monkeypatch.setattr(parallel, "_workers", workers)
    two = method(q, k, v)
    assert pools, f"{name} never used its threads"
    torch.set_num_threads(1)
    assert torch.equal(two, method(q, k, v))


@pytest.mark.parametrize("heads", [1, 2])
def test_hip_works_side_by_side_on_blocks_that_search_in_different_numbers_of_rounds(heads, monkeypatch):
    """A short prompt has few blocks of each kind; one kind after the other would leave threads without work."""
    from workingpapers.methods.attention import hip

    q, k, v = torch.randn(3, 1, heads, 700, 8, generator=torch.Generator().manual_seed(0)).double()  # torch's kernels
    attention, counts = hip.HiPAttention(top_k=32, block_q=4, window=16, sinks=4), []
    monkeypatch.setattr(hip, "each", lambda f, items, *tensors: counts.append(len(items)) or each(f, items, *tensors))
    found = attention.search(q, k)
    attention.attend(q, k, v, found)
    assert len(attention._runs(700, 700)) > 1
    assert len(counts) == 2
    assert min(counts) > 1
