"""`recal policies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from recal.data.policies import Policy

COLUMNS = 8


@click.group("policies", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the augmentation policies of every family; draw what one does."""
    if ctx.invoked_subcommand is None:
        from rich.table import Table

        from recal.cli.console import console
        from recal.data.policies import family_names, load_policy, policy_names

        table = Table("family", "policy", "what it does", box=None, pad_edge=False)
        for family in family_names():
            for name in policy_names(family):
                table.add_row(family, name, load_policy(family, name).summary)
        console.print(table)


@command.command("show")
@click.argument("name")
@click.option("--family", default="cifar", show_default=True, help="Family of NAME.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [bundled]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("policy.png"),
    show_default=True, help="The picture to write.",
)  # fmt: skip
@click.option("--images", default=6, show_default=True, type=click.IntRange(1, 64))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def show(name: str, family: str, data: Path | None, output: Path, images: int, seed: int) -> None:
    """Draw what policy NAME, or a policy file, does: one row an image, its clean form first."""
    from recal.data.policies import load_policy, read_policy

    policy = read_policy(Path(name)) if Path(name).suffix else load_policy(family, name)
    clean = load_policy(family, "clean")
    rows = _draw(policy, clean, data, images, seed)
    click.echo(f"{output}: {_write_sheet(rows, output)}, {policy.summary}")


def _draw(
    policy: Policy, clean: Policy, data: Path | None, images: int, seed: int
) -> list[list[object]]:
    from recal.data.draws import keyed_draws, seeded_batches
    from recal.data.layouts import TRAIN, open_images
    from recal.sample_data import sample_images

    source = open_images(data or sample_images(), TRAIN)
    rows: list[list[object]] = []
    for index in seeded_batches(len(source), images, images, seed)[0]:
        pixels, row = source[int(index)], []
        for draw, transform in enumerate([clean.transform()] + [policy.transform()] * COLUMNS):
            with keyed_draws(seed, int(index), draw):
                row.append(transform(pixels))
        rows.append(list(row))
    return rows


def _write_sheet(rows: list[list[object]], path: Path) -> str:
    import numpy as np
    from PIL import Image

    from recal.files import whole_file

    shape = np.asarray(rows[0][0]).shape
    for row in rows:
        for cell in row:
            if np.asarray(cell).shape != shape:
                from recal.errors import InputError

                raise InputError(
                    f"expected images of one size, got {shape[1]}x{shape[0]} and another. Choose "
                    "the family that suits them, or a policy that resizes."
                )
    sheet = np.pad(np.asarray(rows, np.uint8), [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)],
                   constant_values=255)  # fmt: skip
    count, columns, height, width, _ = sheet.shape
    picture = Image.fromarray(
        sheet.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, 3)
    )
    scale = max(1, 96 // width)
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
    return f"{picture.width}x{picture.height} pixels"
