"""Frost: a piece of a photograph of frost blended with the image.

Source: Hendrycks and Dietterich (arXiv 1903.12261) and their generators.
"""

import importlib.metadata
from functools import lru_cache
from pathlib import Path

import numpy as np

from recal.corruptions.random import Draws, random_words
from recal.errors import InputError
from recal.files import data_folders
from recal.kernels import U8, compiled

# there is a sixth texture, but the generators draw from the first five; the second and the third
# have the same pixels
TEXTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
DISTRIBUTIONS = ("imagecorruptions-imaug", "imagecorruptions")
_HALF = np.uint64(32)


def frost(
    images: U8, scale: float, draws: Draws, kept: float, added: float, texture_scale: float
) -> U8:
    """Add `added` of a random piece of a texture to `kept` of each image.

    The textures are resized by `texture_scale`. InputError is raised if they are missing.
    """
    textures = _read_textures(find_textures(), texture_scale * scale, images.shape[1:3])
    out = np.empty_like(images)
    _blend(images, textures, kept, added, draws, out)
    return out


def find_textures() -> tuple[Path, ...]:
    """Return the files of the textures.

    They are searched in `frost/` of the data folders, then in an installed distribution that
    contains them, whose files are read without importing it.

    Raises:
        InputError: They are not found. The message explains how to get them.
    """
    folders = [folder / "frost" for folder in data_folders()]
    for folder in [*folders, *_installed_folders()]:
        paths = tuple(folder / name for name in TEXTURES)
        if all(path.is_file() for path in paths):
            return paths
    looked = ", ".join(str(folder) for folder in folders)
    raise InputError(
        f"frost: expected its textures ({', '.join(TEXTURES)}), got none of {looked}. "
        "Get them with `recal data fetch frost`, or `pip install imagecorruptions-imaug`, or copy "
        "them from ImageNet-C/create_c of github.com/hendrycks/robustness into such a folder."
    )


def _installed_folders() -> list[Path]:
    found = []
    for name in DISTRIBUTIONS:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found += [Path(str(f.locate())).parent for f in files if f.name == TEXTURES[0]]
    return found


@lru_cache(maxsize=8)
def _read_textures(paths: tuple[Path, ...], scale: float, size: tuple[int, int]) -> tuple[U8, ...]:
    """Read the textures at a scale, or at a larger one if an image of `size` would not fit."""
    import cv2

    textures = []
    for path in paths:
        texture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        if texture is None:
            raise InputError(f"{path}: expected a texture of frost, got no image. Fetch it again.")
        fitting = max((size[0] + 1) / texture.shape[0], (size[1] + 1) / texture.shape[1])
        scale_of_it = max(scale, fitting)
        if scale_of_it != 1:
            texture = cv2.resize(texture, (0, 0), fx=scale_of_it, fy=scale_of_it)
        textures.append(np.ascontiguousarray(texture[..., ::-1], np.uint8))
    return tuple(textures)


@compiled
def _blend(
    images: U8, textures: tuple[U8, ...], kept: float, added: float, draws: Draws, out: U8
) -> None:
    count, height, width, channels = images.shape
    for i in range(count):
        words = random_words(3, draws, i)
        texture = textures[_below(words[0], len(textures))]
        top = _below(words[1], texture.shape[0] - height)
        left = _below(words[2], texture.shape[1] - width)
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    value = kept * images[i, y, x, c] + added * texture[top + y, left + x, c]
                    out[i, y, x, c] = np.uint8(min(value, 255.0))


@compiled
def _below(word: np.uint32, bound: int) -> int:
    """Return an integer from 0 to `bound` - 1."""
    return int(np.uint64(word) * np.uint64(bound) >> _HALF)
