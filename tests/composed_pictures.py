"""A data set whose objects are known to the pixel: cut-outs laid on noise or photographs, and their masks.

The cut-outs are those of Debian's openclipart-png or of npm's @lobehub/fluent-emoji-3d, where one is installed; else
shapes are drawn. Their alpha is the mask. Picture i depends on the seed and on i alone, not on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from paths import ROOT

_PACKAGES = (
    (Path("/usr/share/openclipart/png"), "**/*.png"),
    (ROOT / "node_modules" / "@lobehub" / "fluent-emoji-3d" / "assets", "*.webp"),
    (ROOT / ".cache" / "node_modules" / "@lobehub" / "fluent-emoji-3d" / "assets", "*.webp"),
)
_SHAPES = ("disc", "ring", "square", "triangle", "star", "cross")
_MOST_CUT_OUTS = 200


@dataclass(frozen=True)
class ComposedPicture:
    """A picture of the data set.

    Args:
        key: Its path in the folder of the pictures, such as disc/00003.jpg.
        label: The name of its class, which is its folder.
        mask: The path of its mask in the folder of the masks.
        box: The smallest box around the object: left, top, right, bottom.
    """

    key: str
    label: str
    mask: str
    box: tuple[int, int, int, int]


def cut_outs() -> list[Path]:
    """The files of the first package of cut-outs that is installed, 200 at most; empty where none is."""
    for folder, pattern in _PACKAGES:
        if files := sorted(folder.glob(pattern)):
            return files[:: -(-len(files) // _MOST_CUT_OUTS)]  # of every kind, which have similar names
    return []


def drawn_shape(name: str, size: int = 256) -> Image.Image:
    """A shape in RGBA. Around it, alpha is 0."""
    image = Image.new("RGBA", (size, size))
    draw, last = ImageDraw.Draw(image), size - 1
    middle, third = size // 2, size // 3
    match name:
        case "disc":
            draw.ellipse((0, 0, last, last), "crimson")
        case "ring":
            draw.ellipse((0, 0, last, last), "gold")
            draw.ellipse((third, third, last - third, last - third), (0, 0, 0, 0))
        case "square":
            draw.rectangle((0, 0, last, last), "royalblue")
        case "triangle":
            draw.polygon([(middle, 0), (last, last), (0, last)], "seagreen")
        case "star":
            angles = np.arange(10) * np.pi / 5 - np.pi / 2
            radii = np.where(np.arange(10) % 2 == 0, middle, middle * 0.45)
            points = zip(middle + radii * np.cos(angles), middle + radii * np.sin(angles), strict=True)
            draw.polygon([(float(x), float(y)) for x, y in points], "darkorange")
        case "cross":
            draw.rectangle((third, 0, last - third, last), "purple")
            draw.rectangle((0, third, last, last - third), "purple")
        case _:
            raise ValueError(f"no shape {name!r}")
    return image


def compose(
    folder: Path,
    count: int,
    *,
    size: tuple[int, int] = (500, 375),
    seed: int = 0,
    photographs: Sequence[Path] = (),
    files: Sequence[Path] | None = None,
) -> list[ComposedPicture]:
    """Write pictures and masks.

    Args:
        folder: Gets pictures/<class>/<number>.jpg and masks/<class>/<number>.png.
        count: How many.
        size: Width and height of each.
        seed: Of what is drawn at random.
        photographs: What the backgrounds are cut from; without any they are smooth noise.
        files: The cut-outs; None for `cut_outs()`. Without any, shapes are drawn.

    Returns:
        What each picture has, in the sequence of their numbers.
    """
    files = cut_outs() if files is None else list(files)
    names = [file.stem for file in files] if files else list(_SHAPES)
    grounds = [Image.open(each).convert("RGB") for each in photographs]
    composed = []
    for number in range(count):
        draw = np.random.default_rng((seed, number))
        choice = int(draw.integers(len(names)))
        name = names[choice]
        cut_out = Image.open(files[choice]).convert("RGBA") if files else drawn_shape(name)
        ground = _photograph(draw, grounds, size) if grounds else _noise(draw, size)
        mask = _laid_on(draw, ground, cut_out)
        picture = ComposedPicture(f"{name}/{number:05d}.jpg", name, f"{name}/{number:05d}.png", mask.getbbox())
        for kind, relative in (("pictures", picture.key), ("masks", picture.mask)):
            (folder / kind / relative).parent.mkdir(parents=True, exist_ok=True)
        ground.save(folder / "pictures" / picture.key, quality=92)
        mask.save(folder / "masks" / picture.mask, compress_level=1)
        composed.append(picture)
    return composed


def _noise(draw: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    small = draw.integers(0, 256, (size[1] // 25 + 2, size[0] // 25 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def _photograph(draw: np.random.Generator, grounds: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """A part of a photograph, with the shape of the picture."""
    ground = grounds[int(draw.integers(len(grounds)))]
    scale = min(ground.width / size[0], ground.height / size[1]) * draw.uniform(0.6, 1)
    width, height = size[0] * scale, size[1] * scale
    left, top = draw.uniform(0, ground.width - width), draw.uniform(0, ground.height - height)
    return ground.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def _laid_on(draw: np.random.Generator, ground: Image.Image, cut_out: Image.Image) -> Image.Image:
    """Lay a cut-out on a background, off its centre. Returns where it is: the mask, 0 and 255."""
    cut_out = cut_out.crop(cut_out.getchannel("A").getbbox())
    side = min(ground.size) * draw.uniform(0.25, 0.45)
    scale = side / max(cut_out.size)
    width, height = max(2, round(cut_out.width * scale)), max(2, round(cut_out.height * scale))
    cut_out = cut_out.resize((width, height), Image.Resampling.LANCZOS)
    free = ground.width - width, ground.height - height
    while True:  # until its centre is an eighth of the side, at least, from that of the picture
        left, top = int(draw.integers(free[0] + 1)), int(draw.integers(free[1] + 1))
        if abs(left - free[0] / 2) > ground.width / 8 or abs(top - free[1] / 2) > ground.height / 8:
            break
    ground.paste(cut_out, (left, top), cut_out)
    mask = Image.new("L", ground.size)
    mask.paste(cut_out.getchannel("A").point(lambda alpha: 255 * (alpha > 127)), (left, top))
    return mask
