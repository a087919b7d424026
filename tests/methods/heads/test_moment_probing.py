"""Moment probing against its definition, numpy's covariance and backbones of several makes."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from workingpapers.methods.heads.moment_probing import (
    CrossCovariancePool,
    MomentProbe,
    MomentProbeClassifier,
    ScaleShiftAdapter,
    cross_covariance,
    inject_scale_shift,
    naive_cross_covariance,
    remove_scale_shift,
)

SMALL = {"hidden_dim": 16, "num_heads": 2}


@parametrize_with_checks([MomentProbeClassifier(**SMALL, max_epochs=10, learning_rate=0.03, random_state=0)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(
    heads=st.sampled_from([2, 3, 4, 6]),
    tokens=st.integers(1, 9),
    width=st.integers(1, 6),
    pairing=st.sampled_from(["near", "half", "all"]),
    center=st.sampled_from(["global", "channel", None]),
    normalize=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_second_moments_equal_the_definition(heads, tokens, width, pairing, center, normalize):
    if pairing == "half" and heads % 2:
        heads += 1
    tokens = max(tokens, 2) if normalize else tokens  # one centred token gives rounding errors only, of any direction
    x = double(heads, 3, tokens, width, seed=tokens) + 2
    expected = naive_cross_covariance(x, pairing=pairing, center=center)
    expected = F.normalize(expected, dim=2) if normalize else expected
    torch.testing.assert_close(cross_covariance(x, pairing=pairing, center=center, normalize=normalize), expected)


@pytest.mark.parametrize(
    ("pairing", "pairs"),
    [
        ("near", [(0, 1), (1, 2), (2, 3)]),
        ("half", [(0, 2), (1, 3)]),
        ("all", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_uncentred_second_moments_equal_einsum(pairing, pairs):
    x = double(4, 3, 5, 6)
    expected = torch.stack([torch.einsum("bld,ble->bde", x[j], x[k]) / 5 for j, k in pairs], dim=1)
    torch.testing.assert_close(cross_covariance(x, pairing=pairing, center=None, normalize=False), expected)


def test_a_head_paired_with_itself_gives_its_covariance():
    x = double(1, 4, 20, 6) + 3
    ours = cross_covariance(x.expand(2, -1, -1, -1), center="channel", normalize=False)[:, 0]
    expected = np.stack([np.cov(sample.T, bias=True) for sample in x[0].numpy()])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("center", ["global", "channel", None])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients(center, normalize):
    x = double(4, 2, 5, 3).requires_grad_()
    for pairing in ("near", "half", "all"):
        assert torch.autograd.gradcheck(
            lambda heads, p=pairing: cross_covariance(heads, pairing=p, center=center, normalize=normalize), x
        )


def test_gradients_of_the_pool():
    torch.manual_seed(0)
    pool = CrossCovariancePool(3, **SMALL).double()
    nn.init.normal_(pool.proj.weight)
    nn.init.normal_(pool.norm.bias)
    assert torch.autograd.gradcheck(pool, double(2, 4, 3).requires_grad_())


def test_columns_of_length_zero_stay_zero():
    x = torch.zeros(2, 1, 3, 4, requires_grad=True)
    moments = cross_covariance(x)
    moments.sum().backward()
    assert not moments.any()
    assert not x.grad.any()


def test_trains_under_mixed_precision():
    head, tokens = MomentProbe(6, 3, **SMALL), torch.randn(4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(tokens).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("pairing", ["near", "half", "all"])
@pytest.mark.parametrize(("hidden_dim", "num_heads"), [(14, 2), (64, 4), (60, 2), (512, 4)])
def test_output_size(pairing, hidden_dim, num_heads):
    pool = CrossCovariancePool(5, hidden_dim=hidden_dim, num_heads=num_heads, pairing=pairing)
    assert pool(torch.randn(2, 3, 5)).shape == (2, pool.out_dim)


def test_published_sizes():
    head = MomentProbe(768, 1000, first_moment="cls")
    assert head.pool.out_dim == 2883
    projection, norm, convolutions = 768 * 512 + 512, 2 * 128, 2 * 3 * 3 * 9
    classifiers = 768 * 1000 + 1000 + 2883 * 1000 + 1000
    total = sum(p.numel() for p in head.parameters())
    assert total == projection + norm + convolutions + classifiers == 4_047_146
    assert sum(p.numel() for p in ScaleShiftAdapter(768).parameters()) == 3 * 768 * 16


def test_moments_follow_the_published_steps():
    torch.manual_seed(0)
    pool = CrossCovariancePool(6, hidden_dim=32, num_heads=4).double()
    nn.init.normal_(pool.norm.weight)
    nn.init.normal_(pool.norm.bias)
    tokens = double(2, 5, 6)
    heads = [F.layer_norm(h, (8,), pool.norm.weight, pool.norm.bias) for h in pool.proj(tokens).split(8, dim=-1)]
    heads = [h - h.mean(dim=(1, 2), keepdim=True) for h in heads]
    for j in range(3):
        matrix = torch.einsum("bld,ble->bde", heads[j], heads[j + 1])
        expected = matrix / matrix.pow(2).sum(dim=1, keepdim=True).sqrt()
        torch.testing.assert_close(pool.moments(tokens)[:, j], expected)
    ones = torch.ones(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.vector_norm(pool.moments(tokens), dim=2), ones)


def test_the_order_of_tokens_does_not_matter():
    pool = CrossCovariancePool(6, hidden_dim=32).double()
    tokens = double(2, 9, 6)
    torch.testing.assert_close(pool(tokens[:, torch.randperm(9)]), pool(tokens))


@pytest.mark.parametrize("first_moment", ["mean", "cls"])
def test_without_second_moments_it_is_half_a_linear_probe(first_moment):
    head = MomentProbe(6, 3, first_moment=first_moment, **SMALL)
    nn.init.zeros_(head.second.weight)
    tokens = torch.randn(4, 5, 6)
    first = tokens.mean(dim=1) if first_moment == "mean" else tokens[:, 0]
    torch.testing.assert_close(head(tokens), head.first(first) / 2)


def test_the_class_token_stays_out_of_the_second_moments():
    head = MomentProbe(6, 3, first_moment="cls", **SMALL)
    nn.init.zeros_(head.first.weight)
    tokens = torch.randn(4, 5, 6)
    torch.testing.assert_close(head(tokens), head.second(head.pool(tokens[:, 1:])) / 2)


def test_a_vector_is_one_token():
    head = MomentProbe(6, 3, **SMALL)
    vectors = torch.randn(4, 6)
    torch.testing.assert_close(head(vectors), head(vectors[:, None]))


def test_linear_layers_start_as_published():
    head = MomentProbe(768, 100)
    for layer in (head.pool.proj, head.first, head.second):
        # Some 77,000 weights or more: their standard deviation is within 1 % of 0.02.
        assert math.isclose(layer.weight.std().item(), 0.02, rel_tol=0.01)
        assert not layer.bias.any()


def sets_of_correlated_tokens(n, seed):
    """Two classes of 32 tokens whose channels have mean 0 and variance 1, and correlate with opposite signs."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    one, noise = rng.normal(size=(2, n, 32, 4)).astype("float32")
    other = 0.6 * np.where(y, 1, -1)[:, None, None] * one + 0.8 * noise
    return np.concatenate([one, other], axis=2).astype("float32"), y


def test_sees_what_a_linear_probe_cannot():
    (X, y), (X_test, y_test) = sets_of_correlated_tokens(800, 0), sets_of_correlated_tokens(400, 1)
    probe = MomentProbeClassifier(hidden_dim=64, num_heads=2, max_epochs=15, learning_rate=0.01, random_state=0)
    linear = LogisticRegression().fit(X.mean(axis=1), y)
    assert probe.fit(X, y).score(X_test, y_test) > 0.95
    assert 0.4 < linear.score(X_test.mean(axis=1), y_test) < 0.6  # chance, within four standard errors


def test_defaults_take_tokens_and_vectors():
    X, y = sets_of_correlated_tokens(16, 0)
    labels = np.array(["no", "yes"])[y]
    for features in (X, X[:, 0]):
        probe = MomentProbeClassifier(max_epochs=2, random_state=0).fit(features, labels)
        assert probe.module_.pool.out_dim == 2883
        assert probe.predict_proba(features).shape == (16, 2)
        assert set(probe.predict(features)) <= {"no", "yes"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 12, "num_heads": 2}, "hidden_dim is 12, num_heads 2; the ratio must be an integer >= 7"),
        ({"hidden_dim": 30, "num_heads": 4}, "hidden_dim is 30, num_heads 4; the ratio must be an integer"),
        ({"num_heads": 1}, "num_heads is 1"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"hidden_dim": 30, "num_heads": 3, "pairing": "half"}, "pairing 'half' needs an even number"),
        ({"pairing": "one"}, "pairing is 'one'; allowed: 'near', 'half', 'all'"),
        ({"center": "token"}, "center is 'token'; allowed: 'global', 'channel', None"),
        ({"first_moment": "max"}, "first_moment is 'max'; allowed: 'mean', 'cls'"),
        ({"first_moment": "cls"}, "no token beside the class token"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MomentProbeClassifier(**options).fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])


@pytest.mark.parametrize("shape", [(6,), (2, 5, 7), (2, 0, 6), (2, 6, 4, 4)])
def test_bad_tokens_are_named(shape):
    for module in (MomentProbe(6, 3, **SMALL), CrossCovariancePool(6, **SMALL)):
        with pytest.raises(ValueError, match=r"allowed: \(B, L, 6\)"):
            module(torch.randn(shape))


def test_bad_data_are_named():
    X, y = sets_of_correlated_tokens(8, 0)
    with pytest.raises(ValueError, match="NaN"):
        MomentProbeClassifier().fit(np.where(X > 1, np.nan, X), y)
    with pytest.raises(ValueError, match="one class"):
        MomentProbeClassifier().fit(X, np.zeros(8))
    with pytest.raises(ValueError, match="center is 0"):
        cross_covariance(torch.zeros(2, 1, 3, 4), center=0)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
IMAGES = {"image_size": 8, "patch_size": 4}


class Block(nn.Module):
    """A timm-like transformer block; the attention is a linear map, the drop path a dropout."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn, self.drop_path2 = nn.Linear(16, 16), nn.Dropout(0.5)
        self.ls2 = nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def backbone(kind):
    torch.manual_seed(0)
    models = {
        "vit": lambda: ViTModel(ViTConfig(**SIZES, **IMAGES)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, **IMAGES)),
        "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGES)),
        "yolos": lambda: YolosModel(YolosConfig(**SIZES, image_size=[8, 8], patch_size=4, num_detection_tokens=2)),
        "timm": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 16), Block(), Block()),
    }
    return models[kind]().eval()


def tokens_of(model):
    output = model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "yolos", "timm"])
def test_adapters_change_the_backbone_and_can_be_removed(kind):
    model = backbone(kind)
    before, names = tokens_of(model), set(model.state_dict())
    adapters = inject_scale_shift(model, reduction=4)
    assert len(adapters) == 2
    assert not torch.allclose(tokens_of(model), before, atol=1e-7)
    for adapter in adapters:
        nn.init.zeros_(adapter.scale.weight)
        nn.init.zeros_(adapter.shift.weight)
    torch.testing.assert_close(tokens_of(model), before)
    assert len(set(model.state_dict()) - names) == 6
    remove_scale_shift(model)
    assert set(model.state_dict()) == names
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(tokens_of(model), before)


def test_an_adapted_block_equals_the_published_one():
    torch.manual_seed(0)
    block, x = Block().eval(), torch.randn(2, 5, 16)
    (adapter,) = inject_scale_shift(block)
    for weight in adapter.parameters():
        nn.init.normal_(weight)
    y = x + block.attn(block.norm1(x))
    shared = torch.relu(y @ adapter.down.weight.T)
    scale, shift = shared @ adapter.scale.weight.T, shared @ adapter.shift.weight.T
    inner = nn.functional.linear(block.norm2(y), block.mlp[0].weight, block.mlp[0].bias)
    branch = nn.functional.linear(F.gelu(inner), block.mlp[2].weight, block.mlp[2].bias)
    torch.testing.assert_close(block(x), y + block.ls2(shift + (1 + scale) * branch))


def test_only_adapters_and_head_of_a_frozen_model_get_gradients():
    model, head = backbone("vit").requires_grad_(False), MomentProbe(16, 3, first_moment="cls", **SMALL)
    head(tokens_of(model)).square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    inject_scale_shift(model)
    head(tokens_of(model)).square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name in model.state_dict() if "scale_shift" in name}
    assert all(p.grad.any() for p in head.parameters())


def test_adapters_follow_a_copy_of_the_model():
    model = backbone("vit")
    before = tokens_of(model)
    inject_scale_shift(model)
    twin = copy.deepcopy(model)  # what an exponential moving average of the weights starts from
    for name, weight in twin.named_parameters():
        if "scale_shift" in name:
            nn.init.zeros_(weight)
    torch.testing.assert_close(tokens_of(twin), before)
    assert not torch.allclose(tokens_of(model), before, atol=1e-7)
    remove_scale_shift(twin)
    assert len(inject_scale_shift(twin)) == 2


def test_models_that_cannot_be_adapted_say_what_is_missing():
    bert = BertModel(BertConfig(**SIZES, vocab_size=10, max_position_embeddings=8))
    with pytest.raises(ValueError, match=r"BertModel: BertLayer has an MLP but no norm .* norm2, layernorm_after"):
        inject_scale_shift(bert)
    half = Block()
    del half.mlp
    with pytest.raises(ValueError, match="Block has a second norm but neither mlp nor intermediate"):
        inject_scale_shift(half)
    with pytest.raises(ValueError, match="Linear: no module has an mlp or one of norm2"):
        inject_scale_shift(nn.Linear(2, 2))


def test_blocks_that_norm_after_the_mlp_are_refused():
    swin = Swinv2Model(Swinv2Config(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[1], window_size=2))
    inject_scale_shift(swin)
    with pytest.raises(ValueError, match="ran before its norm"):
        tokens_of(swin)


def test_misuse_of_adapters_is_named():
    model = backbone("timm")
    with pytest.raises(ValueError, match="no scale-shift adapters to remove"):
        remove_scale_shift(model)
    inject_scale_shift(model)
    with pytest.raises(ValueError, match="already has scale-shift adapters"):
        inject_scale_shift(model)
    with pytest.raises(ValueError, match="reduction is 0"):
        ScaleShiftAdapter(4, reduction=0)
    with pytest.raises(ValueError, match="its last axis must be 4"):
        ScaleShiftAdapter(4)(torch.zeros(2, 4, 5), torch.zeros(2, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_columns_of_zeros_stay_finite_in_half_precision(dtype):
    """What black images give; the smallest length of float32 is zero in float16."""
    torch.manual_seed(0)
    head = MomentProbe(8, 3, hidden_dim=28)
    with torch.autocast("cpu", dtype=dtype):
        logits = head(torch.zeros(2, 5, 8))
    logits.float().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
