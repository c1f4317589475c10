"""`recal verify`, `recal patch`, `recal predict` and `recal bench`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recal.cli.console import console, note, print_results, progress_bar, warn
from recal.cli.options import (
    COUNT,
    PATH,
    data_option,
    examples,
    flag,
    format_option,
    model_options,
    option,
    output_option,
    policy_option,
    prepared_by,
    reading_options,
    refuse_typed,
)
from recal.cli.values import counts
from recal.errors import BrokenImageError, InputError
from recal.report.blocks import MARKUPS

if TYPE_CHECKING:
    from recal.checkpoint.layouts import ReadingOptions
    from recal.networks.spec import ModelOverrides


@click.command(
    "verify",
    epilog=examples(
        "recal verify model.onnx",
        "recal verify model.onnx --provider openvino",
        "recal verify model.onnx --checkpoint checkpoint.pth --variant weak.safetensors",
    ),
)
@click.argument("model", type=PATH)
@option("--checkpoint", "Checkpoint with the weights that the file should hold.", PATH)
@option(
    "--variant",
    "Branch of the checkpoint, or variant file, that the file should hold; of a switchable file "
    "all, separated by commas.",
    shown="as recorded",
)
@data_option(
    "Folder of images to compare on. With the images that an int8 file was made with, its "
    "ranges are computed again.",
    "the bundled images",
)
@option("--samples", "Number of images to compare on.", COUNT, 256)
@flag("--alone", "Ignore the checkpoint that recal.toml names.")
@option(
    "--provider",
    "Engine whose outputs are compared with those recorded: an execution provider of ONNX Runtime, "
    "such as CUDAExecutionProvider, or openvino.",
    shown="CPUExecutionProvider",
)
@format_option
@reading_options
def verify_command(
    model: Path,
    checkpoint: Path | None,
    variant: str | None,
    data: Path | None,
    samples: int,
    alone: bool,
    provider: str | None,
    form: str,
    reading: ReadingOptions,
) -> None:
    """Check the ONNX file MODEL against its record, and with --checkpoint against the network.

    Alone: the file is whole and valid, no tensor, node or record was changed since it was written,
    and ONNX Runtime, or the engine of --provider, returns the outputs that were recorded. With a
    checkpoint, the variant is exported again and compared: tensors, bytes and logits. Exits with 4
    if anything differs.
    """
    if provider is not None:
        refuse_typed(("checkpoint",), "expected it without --provider. Leave one of them out.")
    if checkpoint is None or alone or provider is not None:
        from recal.onnx_file.engines import CPU, verify_alone

        refuse_typed(
            ("variant", "data", "samples"),
            "expected --checkpoint too, which it belongs to. Add it.",
        )
        check = verify_alone(model, provider or CPU)
        row = {
            "file": str(model),
            "variant": check.record.title,
            "engine": check.engine,
            "probe_difference": check.probe_difference,
        }
        sentence = (
            f"{model}: {check.record.title}, unchanged since it was written; {check.engine} gives "
            f"the recorded outputs within {check.probe_difference:.1e} of the largest."
        )
        print_results(form, row, [row], [sentence])
        note("Pass --checkpoint (and --variant) to compare with the network itself.", form)
        return
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.export.subject import comparison_images
    from recal.export.verify import recorded_variants, verify_against
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.record import read_record
    from recal.report.onnx_file import doubts, evidence_rows, verify_blocks
    from recal.variant.resolve import doubts_about, resolve_variant

    loaded = read_checkpoint(checkpoint, reading)
    record = read_record(read_model(model), str(model))
    if variant is None:
        wanted = recorded_variants(record, loaded, model)
    else:
        names = variant.split(",") if record.form == "switchable" else [variant]
        wanted = [resolve_variant(name.strip(), loaded, record.model) for name in names]
    warn(doubt.sentence for doubt in doubts_about(loaded, wanted))
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


@click.command("patch", epilog=examples("recal patch base.onnx strong.safetensors -o strong.onnx"))
@click.argument("model", type=PATH)
@click.argument("variant", type=PATH)
@output_option("ONNX file to write.", "MODEL-VARIANT.onnx")
def patch_command(model: Path, variant: Path, output: Path | None) -> None:
    """Write a copy of MODEL, a patchable ONNX file, that holds VARIANT, a variant file.

    The variant has to belong to the weights in the file. Needs onnx, ONNX Runtime and NumPy, not
    torch. `recal export --patchable` writes patchable files.
    """
    from recal.onnx_file.patch import patch_file

    output = output or model.with_name(f"{model.stem}-{variant.stem}.onnx")
    found = patch_file(model, variant, output)
    console.print(
        f"Wrote {output}: {found.label}, {len(found.tensors)} tensors "
        f"({variant.stat().st_size / 1e3:.0f} kB) into {model.stat().st_size / 1e6:.2f} MB."
    )


@click.command(
    "predict",
    epilog=examples("recal predict model.onnx IMAGES", "recal predict model.onnx cat.png --json"),
)
@click.argument("model", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@option("--top", "Number of classes shown for each image, the most probable first.", COUNT, 5)
@option(
    "--variant",
    "Name of the variant to run, in a file that holds several (--switchable).",
    shown="the first",
)
@option("--threads", "Number of threads of each process.", COUNT, shown="all cores")
@policy_option
@format_option
@model_options
def predict_command(
    model: Path,
    images: tuple[Path, ...],
    top: int,
    variant: str | None,
    threads: int | None,
    policy: Path | None,
    form: str,
    overrides: ModelOverrides,
) -> None:
    """Classify IMAGES, files or folders, with MODEL, an ONNX file.

    Images are prepared as the file's record describes. Needs ONNX Runtime, not torch.
    """
    from recal.onnx_file.predict import image_files, network_spec, predict, prepared_files
    from recal.onnx_file.session import OnnxNetwork
    from recal.policies.prepared import USED_WHOLE
    from recal.report.onnx_file import prediction_document, prediction_rows, prediction_sentence

    network = OnnxNetwork(model, threads or 0, variant=0 if variant is None else variant)
    spec = network_spec(network, prepared_by(overrides, policy), str(model))
    files = image_files(images)
    prepared = prepared_files(files, spec)
    if prepared.whole:
        warn([USED_WHOLE])
    broken: list[BrokenImageError] = []
    # the lines that are printed show the progress on a terminal
    with progress_bar("images", hidden=form == "plain" and sys.stdout.isatty()) as bar:
        found = predict(network, prepared, spec, top=top, on_broken=broken.append, progress=bar)
        if form in MARKUPS:  # each prediction is printed as soon as it is there
            for prediction in found:
                click.echo(f"{MARKUPS[form].bullet}{prediction_sentence(prediction)}")
        else:
            predictions = list(found)
            documents = [prediction_document(prediction) for prediction in predictions]
            rows = [row for prediction in predictions for row in prediction_rows(prediction)]
            print_results(form, {"model": model, "predictions": documents}, rows, [])
    warn(broken, "failed")
    if broken:
        raise InputError(
            f"{len(broken):,} of {len(files):,} images cannot be decoded; the others are above. "
            "Mend or leave out the images named."
        )


@click.command(
    "bench",
    epilog=examples(
        "recal bench folded.onnx patchable.onnx", "recal bench a.onnx --batch-size 1,8"
    ),
)
@click.argument("models", nargs=-1, required=True, type=PATH)
@option("--batch-size", "Numbers of images in each batch, separated by commas.", counts(), "1,8,64")
@option("--threads", "Numbers of threads, separated by commas; 0 uses all cores.", counts(0), "1")
@option(
    "--runs",
    "Timed runs of each model at each batch size and number of threads.",
    click.IntRange(2),
    50,
)
@format_option
def bench_command(
    models: tuple[Path, ...],
    batch_size: tuple[int, ...],
    threads: tuple[int, ...],
    runs: int,
    form: str,
) -> None:
    """Measure latency and throughput of MODELS, ONNX files, and their ratios to the first.

    The files take turns, so that changes in the machine's load affect all of them equally.
    """
    from recal.onnx_file.bench import bench
    from recal.report.onnx_file import timing_blocks

    timings = bench(models, batches=batch_size, threads=threads, runs=runs)
    rows = [{**asdict(timing), "model": str(timing.model)} for timing in timings]
    print_results(form, {"timings": rows}, rows, timing_blocks(timings))
