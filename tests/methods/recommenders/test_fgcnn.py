"""FGCNN against loops over its definition, its limits and what it is a part of."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from clicks import KINDS, impressions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from workingpapers.methods.recommenders.baselines import FM, IPNN, LinearClassifier
from workingpapers.methods.recommenders.fgcnn import FGCNN, DenseGenerator, FeatureGenerator, FGCNNClassifier, MeanFM
from workingpapers.methods.recommenders.fields import ClickModel, FieldEmbedding
from workingpapers.methods.recommenders.metrics import auc
from workingpapers.methods.recommenders.schema import Schema

CHEAP = {"channels": (3, 4), "kernel": 3, "new_maps": 2, "dim": 8, "hidden": (16,), "random_state": 0}


# Without held-out rows: on data this easy their AUC is 1 after an epoch, which would end the training.
@pytest.mark.slow
@parametrize_with_checks(
    [FGCNNClassifier(**CHEAP | {"dim": 4}, max_epochs=12, learning_rate=0.02, batch_size=32, validation=0)]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def double(*args, **options):
    torch.manual_seed(0)
    return FeatureGenerator(*args, **options).double(), torch.randn(3, *args[:2], dtype=torch.float64)


def naive_features(generator, e, pool, norm):
    """The blocks, a row and a number at a time; batch statistics where `norm`."""
    x, made = e[:, None], []
    for block, recombination in zip(generator.convolutions, generator.recombinations, strict=True):
        weight, bias = block[0].weight[:, :, :, 0], block[0].bias
        half, height = weight.shape[2] // 2, x.shape[2]
        out = bias.view(1, -1, 1, 1).repeat(len(x), 1, height, x.shape[3])
        for i in range(height):
            for k in range(weight.shape[2]):
                if 0 <= i + k - half < height:
                    out[:, :, i] += torch.einsum("oc,bcd->bod", weight[:, :, k], x[:, :, i + k - half])
        if norm:
            mean, variance = out.mean((0, 2, 3), keepdim=True), out.var((0, 2, 3), unbiased=False, keepdim=True)
            out = (out - mean) / (variance + block[1].eps).sqrt()
        out = out.tanh()
        x = torch.stack([out[:, :, i : i + pool].amax(dim=2) for i in range(0, height, pool)], dim=2)
        features = torch.stack([(recombination.weight @ row.reshape(-1) + recombination.bias).tanh() for row in x])
        made += list(features.reshape(len(x), -1, e.shape[2]).unbind(1))
    return torch.stack(made, dim=1)


@settings(max_examples=25, deadline=None)
@given(
    fields=st.integers(1, 11),
    pool=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 7]),
    channels=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    norm=st.booleans(),
)
def test_every_block_by_its_definition(fields, pool, kernel, channels, norm):
    # Odd heights pool to less than a full window, and kernels may be wider than the fields.
    generator, e = double(fields, 2, channels, kernel=kernel, pool=pool, new_maps=2, batch_norm=norm)
    torch.testing.assert_close(generator(e), naive_features(generator, e, pool, norm), rtol=1e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(fields=st.sampled_from([39, 24, 11]), pool=st.sampled_from([2, 3]), blocks=st.integers(1, 4))
def test_how_many_features_come_out(fields, pool, blocks):
    generator = FeatureGenerator(fields, 2, (2,) * blocks, pool=pool, new_maps=3)
    heights = [fields]
    for _ in range(blocks):
        heights.append(math.ceil(heights[-1] / pool))
    assert generator.num_generated == 3 * sum(heights[1:])
    assert generator(torch.zeros(1, fields, 2)).shape == (1, generator.num_generated, 2)


def test_sizes_for_criteo():
    generator = FeatureGenerator(39, 4, (2, 2, 2, 2), kernel=9)
    features = 39 + generator.num_generated
    assert features == 39 + 3 * (20 + 10 + 5 + 3) == 153
    assert IPNN(features, 4).layers[0].in_features == 153 * 4 + 153 * 152 // 2


def test_gradients():
    generator, e = double(5, 2, (2, 2), kernel=3, new_maps=1)
    assert torch.autograd.gradcheck(lambda e, *w: generator(e), (e.requires_grad_(), *generator.parameters()))


def test_identities_reproduce_the_fields_up_to_the_activations():
    generator, e = double(4, 3, (1,), kernel=1, pool=1, new_maps=1, batch_norm=False)
    with torch.no_grad():
        nn.init.ones_(generator.convolutions[0][0].weight)
        nn.init.zeros_(generator.convolutions[0][0].bias)
        nn.init.eye_(generator.recombinations[0].weight)
        nn.init.zeros_(generator.recombinations[0].bias)
    torch.testing.assert_close(generator(e), e.tanh().tanh())


def test_convolutions_never_mix_coordinates():
    generator, e = double(7, 5, (3, 2), kernel=3, batch_norm=False)
    order = torch.randperm(5)
    plain, permuted = e[:, None], e[:, None, :, order]
    for convolution in generator.convolutions:
        plain, permuted = convolution(plain), convolution(permuted)
        torch.testing.assert_close(permuted, plain[..., order])


def test_a_neighbour_beyond_the_kernel_is_seen_by_recombination_only():
    generator, e = double(9, 2, (2,), kernel=3, pool=1, batch_norm=False)
    moved = e.clone()
    moved[:, 8] += 1
    maps = [generator.convolutions[0](x[:, None])[:, :, :7] for x in (e, moved)]
    assert torch.equal(*maps)
    assert (generator(e) - generator(moved))[:, 0].abs().min() > 0


@pytest.fixture
def encoded():
    table, _ = impressions(50)
    schema = Schema.fit([table], kinds=KINDS, min_count=1)
    return schema, schema.encode(table)


class Nothing(nn.Module):
    """Generates no features."""

    num_generated = 0

    def forward(self, e):
        return e[:, :0]


def test_without_generated_features_it_is_the_model_on_top(encoded):
    schema, rows = encoded
    torch.manual_seed(0)
    embedding, body = FieldEmbedding(schema, 4), IPNN(4, 4, (6,))
    torch.testing.assert_close(FGCNN(embedding, Nothing(), body)(rows), ClickModel(embedding, body)(rows))


def test_the_model_on_top_sees_old_and_new_features_and_first_order(encoded):
    schema, rows = encoded
    torch.manual_seed(0)
    first, second = FieldEmbedding(schema, 4), FieldEmbedding(schema, 4)
    model = FGCNN(first, FeatureGenerator(4, 4, (2,), kernel=3), FM(), second=second, linear=True).eval()
    features = torch.cat([first(rows), model.generator(second(rows))], dim=1)
    expected = FM()(features) + model.first_order(rows).sum((1, 2)) + model.bias
    torch.testing.assert_close(model(rows), expected)


def test_the_second_table_learns_through_the_generator_only(encoded):
    schema, rows = encoded
    torch.manual_seed(0)
    first, second = FieldEmbedding(schema, 4), FieldEmbedding(schema, 4)
    model = FGCNN(first, FeatureGenerator(4, 4, (2,), kernel=3), IPNN(4 + 6, 4, (5,)), second=second)
    model(rows).sum().backward()
    assert first.table.table.weight.grad.abs().sum() > 0
    assert second.table.table.weight.grad.abs().sum() > 0
    model.zero_grad()
    made = model.generator(second(rows)).detach()
    model.generator = _Fixed(made)
    model(rows).sum().backward()
    assert second.table.table.weight.grad is None
    assert first.table.table.weight.grad.abs().sum() > 0


class _Fixed(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, e):
        return self.made


@settings(max_examples=20, deadline=None)
@given(fields=st.integers(2, 12), dim=st.integers(1, 6), new_maps=st.integers(1, 3))
def test_the_dense_generator_is_as_large_and_makes_as_many(fields, dim, new_maps):
    like = FeatureGenerator(fields, dim, (6, 8), kernel=3, new_maps=new_maps)
    dense = DenseGenerator(fields, dim, like)
    assert dense(torch.randn(2, fields, dim)).shape == (2, like.num_generated, dim)
    count, wanted = (sum(p.numel() for p in model.parameters()) for model in (dense, like))
    unit = fields * dim + 1 + like.num_generated * dim
    assert abs(count - wanted) <= max(unit / 2, unit + like.num_generated * dim - wanted)


@pytest.mark.parametrize(
    "options", [{}, {"head": "fm"}, {"shared_table": True}, {"dense_generator": True}], ids=lambda o: "-".join(o)
)
def test_learns_comes_back_from_a_folder_and_exports(options, tmp_path):
    (table, y), (held, held_y) = impressions(6000), impressions(2000, seed=1)
    plan = {"learning_rate": 0.01, "batch_size": 256, "max_epochs": 12, "patience": 12}
    model = FGCNNClassifier(**CHEAP, **options, **plan, kinds=KINDS).fit(table, y)
    scores = model.predict_proba(held)[:, 1]
    additive = LinearClassifier(**plan, kinds=KINDS, random_state=0).fit(table, y).decision_function(held)
    # 0.74 to 0.79 over seeds and numbers of threads, against 0.61.
    assert auc(held_y, scores) > auc(held_y, additive) + 0.08
    assert (model.model_.second is None) == ("shared_table" in options)
    model.save(tmp_path)
    np.testing.assert_array_equal(FGCNNClassifier.load(tmp_path).predict_proba(held)[:, 1], scores)
    program, rows = model.export(held[:5]).module(), model.schema_.encode(held[:9])
    found = program(rows.ids, rows.numbers, *rows.lists.values()).detach().numpy()
    np.testing.assert_allclose(found, scores[:9], atol=1e-6)  # an export may fuse operations


def test_the_mean_of_a_factorisation_machine_is_its_sum_over_the_fields():
    e = torch.randn(3, 5, 2)
    pairs = [(e[:, i] * e[:, j]).sum(1) for i in range(5) for j in range(i)]
    torch.testing.assert_close(MeanFM()(e), sum(pairs) / 5)


@pytest.mark.parametrize("dense", [False, True])
def test_a_factorisation_machine_starts_from_small_logits(dense):
    # Generated features of ordinary size make logits of several, whatever the rows.
    table, y = impressions(400)
    options = CHEAP | {"head": "fm", "dense_generator": dense, "max_epochs": 1, "learning_rate": 1e-9}
    logits = FGCNNClassifier(**options).fit(table, y).decision_function(table)
    assert np.abs(logits).max() < 0.2


@pytest.mark.slow
def test_generation_lifts_a_factorisation_machine_beyond_pairs():
    # Made-up labels: the product of three neighbouring signs, which no sum over pairs of fields can follow.
    signs = np.random.default_rng(0).integers(2, size=(6000, 8))
    y = (2 * signs - 1)[:, 2:5].prod(axis=1) > 0
    table = pd.DataFrame(signs.astype(str), columns=list("abcdefgh"))
    plan = {"learning_rate": 0.01, "batch_size": 256, "max_epochs": 40, "patience": 40}
    model = FGCNNClassifier(**CHEAP, **plan, head="fm").fit(table[:4000], y[:4000])
    found = auc(y[4000:], model.decision_function(table[4000:]))
    plain = FGCNNClassifier(**CHEAP, **plan, head="fm")
    plain._generator = lambda fields: Nothing()
    assert found > auc(y[4000:], plain.fit(table[:4000], y[:4000]).decision_function(table[4000:])) + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"channels": ()}, r"channels \(\) hold"),
        ({"pool": 0}, "pool 0"),
        ({"head": "ipn"}, "Unknown head 'ipn'. Did you mean 'ipnn'"),
    ],
)
def test_bad_options_are_named(options, message):
    table, y = impressions(100)
    with pytest.raises(ValueError, match=message):
        FGCNNClassifier(**CHEAP | options).fit(table, y)


def test_wide_and_narrow_recombinations_are_the_same(monkeypatch):
    generator, e = double(20, 4)
    narrow = generator.eval()(e)
    monkeypatch.setattr("workingpapers.methods.recommenders.fgcnn.ORDINARY", 0)
    torch.testing.assert_close(generator(e), narrow)


@pytest.mark.parametrize("kind", [FeatureGenerator, DenseGenerator])
def test_no_rows_make_no_features(kind):
    generator = FeatureGenerator(5, 4, (3, 2)).eval()
    made = generator if kind is FeatureGenerator else kind(5, 4, generator)
    assert made(torch.zeros(0, 5, 4)).shape == (0, generator.num_generated, 4)


def test_an_exported_program_is_saved_without_a_warning_and_leaves_the_model_alone(tmp_path):
    table, y = impressions(200)
    model = FGCNNClassifier(**CHEAP, max_epochs=1).fit(table, y)
    weights = [parameter for parameter in model.model_.parameters() if not parameter.is_contiguous()]
    before = model.predict_proba(table)
    program = model.export(table[:4])
    with warnings.catch_warnings(action="error"):
        torch.export.save(program, tmp_path / "model.pt2")
    assert weights  # fast on a CPU
    assert not any(weight.is_contiguous() for weight in weights)
    np.testing.assert_array_equal(model.predict_proba(table), before)
