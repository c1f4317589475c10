"""A picture of corruptions on one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from recal.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from recal.corruptions.parameters import FAMILIES, SEVERITIES
from recal.errors import InputError
from recal.files import whole_file
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


GAP, LINE = 6, 18
LEAST_SIDE = 96


def write_sheet(
    path: Path,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
) -> tuple[int, int]:
    """Write rows of images; small ones are enlarged by a whole factor, pixel for pixel.

    Args:
        path: The picture, in the format of its suffix.
        title: The line on top.
        columns: A caption for each column.
        rows: A caption for each row, and its images, uint8 (H, W, 3). All cells get the size of the
            first row's last image.

    Returns:
        The picture's width and height.

    Raises:
        InputError: The suffix is no known format's.
    """
    height, width = rows[0][1][-1].shape[:2]
    scale = -(-LEAST_SIDE // min(width, height)) if min(width, height) < LEAST_SIDE else 1
    width, height = width * scale, height * scale
    size = (
        len(columns) * (width + GAP) + GAP,
        2 * (LINE + GAP) + len(rows) * (LINE + height + GAP),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str, room: int) -> None:
        while text and draw.textlength(text, font_size=13) > room:
            text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
        draw.text((left, top), text, fill="black", font_size=13)

    write(GAP, GAP, title, size[0] - 2 * GAP)
    for column, caption in enumerate(columns):
        write(GAP + column * (width + GAP), GAP + LINE, caption, width)
    top = 2 * (LINE + GAP)
    for caption, cells in rows:
        write(GAP, top, caption, size[0] - 2 * GAP)
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (GAP + column * (width + GAP), top + LINE))
        top += LINE + height + GAP
    save_picture(sheet, path)
    return size


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture whole, in the format of the file's suffix.

    Raises:
        InputError: The suffix is no known format's.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path}: expected a name that ends in .png or .jpg.")
    with whole_file(path) as partial:
        picture.save(partial, kind)


EVERY = "all"
ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
GAP, CAPTION = 4, 14
LARGEST_SIDE = 512


def show(
    name: str,
    path: Path | None,
    output: Path,
    *,
    family: str | None = None,
    seed: int = 0,
    width: int | None = None,
) -> tuple[int, int]:
    """Write a picture: a row a corruption, the clean image first, then severities 1 to 5.

    Args:
        name: A corruption, or `all`.
        path: The image, of any size and mode; None for a test pattern.
        output: The picture, in the format of its suffix.
        family: Whose parameters; None takes the family whose side is nearest.
        seed: Of the draws.
        width: Of each image in the picture, in pixels; None leaves it as it is.

    Returns:
        The picture's width and height.

    Raises:
        UsageError: An unknown corruption or family.
        InputError: The image cannot be read, is too small, or frost's textures are not there.
    """
    names = ALL if name == EVERY else (pick(name, (*ALL, EVERY), "corruption"),)
    image = pattern(FAMILIES["imagenet"].side) if path is None else read_image(path)
    side = min(image.shape[:2])
    chosen = family or min(FAMILIES, key=lambda known: abs(np.log(side / FAMILIES[known].side)))
    width = width or image.shape[1]
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    columns = 1 + len(SEVERITIES)
    size = (columns * (width + GAP) - GAP, len(names) * (height + GAP + CAPTION) - GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, corruption in enumerate(names):
        top = row * (height + GAP + CAPTION)
        draw.text((0, top), f"{corruption} ({chosen})", fill="black")
        cells = [image, *(
            corrupt(image[None], corruption, s, family=chosen, seed=seed)[0] for s in SEVERITIES
        )]  # fmt: skip
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell)
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * (width + GAP), top + CAPTION))
    save_picture(sheet, output)
    return size


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as uint8 (H, W, 3); one with a side above 512 pixels is made smaller.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: expected an image, got {error}.") from error


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
