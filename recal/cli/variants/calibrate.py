"""`recal calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.table import Table

from recal.calibration.calibrate import (
    calibrate_matrix,
    usual_affine,
)
from recal.calibration.estimators import CONSISTENT
from recal.cli.console import console, progress_bar, warn
from recal.cli.options import (
    Listed,
    autocast_option,
    choose_device,
    default_workers,
    precision_named,
    reading_options,
    refuse_given,
    retyped,
)
from recal.data.folders import TRAIN
from recal.policies.families import open_family_images
from recal.variant.file import save_variant
from recal.variant.statistics import EstimatedStatistics
from recal.variant.variant import Variant, branch_variant
from recal.wording import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recal.calibration.rounds import Settings
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.checkpoint.options import ReadingOptions
    from recal.distributed import World
    from recal.networks.spec import ModelOverrides
    from recal.policies.policy import Policy
    from recal.variant.statistics import Bound


BOUNDS: tuple[Bound, ...] = ("mean_bound", "log_variance_bound")


def precision(statistics: EstimatedStatistics) -> str:
    """Return a sentence on the least precise layers."""
    if not statistics.errors:
        return "One image tells no error bounds."
    (mean, mean_layer), (variance, variance_layer) = map(statistics.largest, BOUNDS)
    return (
        f"95 % error bounds: means within {mean:.4f} standard deviations ({mean_layer}), "
        f"variances within {variance:.2%} ({variance_layer}); other layers are more precise."
    )


def doubts(statistics: EstimatedStatistics) -> list[str]:
    """Return sentences on images that were left out, and on layers that saw none."""
    skipped = statistics.skipped
    left_out = f"{len(skipped):,} images cannot be decoded and were left out: {listed(skipped)}."
    return [left_out] * bool(skipped) + [
        f"layer {layer} saw no data and keeps its stored statistics."
        for layer in statistics.layers_without_data
    ]


def calibrate_one(
    checkpoint: Checkpoint,
    affine: str | None,
    policy: Policy,
    data: Path | None,
    output: Path | None,
    settings: Settings,
) -> None:
    """Estimate one variant, write it, and say how precise it is."""
    name = policy.name
    affine = affine or usual_affine(checkpoint, name)
    checkpoint.branch(affine)
    images = open_family_images(checkpoint.spec, data, TRAIN)
    console.print(
        f"{checkpoint.path.name}: weight and bias of branch '{affine}', statistics of '{name}' "
        f"images out of {len(images):,} in {images.where}."
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        table = calibrate_matrix(
            checkpoint, [affine], [policy], data=images, settings=settings, progress=bar
        )
    if not settings.world.leads:
        return
    output = output or Path(f"{checkpoint.path.stem}-{affine}-{name}.safetensors")
    (variant,) = table.values()
    save_variant(variant, output)
    statistics = variant.estimated
    _warn(statistics)
    console.print(
        f"Statistics of {len(checkpoint.layers)} layers from {statistics.images:,} images "
        f"({statistics.estimator}, batches of {statistics.batch_size}, "
        f"seed {statistics.seed}{_passes(statistics)})."
    )
    console.print(precision(statistics))
    _say_whether_reached([statistics], settings)
    console.print(f"Wrote {output}. Next: recal eval {checkpoint.path} {output}{retyped()}")


def calibrate_table(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    policies: Sequence[Policy],
    data: Path | None,
    output: Path | None,
    settings: Settings,
) -> None:
    """Write every affine with every policy's statistics, and with every other branch's stored."""
    for affine in affines:
        checkpoint.branch(affine)
    images = open_family_images(checkpoint.spec, data, TRAIN)
    console.print(
        f"{checkpoint.path.name}: weight and bias of {', '.join(affines)}; statistics of "
        f"{', '.join(policy.name for policy in policies)} images out of {len(images):,} in "
        f"{images.where}."
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        found = calibrate_matrix(
            checkpoint, affines, policies, data=images, settings=settings, progress=bar
        )
    if not settings.world.leads:
        return
    found |= {
        (affine, branch): branch_variant(checkpoint, affine, statistics=branch)
        for affine in affines
        for branch in checkpoint.branches
        if branch != affine
    }
    folder = output or Path(f"{checkpoint.path.stem}-variants")
    table = Table("variant", "affine", "statistics", box=None, pad_edge=False)
    for column in ("images", "95 % bound, mean", "variance"):
        table.add_column(column, justify="right")
    for (affine, source), variant in found.items():
        path = folder / f"{affine}-{source}.safetensors"
        save_variant(variant, path)
        table.add_row(path.name, affine, *_cells(variant, source))
    console.print(table)
    estimated = [
        variant.statistics
        for variant in found.values()
        if isinstance(variant.statistics, EstimatedStatistics)
    ]
    _warn(estimated[0])
    console.print(
        f"{settings.estimator}, batches of {settings.batch_size}, seed {settings.seed}"
        f"{_passes(estimated[0])}. Bounds are those of the least precise layer: of the mean in "
        "standard deviations, of the variance relative."
    )
    _say_whether_reached(estimated, settings)
    console.print(
        f"Wrote {len(found)} variants to {folder}. Next: recal eval --checkpoint "
        f"{checkpoint.path} {' '.join(checkpoint.branches)} {folder}/*.safetensors{retyped()}"
    )


def take_stored(checkpoint: Checkpoint, affine: str, branch: str, output: Path | None) -> None:
    """Write the variant of one branch's affine and another's stored statistics."""
    variant = branch_variant(checkpoint, affine, statistics=branch)
    output = output or Path(f"{checkpoint.path.stem}-{affine}-{branch}.safetensors")
    save_variant(variant, output)
    console.print(f"Wrote {output}: {variant.label}.")


def _cells(variant: Variant, source: str) -> tuple[str, ...]:
    statistics = variant.statistics
    if not isinstance(statistics, EstimatedStatistics):
        return f"stored in {source}", "", "", ""
    bounds = (f"{statistics.largest(bound)[0]:.4f}" for bound in BOUNDS)
    return f"{source} images", f"{statistics.images:,}", *bounds


def _passes(statistics: EstimatedStatistics) -> str:
    """Return how often the images went through the network, unless it is once as usual."""
    if statistics.estimator != CONSISTENT:
        return ""
    passes = statistics.passes
    return ", 1 pass, activations kept" if passes == 1 else f", {passes} passes"


def _say_whether_reached(estimated: Sequence[EstimatedStatistics], settings: Settings) -> None:
    if settings.tolerance is None:
        return
    images = estimated[0].images
    reached = max(statistics.largest(bound)[0] for statistics in estimated for bound in BOUNDS)
    if reached <= settings.tolerance:
        console.print(
            f"Stopped after {images:,} images: bound {reached:.4f}, tolerance "
            f"{settings.tolerance:g}."
        )
    else:
        warn(
            f"tolerance {settings.tolerance:g} is not reached: all {images:,} images give "
            f"a bound of {reached:.4f}. Raise --samples, or give more images."
        )


def _warn(statistics: EstimatedStatistics) -> None:
    for doubt in doubts(statistics):
        warn(doubt)


def recalibrate_file(
    path: Path,
    *,
    mode: str,
    policy: Path | None,
    data: Path | None,
    output: Path | None,
    overrides: ModelOverrides,
    options: dict[str, Any],
) -> None:
    """Re-estimate the statistics inside a patchable ONNX file."""
    from pathlib import Path

    from recal.cli.console import console, progress_bar
    from recal.data.sampling import DEFAULT_SAMPLES
    from recal.errors import UsageError
    from recal.onnx_file.predict import network_spec
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.recalibrate import recalibrate
    from recal.onnx_file.session import OnnxNetwork
    from recal.policies.policy import resolve_policy

    source = click.get_current_context().get_parameter_source("estimator")
    if options["affine"] is not None:
        raise UsageError("--affine: an ONNX file holds one branch only. Leave it out.")
    if options["estimator"] != "consistent" and source is not ParameterSource.DEFAULT:
        raise UsageError("--estimator: in an ONNX file only 'consistent' can be estimated.")
    model = read_model(path)
    spec = network_spec(OnnxNetwork(path), overrides, str(path))
    chosen = resolve_policy(policy or mode, spec.family)
    images = open_family_images(spec, data, TRAIN)
    with progress_bar("images") as bar:
        variant = recalibrate(
            model, images, spec, chosen, samples=options["samples"] or DEFAULT_SAMPLES,
            batch_size=options["batch_size"], seed=options["seed"], where=str(path),
            min_images=options["min_images"], skip_broken=options["skip_broken"], progress=bar,
        )  # fmt: skip
    output = output or Path(f"{path.stem}-{chosen.name}.safetensors")
    save_variant(variant, output)
    statistics = variant.estimated
    _warn(statistics)
    console.print(
        f"Statistics of {len(variant.layers)} layers from {statistics.images:,} images "
        "(consistent, by ONNX Runtime)."
    )
    console.print(precision(statistics))
    console.print(f"Wrote {output}. Next: recal patch {path} {output}")


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
def command(
    checkpoint: Path | None,
    mode: tuple[str, ...],
    policy: Path | None,
    data: Path | None,
    output: Path | None,
    affine: tuple[str, ...],
    matrix: bool,
    statistics: str | None,
    reading: ReadingOptions,
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
        refuse_given(NOT_IN_ONNX, "an ONNX file takes no such option. Leave it out.")
        recalibrate_file(
            checkpoint, mode=_one(mode, "--mode"), policy=policy, data=data, output=output,
            overrides=reading.model, options={**options, "affine": _only(affine, "--affine")},
        )  # fmt: skip
        return
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import console, messages, warn
    from recal.distributed import joined
    from recal.policies.policy import resolve_policy
    from recal.resources import sample_checkpoint, sample_images

    with joined() as world:
        console.quiet = messages.quiet = not world.leads
        if checkpoint is None:
            checkpoint, data = sample_checkpoint(), data or sample_images()
            console.print("No checkpoint given: using the bundled Fashion-MNIST sample.")
        loaded = read_checkpoint(checkpoint, reading)
        for doubt in loaded.doubts:
            warn(doubt.sentence)
        if statistics is not None:
            refuse_given(OF_ESTIMATES, "with --statistics nothing is estimated. Leave it out.")
            take_stored(loaded, _only(affine, "--affine") or "main", statistics, output)
            return
        settings = _settings(world, **options)
        modes = MATRIX_MODES if matrix and not _given("mode") else mode
        named = modes if policy is None else (policy,)
        policies = [resolve_policy(name, loaded.spec.family) for name in named]
        if matrix:
            affines = affine or tuple(loaded.branches)
            calibrate_table(loaded, affines, policies, data, output, settings)
        else:
            single = _only(affine, "--affine")
            calibrate_one(loaded, single, _one(policies, "--mode"), data, output, settings)


def _settings(world: World, device: str, autocast: str | None, **options: Any) -> Settings:
    import torch

    from recal.calibration.rounds import Settings
    from recal.data.sampling import DEFAULT_SAMPLES
    from recal.distributed import local_device

    if options["samples"] is None and options["tolerance"] is None:
        options["samples"] = DEFAULT_SAMPLES
    return Settings(
        device=torch.device(local_device(choose_device(device))),
        autocast=precision_named(autocast),
        world=world,
        **options,
    )


def _one(items: Sequence[Item], option: str) -> Item:
    if len(items) != 1:
        raise click.UsageError(f"{option}: expected one without --matrix, got {len(items)}.")
    return items[0]


def _only(items: tuple[str, ...], option: str) -> str | None:
    return _one(items, option) if items else None


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source not in (click.core.ParameterSource.DEFAULT, None)
