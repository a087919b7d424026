"""Ring attention against attention by its definition, in one process and in gloo groups of 2 and 4 processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringwork import EXAMPLES, everything, in_group, memory, outputs_and_gradients, same_segment, sample, tiny_llama

from workingpapers.methods.attention.common import dense_attention, merge
from workingpapers.methods.attention.ring import apply, naive_ring_attention, restore, ring_attention
from workingpapers.methods.attention.sequences import pack_examples, positions, run_processes, score_entries

LAYOUTS = ("zigzag", "contiguous")
EXACT = {"atol": 1e-10, "rtol": 1e-10}  # float64: only the order of sums differs


@given(
    length=st.integers(1, 13), causal=st.booleans(), packed=st.booleans(), layout=st.sampled_from(LAYOUTS),
    chunk=st.integers(1, 13), kv=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_one_process_equals_the_definition_forward_and_backward(length, causal, packed, layout, chunk, kv, seed):
    q, k, v, ids = sample(length, kv=kv, seed=seed)
    ids = ids if packed else None
    ours = outputs_and_gradients(
        ring_attention, (q, k, v), causal=causal, segment_ids=ids, layout=layout, chunk=chunk, scale=0.7
    )
    expected = outputs_and_gradients(dense_attention, (q, k, v), causal=causal, mask=same_segment(ids), scale=0.7)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@given(size=st.sampled_from([1, 2, 3, 4, 17]), causal=st.booleans(), packed=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_recurrence_host_by_host_equals_the_definition(size, causal, packed, seed):
    q, k, v, ids = sample(seed=seed)
    ids = ids if packed else None
    ours = naive_ring_attention(q, k, v, size=size, causal=causal, segment_ids=ids)
    torch.testing.assert_close(ours, dense_attention(q, k, v, causal=causal, mask=same_segment(ids)), **EXACT)


def test_gradients_by_finite_differences():
    q, k, v, ids = sample(4, B=1, heads=2, kv=1)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(
        lambda *x: ring_attention(*x, segment_ids=ids[:1], chunk=1, return_lse=True), (q, k, v)
    )


def test_half_precision_accumulates_in_single():
    q, k, v, _ = sample(64, d=16, width=16, dtype=torch.bfloat16)
    ours = outputs_and_gradients(ring_attention, (q, k, v), chunk=4)
    exact = outputs_and_gradients(dense_attention, (q.double(), k.double(), v.double()))
    assert [x.dtype for x in ours] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * 3]
    for a, b in zip(ours, exact, strict=True):
        # Merging 16 chunks in bfloat16 would lose more than its 8 bits; one rounding of each chunk and result may not.
        torch.testing.assert_close(a.double(), b, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [24, 23, 2, 0])
def test_layouts_hold_every_position_once(size, layout, length):
    held = [positions(length, rank=rank, size=size, layout=layout) for rank in range(size)]
    assert torch.cat(held).sort().values.tolist() == list(range(length))
    assert all((h.diff() > 0).all() for h in held)
    assert max(map(len, held)) - min(map(len, held)) <= 2  # two pieces, each of which may be one longer
    if length % (2 * size) == 0:
        assert len(set(map(len, held))) == 1


def test_the_zigzag_layout_balances_causal_work():
    work = {layout: [score_entries(64, rank=r, size=4, layout=layout) for r in range(4)] for layout in LAYOUTS}
    assert work["contiguous"] == [256, 512, 768, 1024]  # of 4 blocks of 16 x 16: 1, 2, 3, 4; so 6 of 16 are skipped
    assert work["zigzag"] == [64 * 9] * 4  # of 8 pieces of 8 x 8: 1 + 8, 2 + 7, 3 + 6, 4 + 5
    assert score_entries(64, rank=0, size=4, causal=False) == 16 * 64
    assert sum(score_entries(61, rank=r, size=4, causal=False) for r in range(4)) == 61**2


def test_chunks_that_see_nothing_are_not_computed(monkeypatch):
    from workingpapers.methods.attention import ring

    sizes = []

    def counted(q, k, v, **options):
        sizes.append(q.shape[2] * k.shape[2])
        return dense_attention(q, k, v, causal=False, return_lse=True, **options)

    monkeypatch.setattr(ring, "fused_attention", counted)
    q, k, v, _ = sample(16, B=1)
    ring_attention(q, k, v, layout="contiguous", chunk=4)
    assert sum(sizes) == 10 * 16  # the lower half of 4 x 4 chunks and the diagonal
    sizes.clear()
    ring_attention(q, k, v, layout="contiguous", chunk=4, segment_ids=torch.tensor([[0] * 8 + [1] * 8]))
    assert sum(sizes) == 6 * 16  # two segments of 2 x 2 chunks


@pytest.fixture(scope="module")
def two_processes():
    """What each of two processes found; they start once, for starting takes most of their time."""
    return run_processes(everything, 2, 2048)


def check(found):
    *exact, half = found  # outputs, log-sum-exps and three gradients, four times; then outputs in bfloat16
    assert len(exact) == 20
    for ours, expected in exact:
        torch.testing.assert_close(ours, expected, **EXACT)
    torch.testing.assert_close(*half, atol=0.03, rtol=0.03)  # bfloat16 travels; 8 bits


def test_two_processes_equal_the_definition_forward_and_backward(two_processes):
    for found in two_processes:
        for length in found["exact"]:
            check(length)


@pytest.mark.slow
def test_four_processes_equal_the_definition_forward_and_backward():
    for found in run_processes(in_group, 4, LAYOUTS):
        for layout in found:
            check(layout)


def test_what_does_not_fit_together_is_refused_in_every_process(two_processes):
    for lengths, gathered, segments in (found["refusals"] for found in two_processes):
        expected = "the processes hold [8, 6] tokens; in the layout 'zigzag' they must hold [7, 7] of 14"
        assert expected in lengths
        assert expected in gathered
        assert "processes disagree" in segments
        assert "[8, 2, 4, 5, 2, 3, 1, 0, 1, 8], [8, 2, 4, 5, 2, 3, 1, 1" in segments


def test_memory_of_a_process_is_that_of_its_share_not_of_the_scores(two_processes):
    # 4 heads x 2,048^2 scores of 4 bytes are 64 MiB, several times over in backward; a share of q, k, v is 0.4 MiB, and
    # chunks of 512 x 512 take 4 MiB each. The rest is what gloo, the kernels and the allocator take once.
    (whole,) = run_processes(memory, 1, 2048)
    shares = [found["memory"] for found in two_processes]
    assert whole > 190
    assert max(shares) < whole / 2.5


def test_a_sharded_model_equals_the_whole_one_and_packed_examples_equal_separate_ones(two_processes):
    model = tiny_llama()
    ids = torch.arange(15)[None] % 7  # shares of 7 and 8 tokens
    expected = model(ids).logits.detach()
    # The mean over examples of each one's mean loss, from separate runs.
    losses = []
    for example in EXAMPLES:
        tokens = torch.tensor([example])
        losses.append(torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:]))
    separate = torch.stack(losses).mean()
    separate.backward()
    for loss, gradients, logits, (padding, decoding) in (found["model"] for found in two_processes):
        torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)  # rotary angles are float32
        torch.testing.assert_close(loss, separate.detach(), atol=1e-6, rtol=1e-6)
        for ours, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, atol=1e-6, rtol=1e-5)
        assert "segment_ids" in padding
        assert "does not decode" in decoding


def test_restore_leaves_the_model_as_it_was():
    model, ids = tiny_llama(), torch.arange(15)[None] % 7
    before = model(ids).logits
    torch.testing.assert_close(apply(model)(ids, use_cache=False).logits, before, **EXACT)
    assert torch.equal(restore(model)(ids).logits, before)


def test_a_token_of_one_example_never_changes_another():
    q, k, v, _ = sample(12, B=1)
    ids = torch.tensor([[0] * 5 + [1] * 7])
    before = ring_attention(q, k, v, segment_ids=ids, chunk=4)
    k[:, :, :5], v[:, :, :5] = 9.0, -3.0
    after = ring_attention(q, k, v, segment_ids=ids, chunk=4)
    assert torch.equal(before[:, :, 5:], after[:, :, 5:])
    assert not torch.equal(before[:, :, :5], after[:, :, :5])


def test_packed_examples():
    packed = pack_examples(EXAMPLES, 16, pad_token_id=6)
    assert packed.input_ids.tolist() == [[5, 9, 3, 8, 7, 4, 4, 9, 1, 2, 60, 33, 7, 21, 5, 6]]
    assert packed.labels.tolist() == [[9, 3, 8, 7, -100, 4, -100, 1, 2, 60, 33, 7, 21, 5, -100, -100]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 0]]
    assert packed.segment_ids.tolist() == [[0] * 5 + [1] * 2 + [2] * 8 + [-1]]
    for number, example in enumerate(EXAMPLES):
        weights = packed.loss_weights[packed.segment_ids == number]
        assert weights.sum().item() == pytest.approx(1 / 3)  # every example counts alike
        assert weights[:-1].tolist() == pytest.approx([1 / 3 / (len(example) - 1)] * (len(example) - 1))


def test_merges_with_attention_to_earlier_keys():
    q, k, v, _ = sample(16)
    now = ring_attention(q[:, :, 8:], k[:, :, 8:], v[:, :, 8:], return_lse=True)
    earlier = dense_attention(q[:, :, 8:], k[:, :, :8], v[:, :, :8], causal=False, return_lse=True)
    torch.testing.assert_close(merge(*now, *earlier)[0], dense_attention(q, k, v)[:, :, 8:], **EXACT)


@pytest.mark.parametrize("length", [0, 1])
def test_short_sequences(length):
    q, k, v, _ = sample(length)
    torch.testing.assert_close(ring_attention(q, k, v), dense_attention(q, k, v), **EXACT)


def test_nan_comes_out_as_nan():
    q, k, v, _ = sample()
    k[0, 0, 10] = torch.nan
    out = ring_attention(q, k, v, chunk=4, layout="contiguous")
    assert out[0, :2, 10:].isnan().all()
    assert not out[0, :2, :8].isnan().any()  # chunks before it never meet it
    assert not out[0, 2:].isnan().any()


def test_bad_options():
    q, k, v, ids = sample()
    with pytest.raises(ValueError, match="as many queries as keys; got 3 and 16"):
        ring_attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="layout is 'spiral'; allowed: 'zigzag', 'contiguous'"):
        ring_attention(q, k, v, layout="spiral")
    with pytest.raises(ValueError, match="chunk is 0"):
        ring_attention(q, k, v, chunk=0)
    with pytest.raises(ValueError, match=r"segment_ids must be integers \(2, 16\)"):
        ring_attention(q, k, v, segment_ids=ids[:, :3])
    with pytest.raises(ValueError, match="segment_ids must be integers"):
        ring_attention(q, k, v, segment_ids=ids.float())
    with pytest.raises(ValueError, match="multiple of the 3 key heads"):
        ring_attention(q, k.repeat(1, 2, 1, 1)[:, :3], v.repeat(1, 2, 1, 1)[:, :3])
    with pytest.raises(ValueError, match="two tokens or more"):
        pack_examples([[1, 2], [3]], 8)
    with pytest.raises(ValueError, match=r"token ids must be whole numbers; got torch\.float32"):
        pack_examples([[1, 2], [3.5, 4.0]], 8)
    with pytest.raises(ValueError, match="5 tokens; at most 4 fit"):
        pack_examples([[1, 2], [3, 4, 5]], 4)
    with pytest.raises(ValueError, match="processes is 0"):
        run_processes(memory, 0)
