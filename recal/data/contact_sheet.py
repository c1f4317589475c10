"""Contact sheets: rows of images with captions, in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from recal.errors import InputError
from recal.files import whole_file

GAP, LINE = 6, 18
LEAST_SIDE = 96


def write_sheet(
    path: Path,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]],
) -> tuple[int, int]:
    """Write rows of images as one picture; small images are enlarged by a whole factor.

    Args:
        path: The picture to write. Its suffix chooses the format.
        title: The line on top.
        columns: A caption for each column.
        rows: For each row its caption and its images, uint8 (H, W, 3). All cells get the size of
            the first row's last image.

    Returns:
        The picture's width and height, in pixels.
    """
    height, width = rows[0][1][-1].shape[:2]
    scale = -(-LEAST_SIDE // min(width, height, LEAST_SIDE))
    width, height = width * scale, height * scale
    band = LINE + height + GAP
    size = (len(columns) * (width + GAP) + GAP, 2 * (LINE + GAP) + len(rows) * band)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str, room: int) -> None:
        while text and draw.textlength(text, font_size=13) > room:
            text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
        draw.text((left, top), text, fill="black", font_size=13)

    write(GAP, GAP, title, size[0] - 2 * GAP)
    for column, caption in enumerate(columns):
        write(GAP + column * (width + GAP), GAP + LINE, caption, width)
    for top, (caption, cells) in zip(range(2 * (LINE + GAP), size[1], band), rows, strict=True):
        write(GAP, top, caption, size[0] - 2 * GAP)
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (GAP + column * (width + GAP), top + LINE))

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"{path}: expected a name that ends in .png or .jpg.")
    with whole_file(path) as partial:
        sheet.save(partial, kind)
    return size
