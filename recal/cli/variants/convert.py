"""`recal convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import reading_options

if TYPE_CHECKING:
    from recal.checkpoint.options import ReadingOptions


@click.command("convert")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--variant", default="main", show_default=True, help="A branch, or a variant's file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    help="Name that ends in .safetensors or .pth.",
)  # fmt: skip
@reading_options
def command(checkpoint: Path, variant: str, output: Path, reading: ReadingOptions) -> None:
    """Write one variant of CHECKPOINT as an ordinary checkpoint.

    With one plain BatchNorm a layer, under plain names, so that timm, torchvision or code of your
    own loads it with strict=True. Needs no architecture; where it is known, the file is loaded and
    compared.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import console, warn
    from recal.variant.conversion import convert
    from recal.variant.resolve import resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    chosen = variant if variant in loaded.branches else resolve_variant(variant, loaded)
    notes = convert(loaded, chosen, output)
    for doubt in loaded.doubts:
        warn(doubt.sentence)
    console.print(f"Wrote {output}: {variant} of {checkpoint}.")
    for note in notes:
        console.print(f"  {note}")
