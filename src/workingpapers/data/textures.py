"""Textures with planted defects: scikit-image's brick, grass and gravel for anomaly detection.

Each photograph (512 × 512, grey) is cut into 128-pixel tiles, dealt to train and test like the colours of a
chessboard, and an image is a random 96-pixel crop inside one tile. Train and test thus share no pixel, but both cover
the whole photograph: halves of it would differ in light, and every test image would look anomalous. Half of the test
images get one defect each, of four kinds in turn. The defects are simulated, and say so wherever they are shown:

    scratch        a thin bent line, brighter or darker than what it crosses, fading along its length
    displacement   a patch cut out and put back elsewhere, lighter or darker, with a faint shadow along two edges
    stain          a blob with an irregular outline that darkens or lightens the texture without hiding it
    foreign        another texture shows through a patch with a soft edge, at the place's own mean brightness
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workingpapers.data.checks import checked
from workingpapers.data.images import Pixels
from workingpapers.data.types import LabelledData
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXTURES = ("brick", "grass", "gravel")
KINDS = ("scratch", "displacement", "stain", "foreign")
TILE, CROP = 128, 96
TRAIN, TEST = 120, 60  # normal images of either part; as many defective ones as normal ones in test
VISIBLE = 0.25  # a pixel counts as anomalous where the defect contributes at least this share


def textures(name: str) -> LabelledData:
    """Return a texture: 120 normal images to train on; 60 normal and 60 defective ones, with masks, to test on.

    Args:
        name: "brick", "grass" or "gravel".

    Raises:
        UserError: scikit-image is not installed.
    """
    import numpy as np

    photographs = {texture: _photograph(texture) for texture in TEXTURES}
    rng = np.random.default_rng([TEXTURES.index(name), 2])
    train = [_crop(photographs[name], rng, i, colour=0) for i in range(TRAIN)]
    normal = [_crop(photographs[name], rng, i, colour=1) for i in range(TEST)]
    others = [photographs[texture] for texture in TEXTURES if texture != name]
    planted = [
        plant(KINDS[i % len(KINDS)], _crop(photographs[name], rng, i, colour=1), others[i // len(KINDS) % 2], rng)
        for i in range(TEST)
    ]
    clean = np.zeros((TRAIN + TEST, CROP, CROP), dtype=bool)
    images = np.stack([*train, *normal, *(image for image, _ in planted)])
    return checked(
        LabelledData(
            name=f"textures-{name}",
            fingerprint="",
            labels=np.repeat(np.array([0, 1]), (TRAIN + TEST, TEST)),
            class_names=("normal", "anomalous"),
            images=Pixels(images.round().astype(np.uint8)),
            part=np.repeat(np.array(["train", "test"]), (TRAIN, 2 * TEST)),
            masks=list(np.concatenate([clean, np.stack([mask for _, mask in planted])])),
        )
    )


def brick() -> LabelledData:
    """Return `textures("brick")`."""
    return textures("brick")


def grass() -> LabelledData:
    """Return `textures("grass")`."""
    return textures("grass")


def gravel() -> LabelledData:
    """Return `textures("gravel")`."""
    return textures("gravel")


def _photograph(name: str) -> NDArray[np.float64]:
    try:
        from skimage import data
    except ImportError as error:
        raise UserError(f"textures-{name} needs scikit-image: pip install 'workingpapers[packaged]'") from error
    photograph: NDArray[np.float64] = getattr(data, name)().astype(float)
    return photograph


def _crop(photograph: NDArray[np.float64], rng: np.random.Generator, i: int, *, colour: int) -> NDArray[np.float64]:
    """Return the i-th crop inside the tiles of one colour, tile after tile."""
    side = photograph.shape[0] // TILE
    tiles = [(row, column) for row in range(side) for column in range(side) if (row + column) % 2 == colour]
    row, column = tiles[i % len(tiles)]
    down, across = rng.integers(0, TILE - CROP + 1, size=2)
    top, left = row * TILE + down, column * TILE + across
    return photograph[top : top + CROP, left : left + CROP].copy()


def plant(
    kind: str, image: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return an image (96, 96) with one defect, in 0..255, and its mask.

    Args:
        kind: one of `KINDS`.
        image: (96, 96) grey values in 0..255.
        other: another texture's photograph, for the foreign patch.
        rng: draws place, size and strength.
    """
    import numpy as np

    share, paint = {"scratch": _scratch, "displacement": _displacement, "stain": _stain, "foreign": _foreign}[kind](
        image, other, rng
    )
    return np.clip(image + share * (paint - image), 0, 255), share >= VISIBLE


Layer = tuple["NDArray[np.float64]", "NDArray[np.float64]"]  # the defect's share of each pixel, and its own grey values


def _scratch(image: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator) -> Layer:
    import numpy as np

    length, width = rng.uniform(35, 65), rng.uniform(1.5, 3.0)
    angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.6, 0.6)
    along = np.linspace(-0.5, 0.5, 200)
    heading = angle + bend * along + np.cumsum(rng.normal(scale=0.012, size=200))
    path = np.cumsum(np.stack([np.sin(heading), np.cos(heading)]), axis=1) * length / 200
    path += rng.uniform(36, 60, size=(2, 1)) - path.mean(axis=1, keepdims=True)
    rows, columns = np.mgrid[:CROP, :CROP]
    distance = np.hypot(rows[..., None] - path[0], columns[..., None] - path[1])
    nearest = distance.argmin(axis=2)
    fade = np.clip(4 * (0.5 - np.abs(along)), 0, 1)[nearest]  # thinner and fainter towards both ends
    share = np.clip(0.5 + width / 2 * (0.4 + 0.6 * fade) - distance.min(axis=2), 0, 1) * (0.5 + 0.45 * fade)
    shift = rng.choice([-1, 1]) * rng.uniform(1.8, 3.0) * image.std()
    local = _blur(image, 4)
    bright = local + (shift if 25 < np.median(local) + shift < 230 else -shift)
    return share, bright + rng.normal(scale=8, size=image.shape)


def _displacement(image: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator) -> Layer:
    import numpy as np

    height, width = rng.integers(26, 42, size=2)
    place, origin = (rng.integers(4, CROP - 4 - np.array([height, width])) for _ in range(2))
    while np.abs(place - origin).max() < 12:
        origin = rng.integers(4, CROP - 4 - np.array([height, width]))
    piece = image[origin[0] : origin[0] + height, origin[1] : origin[1] + width]
    inside = (slice(place[0], place[0] + height), slice(place[1], place[1] + width))
    paint, share = image.copy(), np.zeros_like(image)
    paint[inside] = np.rot90(piece, 2 if rng.random() < 0.5 else 0) * rng.choice([0.85, 1.15])
    share[inside] = 1
    gap = _blur(share, 1.2) * (1 - np.roll(share, rng.choice([-2, 2], size=2), axis=(0, 1)))  # two edges cast a shadow
    return _blur(share, 0.7), paint * (1 - 0.4 * np.clip(2 * _blur(gap, 0.7), 0, 1))


def _stain(image: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator) -> Layer:
    import numpy as np

    share = _blob(rng, radius=rng.uniform(12, 20), rough=0.22, soft=1.8)
    strength = rng.uniform(0.45, 0.65)
    inner = share * (0.8 + 0.2 * np.clip(share - _blur(share, 4), 0, 1) / 0.5)  # drying leaves a stronger rim
    dark = image.mean() > 70
    liquid = image * (1 - strength) if dark else image + strength * (230 - image)
    return inner, _blur(liquid, 0.7)


def _foreign(image: NDArray[np.float64], other: NDArray[np.float64], rng: np.random.Generator) -> Layer:
    import numpy as np

    share = _blob(rng, radius=rng.uniform(13, 21), rough=0.15, soft=1.5)
    top, left = rng.integers(0, other.shape[0] - CROP, size=2)
    patch = other[top : top + CROP, left : left + CROP]
    inside = share > 0.5
    spread = image.std() / max(patch[inside].std(), 1.0)
    return share, image[inside].mean() + (patch - patch[inside].mean()) * np.clip(spread, 0.6, 1.6)


def _blob(rng: np.random.Generator, *, radius: float, rough: float, soft: float) -> NDArray[np.float64]:
    """Return a blob with an irregular outline: 1 inside, 0 outside, falling over about `soft` pixels."""
    import numpy as np

    centre = rng.uniform(radius + 4, CROP - radius - 4, size=2)
    rows, columns = np.mgrid[:CROP, :CROP]
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    stretch = rng.uniform(0.75, 1.0)
    tilt = rng.uniform(0, np.pi)
    outline = np.full_like(angle, 1.0)
    for order in range(2, 8):
        outline += rough / order * 1.5 * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) * rng.normal()
    outline *= np.hypot(np.cos(angle - tilt), stretch * np.sin(angle - tilt))
    distance = np.hypot(rows - centre[0], columns - centre[1])
    return 1 / (1 + np.exp((distance - radius * outline) / soft * 2))


def _blur(values: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return values blurred by a Gaussian of this standard deviation in pixels, edges repeated."""
    import numpy as np

    reach = int(np.ceil(3 * radius))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=axis)
        values = windows @ kernel
    return values
