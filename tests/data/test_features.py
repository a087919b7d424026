"""Extraction: every image once, in order, whatever the batches; read from the cache afterwards; nothing half done."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from workingpapers.data import features, images
from workingpapers.data.backbones import ModuleBackbone
from workingpapers.data.features import extract, levels, pooled, split_levels, tokens
from workingpapers.data.images import Encoded
from workingpapers.data.types import LabelledData, View
from workingpapers.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Tiny(nn.Module):
    """Four convolutions' worth of nothing: a map (B, 6, h/4, w/4) and a counter of the images that it has seen."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 6, 4, stride=4)
        self.convolution.weight.data *= scale
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(6)
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return self.norm(self.dropout(self.convolution(x)))

    def levels(self, x):
        return [x, self(x)]


def backbone(scale=1.0, name="tiny"):
    made = ModuleBackbone(name, Tiny(scale), image_size=16)
    made.module.seen = 0
    return made


def pictures(count=7, seed=0, fingerprint="abc"):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (rng.integers(10, 30), 20, 3), dtype=np.uint8) for _ in range(count)]
    labels = np.zeros(count, dtype=np.int64)
    return LabelledData(name="pictures", fingerprint=fingerprint, labels=labels, class_names=("a",), images=arrays)


def expected(data, model, view):
    with torch.inference_mode():
        rows = [view.read(model, model.preprocess([image], view.size))[0] for image in data.images]
    return torch.stack(rows).half().numpy()


@pytest.mark.parametrize(("view", "shape"), [(pooled(16), (6,)), (tokens(16), (16, 6)), (levels(16), (9,))])
@pytest.mark.parametrize("per_batch", [1, 3, 7, 100])
def test_equals_one_image_at_a_time(view, shape, per_batch, monkeypatch):
    monkeypatch.setattr(features, "PIXELS_PER_BATCH", per_batch * 16 * 16)
    data, model = pictures(), backbone()
    out = extract(data, model, view, progress=False)
    assert out.dtype == np.float16
    assert out.shape == (7, *shape)
    assert isinstance(out, np.memmap)
    assert not out.flags.writeable
    # Other batch sizes may sum in another order: one step of float16 (2^-10 of the value) apart at most.
    np.testing.assert_allclose(out.astype(float), expected(data, model, view).astype(float), rtol=2**-10, atol=1e-6)


def test_the_model_runs_in_eval_mode_without_gradients():
    data, model = pictures(), backbone()
    grads = []

    def read(inner, batch):
        grads.append((torch.is_grad_enabled(), inner.module.training))
        return inner.pooled(batch)

    extract(data, model, View("own", 16, read), progress=False)
    assert set(grads) == {(False, False)}
    assert torch.equal(model.module.norm.running_mean, torch.zeros(6))


def test_a_cache_hit_runs_no_model_and_reads_no_image():
    model = backbone()
    first = extract(pictures(), model, pooled(16), progress=False)
    assert model.module.seen == 7 + 1  # one more to learn the shape
    again = backbone()
    unreadable = pictures()
    unreadable.images[:] = [None] * 7
    second = extract(unreadable, again, pooled(16), progress=False)
    assert again.module.seen == 0
    np.testing.assert_array_equal(first, second)


def test_what_changes_the_features_changes_the_entry(monkeypatch):
    def computed(data=None, model=None, view=None):
        model = model or backbone()
        extract(data or pictures(), model, view or pooled(16), progress=False)
        return model.module.seen > 0

    assert computed()
    assert not computed()
    assert not computed(model=backbone(name="the same model by another name"))
    assert computed(data=pictures(fingerprint="abd"))
    assert computed(model=backbone(scale=1.5))
    assert computed(view=pooled(20))
    assert computed(view=tokens(16))
    assert computed(view=View("pooled", 16, pooled(16).read, version=2))
    monkeypatch.setattr(torch, "__version__", "9.9.1")
    assert computed()
    monkeypatch.setattr(torch, "__version__", "9.9.2")
    assert not computed()


class Breaks(Exception):
    pass


@pytest.mark.parametrize("error", [Breaks, KeyboardInterrupt])
def test_a_broken_extraction_leaves_nothing_and_is_repeated(error, cache, monkeypatch):
    monkeypatch.setattr(features, "PIXELS_PER_BATCH", 2 * 16 * 16)
    data, model, threads = pictures(), backbone(), torch.get_num_threads()
    calls = []

    def read(inner, batch):
        calls.append(len(batch))
        if len(calls) == 4:
            raise error
        return inner.pooled(batch)

    with pytest.raises(error):
        extract(data, model, View("pooled", 16, read), progress=False)
    assert [path for path in (cache / "features").rglob("*") if path.is_file()] == []
    assert torch.get_num_threads() == threads
    out = extract(data, model, pooled(16), progress=False)
    np.testing.assert_allclose(out, expected(data, model, pooled(16)), rtol=2**-10, atol=1e-6)


def test_an_image_that_cannot_be_read_is_named():
    data = pictures()
    data.images[5] = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"pictures, from image 0 on: image 5 is uint8 \(4, 4\)"):
        extract(data, backbone(), pooled(16), progress=False)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (7e4, "float16's largest")]
)
def test_features_that_float16_cannot_hold_are_refused(value, message, cache, monkeypatch):
    monkeypatch.setattr(features, "PIXELS_PER_BATCH", 4 * 16 * 16)
    rows = iter([[0.0], [0.0] * 4, [0.0, value, value]])

    def read(inner, batch):
        return torch.tensor(next(rows))[:, None]

    with pytest.raises(UserError, match=rf"'tiny' gives .*{message}.* for 2 of the images 4 to 6 .*image 5\."):
        extract(pictures(), backbone(), View("own", 16, read), progress=False)
    assert list((cache / "features").rglob("*.npy")) == []


class Own:
    """A sequence of somebody's own that reads when indexed."""

    def __init__(self, sources):
        self.sources = sources

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        return images.read_image(self.sources[index])


@pytest.mark.parametrize("kind", [Encoded, Own])
def test_photographs_are_decoded_a_few_at_a_time(tmp_path, monkeypatch, kind):
    """A batch of them, all decoded, would take gigabytes."""
    sources = [tmp_path / f"{i}.png" for i in range(12)]
    for i, source in enumerate(sources):
        Image.new("RGB", (20, 10), (20 * i, 0, 0)).save(source)
    data, model = dataclasses.replace(pictures(12), images=kind(sources)), backbone()
    whole = expected(data, model, pooled(16))
    read, alive, most = images.read_image, set(), []

    def watched(source):
        image = read(source)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most.append(len(alive))
        return image

    monkeypatch.setattr(images, "read_image", watched)
    monkeypatch.setattr(features, "_cores", lambda: 2)
    np.testing.assert_allclose(extract(data, model, pooled(16), progress=False), whole, rtol=2**-10, atol=1e-5)
    assert len(most) > 12  # the first is read once more, for the shape
    assert max(most) <= 4  # two in the making, and as many that are just being let go of


def test_progress_reports_every_image_once(monkeypatch):
    monkeypatch.setattr(features, "PIXELS_PER_BATCH", 3 * 16 * 16)
    seen = []
    extract(pictures(), backbone(), pooled(16), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_the_bar_shows_on_stderr_and_only_when_it_takes_long(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    extract(pictures(), backbone(), pooled(16))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    extract(pictures(), backbone(), pooled(20))
    out, err = capsys.readouterr()
    assert out == ""
    assert "pictures with tiny" in err
    assert "images/s" in err


def given(array):
    return LabelledData(
        name="given",
        fingerprint="x",
        labels=np.zeros(len(array), dtype=np.int64),
        class_names=("a",),
        features=array,
    )


def test_features_of_the_data_are_returned_as_they_are():
    vectors, grids = np.random.default_rng(0).normal(size=(4, 3)), np.ones((4, 5, 3), dtype=np.float16)
    model = backbone()
    for array, view in ((vectors, pooled(16)), (grids, tokens(16))):
        out = extract(given(array), model, view)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, array.astype(np.float32))
    assert model.module.seen == 0


@pytest.mark.parametrize(
    ("array", "view", "wanted"),
    [
        (np.ones((4, 3)), tokens(16), r"tokens \(N, L, D\) or images"),
        (np.ones((4, 5, 3)), pooled(16), r"vectors \(N, D\) or images"),
        (np.ones((4, 3)), levels(16), "needs images"),
    ],
)
def test_features_that_do_not_fit_the_view_are_refused(array, view, wanted):
    with pytest.raises(UserError, match=rf"'given' has features .* view '{view.name}' .*{wanted}"):
        extract(given(array), backbone(), view)


def test_data_without_anything_are_refused():
    nothing = LabelledData(name="nothing", fingerprint="x", labels=np.zeros(0, np.int64), class_names=("a",))
    with pytest.raises(UserError, match="neither images nor features"):
        extract(nothing, backbone(), pooled(16))
    with pytest.raises(UserError, match="has no images"):
        extract(pictures(0), backbone(), pooled(16))


def test_levels_are_split_where_they_were_joined():
    data, model = pictures(), backbone()
    out = extract(data, model, levels(16), progress=False)
    first, second = split_levels(out, model, 16)
    assert (first.shape, second.shape) == ((7, 3), (7, 6))
    with torch.inference_mode():
        maps = model.levels(model.preprocess([data.images[2]], 16))
    np.testing.assert_allclose(first[2], maps[0][0].mean((1, 2)), rtol=2**-10, atol=1e-5)
    np.testing.assert_allclose(second[2], maps[1][0].mean((1, 2)), rtol=2**-10, atol=1e-5)
    with pytest.raises(ValueError, match=r"need \(N, 9\)"):
        split_levels(out[:, :8], model, 16)


def test_a_pipe_gets_no_progress(capfd, monkeypatch):
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1)
    extract(pictures(), backbone(), pooled(16))
    assert capfd.readouterr().err == ""
