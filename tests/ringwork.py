"""What the processes of a ring do in the tests of ring attention; here because they must import it."""

from pathlib import Path

import torch
import torch.distributed as dist

from workingpapers.methods.attention.common import dense_attention
from workingpapers.methods.attention.ring import apply, attend_sharded, ring_attention
from workingpapers.methods.attention.sequences import gather, pack_examples, positions, shard

EXAMPLES = [[5, 9, 3, 8, 7], [4, 4], [9, 1, 2, 60, 33, 7, 21, 5]]


def sample(T=16, *, B=2, heads=4, kv=2, d=5, width=3, dtype=torch.float64, seed=0):
    """Queries, keys and values, and segment ids of three runs."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, h, T, w, generator=generator, dtype=dtype) for h, w in ((heads, d), (kv, d), (kv, width)))
    return q, k, v, torch.randint(3, (B, T), generator=generator).sort(1).values


def same_segment(ids):
    return None if ids is None else (ids[:, :, None] == ids[:, None])[:, None]


def outputs_and_gradients(attention, tensors, **options):
    """Outputs, log-sum-exps, and gradients of a function of both that weighs every entry differently."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    out, lse = attention(*tensors, return_lse=True, **options)
    (out.sin().sum() + lse.cos().sum()).backward()
    return [out.detach(), lse.detach(), *(x.grad for x in tensors)]


def in_group(layouts):
    """In every process: (ours, expected) of every layout, causal or not, packed or not, of shares alike and not."""
    return [compared(layout, length) for layout in layouts for length in (16, 13)]


def compared(layout, length):
    q, k, v, ids = sample(length)
    found = []
    for causal in (True, False):
        for segments in (None, ids):
            whole = outputs_and_gradients(dense_attention, (q, k, v), causal=causal, mask=same_segment(segments))
            local = [shard(x, dim=2, layout=layout) for x in (q, k, v)]
            own = None if segments is None else shard(segments, dim=1, layout=layout)
            ours = outputs_and_gradients(ring_attention, local, causal=causal, segment_ids=own, layout=layout, chunk=3)
            found += [(a, shard(b, dim=2, layout=layout)) for a, b in zip(ours, whole, strict=True)]
            assert torch.equal(gather(local[0], dim=2, layout=layout), q)
    half = [x.bfloat16() for x in (q, k, v)]
    found.append((attend_sharded(*half, layout=layout).double(), dense_attention(*half).double()))
    return found


def refusals():
    """What two processes say to input that cannot be attended to."""
    rank, said = dist.get_rank(), []
    q, k, v, ids = sample()
    share = [shard(x, dim=2) for x in (q, k, v)]
    longer = [x[:, :, : 8 - 2 * rank] for x in share]
    attempts = [
        lambda: ring_attention(*longer),
        lambda: gather(longer[0], dim=2),
        lambda: ring_attention(*share, segment_ids=ids[:, :8] if rank else None),
    ]
    for attempt in attempts:
        try:
            attempt()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return said


def peak():
    """The most memory that this process has held, in MiB; not ru_maxrss, which a child inherits from its parent."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory(length):
    """By how much this process grew with its share of a sequence, forward and backward, in MiB."""
    q, k, v, _ = sample(length // dist.get_world_size(), B=1, kv=4, d=32, width=32, dtype=torch.float32)
    before = peak()
    outputs_and_gradients(dense_attention if dist.get_world_size() == 1 else ring_attention, (q, k, v))
    return peak() - before


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


def loss_and_gradients(model, packed, group=None):
    """Return the weighted loss of a share of a packed sequence, summed over processes, with the gradients."""
    fields = {name: shard(value, dim=1) for name, value in vars(packed).items()}
    labels, weights = fields.pop("labels"), fields.pop("loss_weights").double()
    logits = model(**fields, use_cache=False).logits
    loss = (weights * torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")).sum()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def in_a_model():
    """Loss and gradients of a packed sequence, summed; logits of a plain one; what decoding and padding say."""
    model = apply(tiny_llama())
    loss, gradients = loss_and_gradients(model, pack_examples(EXAMPLES, 17))
    for x in (loss, *gradients):
        dist.all_reduce(x)
    ids = torch.arange(15)[None] % 7
    with torch.no_grad():
        given = {"position_ids": positions(15, rank=0, size=2)[None]} if dist.get_rank() == 0 else {}
        logits = gather(model(shard(ids, dim=1), use_cache=False, **given).logits, dim=1)
    said = []
    for options in ({"attention_mask": (shard(ids, dim=1) > 3).long()}, {"decode": True}):
        try:
            if options.pop("decode", False):
                cache = model(shard(ids, dim=1), use_cache=True).cache
                model(ids[:, :2], cache=cache, position_ids=torch.tensor([[15, 16]]))
            model(shard(ids, dim=1), use_cache=False, **options)
        except ValueError as error:
            said.append(str(error))
    return loss, gradients, logits, said


def everything(length):
    """All of the above, the memory first."""
    return {
        "memory": memory(length),
        "exact": in_group(["zigzag"]),
        "refusals": refusals(),
        "model": in_a_model(),
    }
