"""`recal calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from recal.cli.options import (
    Listed,
    autocast_option,
    choose_device,
    default_workers,
    model_options,
    precision_named,
    refuse_given,
)
from recal.cli.reading_options import reading_options

if TYPE_CHECKING:
    from recal.data.policies import Policy
    from recal.distributed import World
    from recal.estimation import Settings

Item = TypeVar("Item")

MATRIX_MODES = ("clean", "weak", "strong")
# what says how statistics are estimated
OF_ESTIMATES = (
    "mode", "policy", "data", "matrix", "tolerance", "estimator", "samples", "min_images",
    "skip_broken", "batch_size", "seed", "device", "workers", "autocast",
)  # fmt: skip
NOT_IN_ONNX = ("matrix", "statistics", "tolerance", "device", "workers", "autocast")


@click.command("calibrate")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--mode", type=Listed(), default=("weak",), show_default="weak; clean,weak,strong for --matrix",
    help="Policy: clean, weak, strong, ...; see `recal policies`.",
)  # fmt: skip
@click.option(
    "--policy", type=click.Path(path_type=Path), help="A policy file of your own, for --mode."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of images, labels not needed."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="The variant's file; with --matrix, the variants' folder.",
)  # fmt: skip
@click.option(
    "--affine", type=Listed(), default=(), show_default="main; aux0 for strong; all for --matrix",
    help="Branch that lends weight and bias.",
)  # fmt: skip
@click.option("--matrix", is_flag=True, help="Every affine x every mode, in one reading.")
@click.option("--statistics", help="Take a branch's stored statistics; nothing is estimated.")
@click.option(
    "--estimator",
    default="pooled",
    show_default=True,
    help="pooled, consistent, ema, mean-of-batches.",
)
@click.option(
    "--samples", type=click.IntRange(1), show_default="10,000; all with --tolerance",
    help="Images at most.",
)  # fmt: skip
@click.option(
    "--tolerance", type=float,
    help="Stop when every layer's 95 % error bound is this small, such as 0.02.",
)  # fmt: skip
@click.option("--min-images", default=8, show_default=True, type=click.IntRange(1))
@click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be decoded.")
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps, ...")
@autocast_option
@click.option(
    "--workers", default=default_workers, type=click.IntRange(0), help="Processes for images.",
    show_default="cores - 1",
)  # fmt: skip
@reading_options
@model_options
def command(
    checkpoint: Path | None,
    mode: tuple[str, ...],
    policy: Path | None,
    data: Path | None,
    output: Path | None,
    affine: tuple[str, ...],
    matrix: bool,
    statistics: str | None,
    reading: dict[str, Any],
    asked: dict[str, Any],
    **options: Any,
) -> None:
    """Re-estimate the BatchNorm statistics of CHECKPOINT on augmented images.

    Writes a variant: the BatchNorm tensors alone, bound to the checkpoint by a hash. Without a
    CHECKPOINT the bundled sample is used. CHECKPOINT may be a patchable ONNX file: then ONNX
    Runtime estimates, without torch (`--mode clean`), for `recal patch`. Under torchrun the
    processes share the images.
    """
    if policy is not None:
        refuse_given(("mode",), "expected it instead of --policy, got both.")
    if checkpoint is not None and checkpoint.suffix == ".onnx":
        from recal.cli.recalibrate import recalibrate_file

        refuse_given(NOT_IN_ONNX, "an ONNX file takes no such option. Leave it out.")
        recalibrate_file(
            checkpoint, mode=_one(mode, "--mode"), policy=policy, data=data, output=output,
            asked=asked, options={**options, "affine": _only(affine, "--affine")},
        )  # fmt: skip
        return
    from recal.checkpoint.checkpoint import load_checkpoint
    from recal.cli.calibrated import calibrate_one, calibrate_table, take_stored
    from recal.cli.console import console, messages
    from recal.data.policies import read_policy
    from recal.distributed import joined
    from recal.sample_data import sample_checkpoint, sample_images

    with joined() as world:
        console.quiet = messages.quiet = not world.leads
        if checkpoint is None:
            checkpoint, data = sample_checkpoint(), data or sample_images()
            console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
        loaded = load_checkpoint(checkpoint, **reading)
        for doubt in loaded.doubts:
            messages.print(f"warning: {doubt}")
        if statistics is not None:
            refuse_given(OF_ESTIMATES, "with --statistics nothing is estimated. Leave it out.")
            take_stored(loaded, _only(affine, "--affine") or "main", statistics, output, asked)
            return
        settings = _settings(world, **options)
        modes: tuple[str | Policy, ...] = mode if policy is None else (read_policy(policy),)
        if matrix:
            if not _given("mode") and policy is None:
                modes = MATRIX_MODES
            affines = affine or tuple(loaded.branches)
            calibrate_table(loaded, affines, modes, data, output, settings, asked)
        else:
            chosen = _one(modes, "--mode")
            single = _only(affine, "--affine")
            calibrate_one(loaded, single, chosen, data, output, settings, asked)


def _settings(world: World, device: str, autocast: str | None, **options: Any) -> Settings:
    import torch

    from recal.data.draws import DEFAULT_SAMPLES
    from recal.distributed import local_device
    from recal.estimation import Settings

    if options["samples"] is None and options["tolerance"] is None:
        options["samples"] = DEFAULT_SAMPLES
    return Settings(
        device=torch.device(local_device(choose_device(device))),
        autocast=precision_named(autocast),
        world=world,
        **options,
    )


def _one(items: tuple[Item, ...], option: str) -> Item:
    if len(items) != 1:
        raise click.UsageError(f"{option}: expected one without --matrix, got {len(items)}.")
    return items[0]


def _only(items: tuple[str, ...], option: str) -> str | None:
    return _one(items, option) if items else None


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source not in (click.core.ParameterSource.DEFAULT, None)
