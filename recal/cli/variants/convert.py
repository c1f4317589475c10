"""`recal convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, examples, output_option, reading_options, variant_option

if TYPE_CHECKING:
    from pathlib import Path

    from recal.checkpoint.layouts import ReadingOptions


@click.command(
    "convert", epilog=examples("recal convert checkpoint.pth --variant aux0 -o plain.safetensors")
)
@click.argument("checkpoint", type=PATH)
@variant_option("to write", "main")
@output_option("Checkpoint to write, .safetensors or .pth.")
@reading_options
def command(checkpoint: Path, variant: str, output: Path, reading: ReadingOptions) -> None:
    """Write one variant of CHECKPOINT as an ordinary checkpoint.

    The file has one plain BatchNorm for each layer, under plain names, so that timm, torchvision or
    your own code loads it with strict=True. No architecture is needed; where it is known, the file
    is loaded and compared.
    """
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import console, warn
    from recal.variant.conversion import convert
    from recal.variant.resolve import resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    warn(doubt.sentence for doubt in loaded.doubts)
    # a branch needs no architecture
    chosen = variant if variant in loaded.branches else resolve_variant(variant, loaded)
    notes = convert(loaded, chosen, output)
    console.print(f"Wrote {output}: {variant} of {checkpoint}.")
    for note in notes:
        console.print(f"  {note}")
