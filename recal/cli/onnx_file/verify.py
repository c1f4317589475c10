"""`recal verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.options import reading_options, refuse_given

if TYPE_CHECKING:
    from recal.checkpoint.options import ReadingOptions
    from recal.onnx_file.record import Int8Record


@click.command("verify")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="The weights that it should hold."
)
@click.option("--variant", help="Variant file, or a branch, that it should be.  [as recorded]")
@click.option(
    "--data", type=click.Path(path_type=Path),
    help="Images to compare on; those an int8 file was made with give its ranges again.  [bundled]",
)  # fmt: skip
@click.option(
    "--images", default=256, show_default=True, type=click.IntRange(1), help="How many of them."
)
@reading_options
@click.option("--alone", is_flag=True, help="Leave a checkpoint of recal.toml aside.")
def command(
    model: Path,
    checkpoint: Path | None,
    variant: str | None,
    data: Path | None,
    images: int,
    alone: bool,
    reading: ReadingOptions,
) -> None:
    """Check that an ONNX file is what its record says.

    Alone: the file is whole and valid, no tensor, node or record was changed since it was written,
    and ONNX Runtime here gives the outputs that were recorded. With a checkpoint, the variant is
    exported again and compared, tensors, bytes and logits. Exits with 4 if anything differs.
    """
    from recal.cli.console import console
    from recal.onnx_file.verify import verify_alone

    if checkpoint is None or alone:
        refuse_given(
            ("variant", "data", "images"), "expected --checkpoint too, which it belongs to."
        )
        check = verify_alone(model)
        console.print(
            f"{model}: {check.record.title}, unchanged since it was written; outputs on recorded "
            f"noise within {check.probe_difference:.1e} of the largest."
        )
        console.print("Name --checkpoint (and --variant) to compare with the network itself.")
        return
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.export.subject import comparison_images
    from recal.export.verify import recorded_variants, verify_against
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.record import read_record
    from recal.variant.resolve import resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    record = read_record(read_model(model), str(model))
    if variant is None:
        wanted = recorded_variants(record, loaded, model)
    else:
        names = variant.split(",") if record.form == "switchable" else [variant]
        wanted = [resolve_variant(name.strip(), loaded, record.model) for name in names]
    pixels, what = comparison_images(wanted[0].spec, data, images)
    found = verify_against(model, loaded, wanted, pixels, data)
    console.print(
        f"{model}: is {'; '.join(v.label for v in wanted)} of {checkpoint.name}; "
        + ("the same bytes when exported again." if found.same_bytes else "the same tensors; "
           "bytes differ, as the versions do.")
    )  # fmt: skip
    if found.evidence.int8 is not None:
        _show_int8(found.evidence.int8, same_ranges=found.same_ranges)
    for name, proof in found.evidence.proofs.items():
        console.print(
            f"{name}: on {what}: largest difference of a logit {proof.difference:.1e} (at most "
            f"{proof.tolerance:.1e}); on {proof.hostile_inputs} hostile inputs "
            f"{proof.hostile_difference:.1e} of the largest logit."
        )
        for other, rival in proof.rivals.items():
            console.print(
                f"From '{other}': {rival.distance:.1e}, the variant {rival.expected:.1e}."
            )


def _show_int8(made: Int8Record, *, same_ranges: bool) -> None:
    from recal.cli.console import console

    proof = made.proof
    images = f"{made.range_images.images} '{made.range_images.policy}' images"
    if same_ranges:
        console.print(f"int8: ranges are those of the {images} that it records.")
    else:
        console.print(f"int8: ranges as recorded; --data with its {images} recomputes them.")
    kept = f"int8: the same prediction as in float32 on {proof.agreement:.2%} of {proof.images:,}"
    lost = f"{proof.drop:.2%} ± {proof.drop_error:.2%} of accuracy lost; " * bool(proof.accuracies)
    console.print(
        f"{kept} images; {lost}outputs off by {proof.error:.1%} of their spread. Its float32 form:"
    )
