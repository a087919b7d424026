"""Multi-scale features against their definition, tile order and all; the reconstruction score against its bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn import functional as F

from workingpapers.methods.features.multi_scale import (
    FeatureReconstruction,
    MultiScaleFeatures,
    multiscale_forward,
    naive_multiscale_forward,
    tile,
    untile,
)


class TinyTransformer(nn.Module):
    """Patches of 4 pixels, `prefix` learned tokens before them and one mixing step: every token depends on the tile."""

    def __init__(self, prefix=1, channels=6):
        super().__init__()
        self.num_features = channels
        self.patch = nn.Conv2d(3, channels, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, channels))
        self.images = 0
        self.largest_batch = 0

    def forward(self, x):
        self.images += len(x)
        self.largest_batch = max(self.largest_batch, len(x))
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), self.patch(x).flatten(2).transpose(1, 2)], dim=1)
        return tokens + torch.softmax(tokens @ tokens.transpose(1, 2), dim=2) @ tokens


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- tiles


@given(n=st.integers(1, 4), height=st.integers(1, 3), width=st.integers(1, 3), batch=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_untile_inverts_tile(n, height, width, batch):
    x = torch.rand(batch, 2, n * height, n * width)
    tiles = tile(x, n)
    assert tiles.shape == (n * n * batch, 2, height, width)
    assert torch.equal(untile(tiles, n), x)


def test_tiles_are_the_outer_index_and_images_the_inner():
    x = torch.arange(2 * 16.0).reshape(2, 1, 4, 4)
    expected = [x[:, :, :2, :2], x[:, :, :2, 2:], x[:, :, 2:, :2], x[:, :, 2:, 2:]]
    assert torch.equal(tile(x, 2), torch.cat(expected))


def test_bad_tiles_are_named():
    with pytest.raises(ValueError, match="5 x 6 cannot be cut into 2 x 2"):
        tile(torch.zeros(1, 3, 5, 6), 2)
    with pytest.raises(ValueError, match="6 tiles are not a multiple of 2 x 2"):
        untile(torch.zeros(6, 3, 2, 2), 2)


# --- the forward pass


@given(
    prefix=st.integers(0, 2),
    sizes=st.lists(st.sampled_from([8, 16, 24, 32]), min_size=1, max_size=3),
    chunked=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_definition(prefix, sizes, chunked):
    model = TinyTransformer(prefix)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = multiscale_forward(model, x, img_sizes=sizes, tile_size=8, num_prefix_tokens=prefix, chunked=chunked)
        expected = naive_multiscale_forward(model, x, sizes, tile_size=8, num_prefix_tokens=prefix)
    assert features.shape == (3, prefix + (sizes[0] // 4) ** 2, 6 * len(sizes))
    torch.testing.assert_close(features, expected, rtol=0, atol=2e-5)  # other summation orders in float32


def test_one_scale_is_the_backbone_itself():
    model, x = TinyTransformer(), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(multiscale_forward(model, x, scales=(1,), num_prefix_tokens=1), model(x))


def test_tiles_change_nothing_for_a_backbone_without_context():
    patches = nn.Conv2d(3, 5, 4, 4)
    x = torch.randn(2, 3, 16, 16)
    tiled, whole = (
        multiscale_forward(patches, x, scales=(1, 2), tile_size=size, ref=1, output_fmt="NCHW") for size in (8, 32)
    )
    torch.testing.assert_close(tiled, whole)


def test_blocks_of_channels_are_the_single_scales():
    model, x = nn.Conv2d(3, 5, 4, 4), torch.randn(2, 3, 16, 16)
    features = multiscale_forward(model, x, scales=(1, 2, 3), output_fmt="NCHW")
    assert features.shape == (2, 15, 4, 4)
    for i, scale in enumerate((1, 2, 3)):
        alone = multiscale_forward(model, x, scales=(scale,), tile_size=16, output_fmt="NCHW")
        torch.testing.assert_close(features[:, 5 * i : 5 * i + 5], F.avg_pool2d(alone, scale))


def test_a_finer_reference_repeats_the_coarser_grid():
    model, x = nn.Conv2d(3, 5, 4, 4), torch.randn(2, 3, 16, 16)
    features = multiscale_forward(model, x, scales=(1, 2), ref=1, output_fmt="NCHW")
    assert features.shape == (2, 10, 8, 8)
    torch.testing.assert_close(features[:, :5], model(x).repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_permuting_the_images_permutes_prefix_and_grid():
    model, x = TinyTransformer(prefix=2), torch.randn(4, 3, 16, 16)
    order = torch.tensor([2, 0, 3, 1])
    run = lambda images: multiscale_forward(model, images, scales=(1, 2), num_prefix_tokens=2)  # noqa: E731
    torch.testing.assert_close(run(x[order]), run(x)[order])


def test_the_native_image_is_tiled_at_the_given_size():
    # Scale 1 of a native image with tiles of the base size sees the real pixels.
    model, native = nn.Conv2d(3, 5, 4, 4), torch.randn(2, 3, 32, 32)
    features = multiscale_forward(model, native, scales=(0.5, 1), tile_size=16, output_fmt="NCHW")
    torch.testing.assert_close(features[:, 5:], F.avg_pool2d(model(native), 2))


def test_the_cost_is_the_sum_of_the_squared_scales():
    model = TinyTransformer()
    wrapped = MultiScaleFeatures(model, scales=(1, 2, 3), num_prefix_tokens=1)
    assert wrapped.num_features == 18
    assert sum(p.numel() for p in wrapped.parameters()) == sum(p.numel() for p in model.parameters())
    assert wrapped(torch.randn(2, 3, 16, 16)).shape == (2, 1 + 16, 18)
    assert model.images == 14 * 2
    assert model.largest_batch == 9 * 2
    model.images = model.largest_batch = 0
    untiled = MultiScaleFeatures(model, scales=(0.5, 1), num_prefix_tokens=1)
    untiled(torch.randn(2, 3, 16, 16))
    assert model.images == 2 * 2  # without a tile size no scale up to 1 is cut


def test_chunks_equal_the_whole_and_hold_one_batch():
    model, x = TinyTransformer(), torch.randn(2, 3, 16, 16)
    whole = MultiScaleFeatures(model, num_prefix_tokens=1)(x)
    model.largest_batch = 0
    chunked = MultiScaleFeatures(model, num_prefix_tokens=1, chunked=True)(x)
    assert model.largest_batch == 2
    torch.testing.assert_close(chunked, whole)


def test_low_precision_is_resized_in_single():
    seen = []

    def record(images):
        seen.append(images)
        return images

    x = torch.zeros(1, 3, 16, 16).bfloat16()
    x[..., 8:] = 1.3  # a step, at which bicubic interpolation overshoots
    multiscale_forward(record, x, scales=(1, 2), output_fmt="NCHW")
    large = F.interpolate(x.float(), size=32, mode="bicubic").bfloat16()
    assert torch.equal(untile(seen[1], 2), large)
    assert large.max() > x.max()  # the overshoot is kept


def test_gradients_reach_the_image():
    model, x = nn.Conv2d(3, 2, 2, 2).double(), torch.randn(1, 3, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: multiscale_forward(model, t, scales=(1, 2), output_fmt="NCHW"), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1, 1.35)}, "an image of 21 x 21 cannot be cut into 2 x 2 equal tiles"),
        ({"scales": ()}, "at least one pixel"),
        ({"scales": (0.01,)}, r"at least one pixel; got the sizes \[0\]"),
        ({"ref": 2}, "ref is 2; with 2 scales it must be 0 to 1"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"num_prefix_tokens": 0}, "17 tokens without 0 prefix tokens are no square grid"),
        ({"num_prefix_tokens": -1}, "num_prefix_tokens is -1"),
        ({"output_fmt": "NCHW"}, "num_prefix_tokens is 1; it must be 0 or more, and 0 with 'NCHW'"),
        ({"output_fmt": "NCHW", "num_prefix_tokens": 0}, r"returned \(2, 17, 6\) for 2 images; expected \(b, channels"),
        ({"output_fmt": "bnc"}, "output_fmt is 'bnc'; allowed: 'NLC', 'NCHW'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        multiscale_forward(TinyTransformer(), torch.randn(2, 3, 16, 16), **{"num_prefix_tokens": 1, **options})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 24), "square.*pad or resize rectangular images"),
        (torch.zeros(3, 16, 16), "square"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floating point"),
        (torch.full((1, 3, 16, 16), torch.nan), "NaN or infinity"),
    ],
)
def test_bad_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        multiscale_forward(TinyTransformer(), images, num_prefix_tokens=1)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_backbone_that_returns_no_tensor_is_named(chunked):
    with pytest.raises(ValueError, match="the backbone returned dict; it must return a tensor"):
        multiscale_forward(lambda x: {"last_hidden_state": x}, torch.zeros(1, 3, 16, 16), chunked=chunked)


def test_a_module_can_be_exported():
    model, images = MultiScaleFeatures(TinyTransformer(), num_prefix_tokens=1), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_a_module_names_bad_options_when_it_is_made():
    with pytest.raises(ValueError, match="ref is 3"):
        MultiScaleFeatures(TinyTransformer(), img_sizes=(16, 32, 48), ref=3)


# --- reconstruction


@parametrize_with_checks([FeatureReconstruction()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def source_and_target(noise, rows=2000):
    rng = np.random.default_rng(0)
    source = rng.normal(size=(rows, 6)) * np.geomspace(1e-3, 1e3, 6) + 5
    signal = (source - 5) / np.geomspace(1e-3, 1e3, 6) @ rng.normal(size=(6, 4))
    return source, 10 + signal / signal.std(axis=0) + noise * rng.normal(size=(rows, 4))


def test_the_ratio_is_the_noise_that_no_map_explains():
    X, y = source_and_target(noise=0.5)
    model = FeatureReconstruction().fit(X[:1000], y[:1000])
    ratio = model.loss_ratio(X[1000:], y[1000:])
    assert ratio == pytest.approx(0.25 / 1.25, rel=0.1)  # sampling noise of 1000 rows
    assert model.score(X[1000:], y[1000:]) == pytest.approx(1 - ratio)
    assert model.information(X[1000:], y[1000:]) == pytest.approx(-math.log(ratio))


def test_the_bounds_of_the_ratio():
    X, y = source_and_target(noise=0)
    assert FeatureReconstruction(alpha=0).fit(X, y).loss_ratio(X, y) < 1e-20
    unrelated = np.random.default_rng(1).normal(size=(2000, 6))
    assert FeatureReconstruction().fit(unrelated, y).loss_ratio(unrelated, y) == pytest.approx(1, abs=0.01)


def test_on_its_own_rows_the_score_is_the_variance_weighted_r2():
    X, y = source_and_target(noise=1, rows=50)
    model = FeatureReconstruction().fit(X, y * [1, 2, 3, 4])
    expected = r2_score(y * [1, 2, 3, 4], model.predict(X), multioutput="variance_weighted")
    assert model.score(X, y * [1, 2, 3, 4]) == pytest.approx(expected)


def test_bad_reconstructions_are_named():
    X, y = source_and_target(noise=1, rows=20)
    with pytest.raises(ValueError, match="alpha is -1"):
        FeatureReconstruction(alpha=-1).fit(X, y)
    with pytest.raises(ValueError, match=r"y has shape \(20, 3\); the map predicts \(20, 4\)"):
        FeatureReconstruction().fit(X, y).score(X, y[:, :3])
    with pytest.raises(ValueError, match="the ratio is undefined"):
        FeatureReconstruction().fit(X, np.ones((20, 2))).score(X, np.ones((20, 2)))
