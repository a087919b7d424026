"""Letters of several alphabets in several fonts: many classes with few examples, drawn on the spot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workingpapers.data.cache import cached_array
from workingpapers.data.types import LabelledData

SIZE = 32
PER_CLASS = 24
ALPHABETS = {"Greek": (0x391, 0x3C9), "Cyrillic": (0x410, 0x44F), "Armenian": (0x531, 0x556)}
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono")
VERSION = 1


def letters() -> list[str]:
    """Return the letters that are classes: those of which no other is a look-alike in these fonts' upright form."""
    from PIL import ImageFont

    font = ImageFont.truetype(_font("DejaVuSans"), SIZE)
    found: dict[bytes, str] = {}
    for first, last in ALPHABETS.values():
        for code in range(first, last + 1):
            if chr(code).isalpha():
                found.setdefault(bytes(font.getmask(chr(code))), chr(code))
    return list(found.values())


def _font(name: str) -> str:
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/{name}.ttf"


def _draw() -> Iterator[NDArray[np.uint8]]:
    """Yield the examples of each letter: font, angle, place and size vary."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(0)
    fonts = [{size: ImageFont.truetype(_font(name), size) for size in (20, 22, 24)} for name in FONTS]
    for letter in letters():
        images = []
        for _ in range(PER_CLASS):
            font = fonts[rng.integers(len(fonts))][int(rng.choice([20, 22, 24]))]
            canvas = Image.new("L", (SIZE, SIZE), 255)
            x, y = SIZE / 2 + rng.uniform(-3, 3, size=2)
            ImageDraw.Draw(canvas).text((x, y), letter, fill=0, font=font, anchor="mm")
            angle = rng.uniform(-20, 20)
            turned = canvas.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=255)
            images.append(np.repeat(np.asarray(turned)[..., None], 3, axis=2))
        yield np.stack(images)


def glyphs() -> LabelledData:
    """Return images (32, 32) of Greek, Cyrillic and Armenian letters, 24 examples each, slanted and turned by ±20°."""
    names = letters()
    key = hashlib.sha256(repr((names, FONTS, SIZE, PER_CLASS, VERSION)).encode()).hexdigest()[:32]
    shape = (len(names) * PER_CLASS, SIZE, SIZE, 3)
    about = {"data": "glyphs", "version": VERSION}
    images = cached_array(key, "images", shape=shape, dtype=np.uint8, compute=_draw, about=about)
    return LabelledData(
        name="glyphs",
        fingerprint=key,
        labels=np.repeat(np.arange(len(names)), PER_CLASS),
        class_names=tuple(names),
        images=images,
    )
