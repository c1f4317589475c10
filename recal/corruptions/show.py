"""Pictures of corruptions."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recal.corruptions.corrupt import corrupt
from recal.corruptions.parameters import ALL_CORRUPTIONS, PARAMETER_SETS, SEVERITIES
from recal.data.contact_sheet import write_sheet
from recal.data.images import decode
from recal.errors import pick
from recal.files import require_file

EVERY = "all"
LARGEST_SIDE = 512


def show_corruption(
    name: str,
    path: Path | None,
    output: Path,
    *,
    family: str | None = None,
    seed: int = 0,
    width: int | None = None,
) -> tuple[int, int]:
    """Write a picture with one row per corruption: the clean image, then severities 1 to 5.

    Args:
        name: A corruption, or `all`.
        path: The image, of any size and mode; None for a test pattern.
        output: The picture to write. Its suffix chooses the format.
        family: Name of the corruption parameters; None takes those whose side is nearest.
        seed: Seed of the random draws.
        width: Width that the images are resized to, in pixels; None keeps theirs.

    Returns:
        The picture's width and height, in pixels.

    Raises:
        UsageError: The corruption or the family is unknown.
        InputError: The image cannot be read, is too small, or frost's textures are missing.
    """
    names = (
        ALL_CORRUPTIONS if name == EVERY else (pick(name, (*ALL_CORRUPTIONS, EVERY), "corruption"),)
    )
    image = pattern(PARAMETER_SETS["imagenet"].side) if path is None else read_image(path)
    side = min(image.shape[:2])
    family = family or min(
        PARAMETER_SETS, key=lambda known: abs(np.log(side / PARAMETER_SETS[known].side))
    )
    rows = []
    for corruption in names:
        corrupted = (
            corrupt(image[None], corruption, severity, family=family, seed=seed)[0]
            for severity in SEVERITIES
        )
        rows.append((corruption, [_resized(cell, width) for cell in (image, *corrupted)]))
    columns = ["clean", *(f"severity {severity}" for severity in SEVERITIES)]
    return write_sheet(output, f"Corruptions, parameters of {family}", columns, rows)


def _resized(image: NDArray[np.uint8], width: int | None) -> NDArray[np.uint8]:
    if width is None:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as uint8 (H, W, 3); one with a side above 512 pixels is made smaller.

    Raises:
        InputError: It cannot be read.
    """
    require_file(path, "an image")
    image = Image.fromarray(decode(path, str(path)))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return np.array(image)


def pattern(side: int) -> NDArray[np.uint8]:
    """Draw a scene with flat, smooth, sharp and fine parts, uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    sky = np.stack([0.45 + 0.3 * y, 0.62 + 0.25 * y, 0.9 - 0.05 * y], axis=-1)
    scene = np.where((np.hypot(x - 0.72, y - 0.22) < 0.11)[..., None], (1.0, 0.87, 0.35), sky)
    ridge = 0.58 + 0.07 * np.sin(7 * x) + 0.03 * np.sin(23 * x + 1)
    hills = np.stack([0.2 + 0.1 * x, 0.42 - 0.1 * x, 0.22 + 0 * x], axis=-1)
    scene = np.where((y > ridge)[..., None], hills, scene)
    rings = 0.5 + 0.5 * np.sin(90 * np.hypot(x - 0.28, y - 0.72))
    disc = np.stack([0.85 * rings, 0.25 + 0.2 * rings, 0.3 * (1 - rings)], axis=-1)
    scene = np.where((np.hypot(x - 0.28, y - 0.72) < 0.2)[..., None], disc, scene)
    board = ((x * 28).astype(int) + (y * 28).astype(int)) % 2
    inside = (np.abs(x - 0.74) < 0.16) & (np.abs(y - 0.76) < 0.14)
    scene = np.where(inside[..., None], 0.12 + 0.8 * board[..., None], scene)
    return (np.clip(scene, 0, 1) * 255).astype(np.uint8)
