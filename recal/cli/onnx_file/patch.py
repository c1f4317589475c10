"""`recal patch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import PATH, examples, output_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("patch", epilog=examples("recal patch base.onnx strong.safetensors -o strong.onnx"))
@click.argument("model", type=PATH)
@click.argument("variant", type=PATH)
@output_option("ONNX file to write.", "MODEL-VARIANT.onnx")
def command(model: Path, variant: Path, output: Path | None) -> None:
    """Write a copy of MODEL, a patchable ONNX file, that holds VARIANT, a variant file.

    The variant has to belong to the weights in the file. Needs onnx, ONNX Runtime and NumPy, not
    torch. `recal export --patchable` writes patchable files.
    """
    from recal.cli.console import console
    from recal.onnx_file.patch import patch_file

    output = output or model.with_name(f"{model.stem}-{variant.stem}.onnx")
    found = patch_file(model, variant, output)
    console.print(
        f"Wrote {output}: {found.label}, {len(found.tensors)} tensors "
        f"({variant.stat().st_size / 1e3:.0f} kB) into {model.stat().st_size / 1e6:.2f} MB."
    )
