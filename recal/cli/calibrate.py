"""`recal calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from recal.cli.options import choose_device, default_workers, model_options
from recal.cli.reading_options import reading_options


@click.command("calibrate")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--mode", default="weak", show_default=True, help="Policy: clean, weak, strong, ...")
@click.option(
    "--policy", type=click.Path(path_type=Path), help="A policy file of your own, for --mode."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of images, labels not needed."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The variant's file.")
@click.option("--affine", help="Branch that lends weight and bias.  [main; aux0 for strong]")
@click.option(
    "--estimator",
    default="pooled",
    show_default=True,
    help="pooled, consistent, ema, mean-of-batches.",
)
@click.option(
    "--samples", default=10_000, show_default=True, type=click.IntRange(1), help="Images at most."
)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps, ...")
@click.option(
    "--workers", default=default_workers, type=click.IntRange(0), help="Processes for images.",
    show_default="cores - 1",
)  # fmt: skip
@reading_options
@model_options
def command(
    checkpoint: Path | None,
    mode: str,
    policy: Path | None,
    data: Path | None,
    output: Path | None,
    device: str,
    reading: dict[str, Any],
    asked: dict[str, Any],
    **options: Any,
) -> None:
    """Re-estimate the BatchNorm statistics of CHECKPOINT on augmented images.

    Writes a variant: the BatchNorm tensors alone, bound to the checkpoint by a hash. Without a
    CHECKPOINT the bundled sample is used. CHECKPOINT may be a patchable ONNX file: then ONNX
    Runtime estimates, without torch (`--mode clean`), for `recal patch`.
    """
    if checkpoint is not None and checkpoint.suffix == ".onnx":
        from recal.cli.recalibrate import recalibrate_file

        recalibrate_file(
            checkpoint, mode=mode, policy=policy, data=data, output=output, asked=asked,
            options=options,
        )  # fmt: skip
        return
    import torch

    from recal.bn.variant import save_variant
    from recal.calibration import calibrate, calibration_images, usual_affine
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.console import console, messages, progress_bar
    from recal.data.policies import read_policy
    from recal.sample_data import sample_checkpoint, sample_images

    if checkpoint is None:
        checkpoint, data = sample_checkpoint(), data or sample_images()
        console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
    loaded = load_checkpoint(checkpoint, **reading)
    chosen = mode if policy is None else read_policy(policy)
    mode = chosen if isinstance(chosen, str) else chosen.name
    affine = options.pop("affine") or usual_affine(loaded, mode)
    for doubt in loaded.doubts:
        messages.print(f"warning: {doubt}")
    images = calibration_images(loaded.spec(**asked), data)
    console.print(
        f"{checkpoint.name}: weight and bias of branch '{affine}', statistics of '{mode}' images "
        f"out of {len(images):,} in {images.where}."
    )
    with progress_bar("images") as bar:
        variant = calibrate(
            loaded, mode=chosen, affine=affine, data=images, device=torch.device(choose_device(device)),
            progress=bar, **options, **asked,
        )  # fmt: skip
    if output is None:
        output = Path(f"{checkpoint.stem}-{affine}-{mode}.safetensors")
    save_variant(variant, output)
    statistics = variant.statistics
    for layer in statistics["layers_without_data"]:
        console.print(f"warning: layer {layer} saw no data and keeps its stored statistics.")
    console.print(
        f"Statistics of {len(loaded.layers)} layers from {statistics['images']:,} images "
        f"({statistics['estimator']}, batches of {statistics['batch_size']}, "
        f"seed {statistics['seed']})."
    )
    console.print(f"Wrote {output}. Next: recal eval {checkpoint} {output}")
