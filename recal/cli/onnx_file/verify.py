"""`recal verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from recal.cli.options import (
    PATH,
    checkpoint_option,
    data_option,
    examples,
    flag,
    format_option,
    reading_options,
    refuse_typed,
    samples_option,
    variant_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from recal.checkpoint.layouts import ReadingOptions


@click.command(
    "verify",
    epilog=examples(
        "recal verify model.onnx",
        "recal verify model.onnx --checkpoint checkpoint.pth --variant weak.safetensors",
    ),
)
@click.argument("model", type=PATH)
@checkpoint_option("Checkpoint with the weights that the file should hold.")
@variant_option(
    "that the file should hold; of a switchable file all, separated by commas", shown="as recorded"
)
@data_option(
    "Folder of images to compare on. With the images that an int8 file was made with, its "
    "ranges are computed again.",
    "the bundled images",
)
@samples_option("Number of images to compare on.", 256)
@flag("--alone", "Ignore the checkpoint that recal.toml names.")
@format_option
@reading_options
def command(
    model: Path,
    checkpoint: Path | None,
    variant: str | None,
    data: Path | None,
    samples: int,
    alone: bool,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Check the ONNX file MODEL against its record, and with --checkpoint against the network.

    Alone: the file is whole and valid, no tensor, node or record was changed since it was written,
    and ONNX Runtime here returns the outputs that were recorded. With a checkpoint, the variant is
    exported again and compared: tensors, bytes and logits. Exits with 4 if anything differs.
    """
    if checkpoint is None or alone:
        refuse_typed(
            ("variant", "data", "samples"),
            "expected --checkpoint too, which it belongs to. Add it.",
        )
        _verify_alone(model, form)
        return
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import print_results, warn
    from recal.export.subject import comparison_images
    from recal.export.verify import recorded_variants, verify_against
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.record import read_record
    from recal.report.evidence import doubts, evidence_rows, verify_blocks
    from recal.variant.resolve import resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    warn(doubt.sentence for doubt in loaded.doubts)
    record = read_record(read_model(model), str(model))
    if variant is None:
        wanted = recorded_variants(record, loaded, model)
    else:
        names = variant.split(",") if record.form == "switchable" else [variant]
        wanted = [resolve_variant(name.strip(), loaded, record.model) for name in names]
    pixels, images = comparison_images(wanted[0].spec, data, samples)
    found = verify_against(model, loaded, wanted, pixels, data)
    rows = [{"file": str(model), **row} for row in evidence_rows(found.evidence)]
    print_results(
        form,
        {"file": model, "comparison": found},
        rows,
        verify_blocks(found, checkpoint.name, images),
    )
    warn(doubts(found.evidence))


def _verify_alone(model: Path, form: str) -> None:
    from recal.cli.console import note, print_results
    from recal.onnx_file.verify import verify_alone

    check = verify_alone(model)
    row = {
        "file": str(model),
        "variant": check.record.title,
        "probe_difference": check.probe_difference,
    }
    sentence = (
        f"{model}: {check.record.title}, unchanged since it was written; outputs on recorded noise "
        f"within {check.probe_difference:.1e} of the largest."
    )
    print_results(form, row, [row], [sentence])
    note("Pass --checkpoint (and --variant) to compare with the network itself.", form)
