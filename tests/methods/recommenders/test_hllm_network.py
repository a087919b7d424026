"""The losses: limits, equality with SASRec, gradients, and what is refused."""

import math

import pytest
import torch
from tinymodels import tiny
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2Model

from workingpapers.methods.recommenders.hllm_network import HLLMNetwork

ITEMS = [[2 + i // 6, 20 + i % 6] for i in range(36)]  # two tokens tell an item


def small(**options):
    torch.manual_seed(0)
    return HLLMNetwork(tiny(), tiny(seed=1), **{"max_length": 8, "max_history": 8, **options}).eval()


@pytest.mark.parametrize("start", [-3.0, 2.0, 9.0])
def test_the_scale_stays_within_its_bounds(start):
    model = small()
    model.log_scale.data.fill_(start)
    sequences, negatives = torch.tensor([[0, 1, 2]]), torch.tensor([3, 4])
    loss, _ = model(ITEMS[:5], sequences, negatives)
    loss.backward()
    assert float(model.log_scale.detach()) == pytest.approx(min(max(start, 0), math.log(100)))
    assert model.log_scale.grad.abs() > 0
    assert float(small().log_scale.detach()) == pytest.approx(math.log(1 / 0.07))


class Sasrec(nn.Module):
    """SASRec from torch's own layers: item and position vectors, pre-norm causal blocks, a last norm."""

    def __init__(self, gpt, width, heads, length):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.positions = gpt.wpe.weight[:length]
        with torch.no_grad():
            for mine, theirs in zip(self.blocks.layers, gpt.h, strict=True):
                mine.self_attn.in_proj_weight.copy_(theirs.attn.c_attn.weight.T)
                mine.self_attn.in_proj_bias.copy_(theirs.attn.c_attn.bias)
                for a, b in ((mine.self_attn.out_proj, theirs.attn.c_proj), (mine.linear1, theirs.mlp.c_fc)):
                    a.weight.copy_(b.weight.T)
                    a.bias.copy_(b.bias)
                mine.linear2.weight.copy_(theirs.mlp.c_proj.weight.T)
                mine.linear2.bias.copy_(theirs.mlp.c_proj.bias)

    def forward(self, vectors):
        mask = nn.Transformer.generate_square_subsequent_mask(vectors.shape[1])
        return self.blocks(vectors + self.positions[: vectors.shape[1]], mask=mask, is_causal=True)


def test_with_identity_vectors_it_is_sasrec_with_a_cosine_softmax():
    torch.manual_seed(0)
    options = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "activation_function": "gelu"}
    gpt = GPT2Model(GPT2Config(vocab_size=4, n_positions=16, n_embd=16, n_layer=2, n_head=2, **options))
    for parameter in gpt.parameters():
        if parameter.ndim == 2:
            parameter.data *= 10  # of the usual start, attention would be uniform
    model = HLLMNetwork(tiny(hidden_size=16), gpt, max_length=8, max_history=8)
    table = torch.eye(16)
    sequences = torch.tensor([[1, 5, 9, 2, 7], [4, 4, 8, -1, -1]])
    found, _ = model.loss(table, sequences, torch.arange(16))  # every item is a negative; its own copy is left out
    states = Sasrec(gpt, 16, 2, 16)(table[sequences[:, :-1].clamp(min=0)])
    logits = F.normalize(states, dim=-1) @ table.T / 0.07
    expected = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), ignore_index=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_and_company_do_not_change_a_loss():
    model, negatives = small(), torch.tensor([30, 31])
    alone = [model(ITEMS, torch.tensor([row]), negatives)[0] for row in ([1, 2, 3, 4], [5, 6])]
    both, logs = model(ITEMS, torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1]]), negatives)
    torch.testing.assert_close(both, (3 * alone[0] + alone[1]) / 4, atol=1e-5, rtol=1e-5)
    assert logs["negatives"] == 2


def test_gradients_reach_inputs_targets_and_negatives():
    model = small()
    table = torch.randn(5, 32, requires_grad=True)
    model.loss(table, torch.tensor([[0, 1, 2]]), torch.tensor([3]))[0].backward()
    size = table.grad.abs().sum(dim=1)
    assert (size[:4] > 0).all()
    assert size[4] == 0
    gap = 1e-2  # central difference of one number of an input, in float32
    nudge = torch.zeros(5, 32)
    nudge[0, 3] = gap
    with torch.no_grad():
        up, down = (model.loss(table + s * nudge, torch.tensor([[0, 1, 2]]), torch.tensor([3]))[0] for s in (1, -1))
    assert float((up - down) / (2 * gap)) == pytest.approx(float(table.grad[0, 3]), rel=0.05, abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "lat"}, "head is 'lat'. Did you mean 'late'"),
        ({"max_history": 0}, "max_history is 0"),
        ({"max_history": "8"}, "max_history is '8'; it must be a whole number"),
        ({"num_negatives": 0}, "num_negatives is 0"),
        ({"generative_weight": -1.0}, "generative_weight is -1.0"),
        ({"dup_threshold": 1.0}, "dup_threshold is 1.0"),
        ({"temperature": 0.001}, "temperature 0.001"),
        ({"max_history": 128}, "user_lm has 128 positions, but 129 are needed"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_models_that_do_not_go_together_are_refused():
    one = tiny()
    with pytest.raises(ValueError, match="one object"):
        HLLMNetwork(one, one, max_length=8)
    with pytest.raises(ValueError, match="item vectors have 32 numbers and user_lm takes 16"):
        HLLMNetwork(tiny(), tiny(hidden_size=16), max_length=8, adapter=False)
