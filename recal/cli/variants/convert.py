"""`recal convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recal.cli.options import model_options, reading_options


@click.command("convert")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--variant", default="main", show_default=True, help="A branch, or a variant's file.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True,
    help="Name that ends in .safetensors or .pth.",
)  # fmt: skip
@reading_options
@model_options
def command(
    checkpoint: Path, variant: str, output: Path, reading: dict[str, Any], asked: dict[str, Any]
) -> None:
    """Write one variant of CHECKPOINT as an ordinary checkpoint.

    With one plain BatchNorm a layer, under plain names, so that timm, torchvision or code of your
    own loads it with strict=True. Needs no architecture; where it is known, the file is loaded and
    compared.
    """
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console, warn
    from recal.variant.conversion import convert
    from recal.variant.variant import load_variant

    loaded = load_checkpoint(checkpoint, **reading)
    stored = variant in loaded.branches or not Path(variant).suffix
    chosen = variant if stored else load_variant(Path(variant))
    notes = convert(loaded, chosen, output, **asked)
    for doubt in loaded.doubts:
        warn(f"{doubt}.")
    console.print(f"Wrote {output}: {variant} of {checkpoint}.")
    for note in notes:
        console.print(f"  {note}")
