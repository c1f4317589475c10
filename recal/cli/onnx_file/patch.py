"""`recal patch`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("patch")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("variant", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The ONNX file to write.")
def command(model: Path, variant: Path, output: Path | None) -> None:
    """Write a copy of MODEL, a patchable ONNX file, that holds VARIANT.

    Needs onnx, ONNX Runtime and NumPy, not torch. The variant must have been made for the weights
    in the file.
    """
    from recal.cli.console import console
    from recal.onnx_file.patch import patch_file

    output = output or model.with_name(f"{model.stem}-{variant.stem}.onnx")
    found = patch_file(model, variant, output)
    console.print(
        f"Wrote {output}: {found.label}, {len(found.tensors)} tensors "
        f"({variant.stat().st_size / 1e3:.0f} kB) into {model.stat().st_size / 1e6:.2f} MB."
    )
