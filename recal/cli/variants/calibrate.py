"""`recal calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from recal.cli.options import (
    PATH,
    Names,
    autocast_option,
    batch_size_option,
    checkpoint_or_sample,
    choose_device,
    data_option,
    device_option,
    dtype_named,
    examples,
    flag,
    format_option,
    is_given,
    option,
    output_option,
    packed,
    policy_option,
    reading_options,
    refuse_typed,
    retyped,
    samples_option,
    seed_option,
    spare_cores,
    workers_option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recal.calibration.rounds import Settings
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.checkpoint.layouts import ReadingOptions
    from recal.distributed import World
    from recal.networks.spec import ModelOverrides
    from recal.report.blocks import Block
    from recal.report.calibration import WrittenVariant
    from recal.variant.variant import Variant

Item = TypeVar("Item")

MATRIX_MODES = ("clean", "weak", "strong")
NOT_IN_ONNX = ("matrix", "statistics", "tolerance", "device", "workers", "autocast")


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """The options that say how statistics are estimated."""

    estimator: str
    samples: int | None
    tolerance: float | None
    min_samples: int
    skip_broken: bool
    batch_size: int
    seed: int
    device: str
    autocast: str | None
    workers: int

    def settings(self, world: World) -> Settings:
        """Return the settings for the processes that share the images."""
        import torch

        from recal.calibration.rounds import Settings
        from recal.distributed import local_device

        return Settings(
            estimator=self.estimator,
            samples=self.most_images if self.tolerance is None else self.samples,
            tolerance=self.tolerance,
            min_images=self.min_samples,
            skip_broken=self.skip_broken,
            batch_size=self.batch_size,
            seed=self.seed,
            device=torch.device(local_device(choose_device(self.device))),
            autocast=dtype_named(self.autocast),
            workers=self.workers,
            world=world,
        )

    @property
    def most_images(self) -> int:
        """The maximum number of images without --tolerance."""
        from recal.data.sampling import DEFAULT_SAMPLES

        return self.samples or DEFAULT_SAMPLES


ESTIMATION = tuple(Estimation.__dataclass_fields__)
NOT_WITH_STATISTICS = ("mode", "policy", "data", "matrix", *ESTIMATION)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options that say which variants to make, from which images, and where to write them."""

    mode: tuple[str, ...]
    policy: Path | None
    data: Path | None
    output: Path | None
    affine: tuple[str, ...]
    matrix: bool
    statistics: str | None
    form: str

    @property
    def modes(self) -> tuple[str | Path, ...]:
        """The policies, by name or by file."""
        if self.policy is not None:
            return (self.policy,)
        return MATRIX_MODES if self.matrix and not is_given("mode") else self.mode

    @property
    def one_mode(self) -> str | Path:
        """The policy, where only one can be used."""
        return _one(self.modes, "--mode")

    @property
    def one_affine(self) -> str | None:
        """The branch of weight and bias, where only one can be used; None for the usual one."""
        return _one(self.affine, "--affine") if self.affine else None


def _one(items: Sequence[Item], option: str) -> Item:
    if len(items) != 1:
        raise click.UsageError(
            f"{option}: expected one without --matrix, got {len(items)}. Name one, or add --matrix."
        )
    return items[0]


@click.command(
    "calibrate",
    epilog=examples(
        "recal calibrate checkpoint.pth --mode weak --data IMAGES",
        "recal calibrate checkpoint.pth --matrix -o variants",
        "recal calibrate base.onnx --mode clean --data IMAGES -o here.safetensors",
    ),
)
@click.argument("checkpoint", required=False, type=PATH)
@option(
    "--mode",
    "Policy that augments the images: clean, weak, strong, ... (see `recal policies`). With "
    "--matrix, several separated by commas.",
    Names(),
    "weak",
    shown="weak; clean,weak,strong with --matrix",
)
@policy_option("--mode")
@data_option("Folder of images; labels are not needed.", "$RECAL_DATA, ./data, ...")
@output_option(
    "Variant file to write; with --matrix, a folder of them.", "CHECKPOINT-AFFINE-MODE.safetensors"
)
@option(
    "--affine",
    "Branch that weight and bias come from. With --matrix, several separated by commas.",
    Names(),
    (),
    shown="main; aux0 for strong; all with --matrix",
)
@flag(
    "--matrix", "Write a variant for every combination of affine and mode, reading the images once."
)
@option(
    "--statistics",
    "Branch whose stored statistics are combined with --affine; nothing is estimated.",
)
@option(
    "--estimator",
    "Estimator of the statistics: pooled, consistent, ema or mean-of-batches.",
    default="pooled",
)
@samples_option("Maximum number of images to use.", shown="10,000; all with --tolerance")
@option(
    "--tolerance",
    "Stop when the 95 % error bound of every layer is this small, such as 0.02.",
    click.FLOAT,
)
@option("--min-samples", "Minimum number of images; fewer are an error.", click.IntRange(1), 8)
@flag("--skip-broken", "Leave out images that cannot be decoded; without it they are an error.")
@batch_size_option(128)
@seed_option("the choice of images and of the policy's draws")
@device_option
@autocast_option
@workers_option(spare_cores, "number of cores less 1, at most 8")
@format_option
@reading_options
@packed("estimation", Estimation, ESTIMATION)
@packed("request", Request, tuple(Request.__dataclass_fields__))
def command(
    checkpoint: Path | None, request: Request, estimation: Estimation, reading: ReadingOptions
) -> None:
    """Estimate the BatchNorm statistics of CHECKPOINT on augmented images.

    Writes a variant: the BatchNorm tensors alone, bound to the checkpoint by a hash. Without a
    CHECKPOINT, the bundled sample is used. CHECKPOINT may be a patchable ONNX file: then ONNX
    Runtime computes, without torch if --mode is clean, and `recal patch` puts the variant into the
    file. Under torchrun, the processes share the images.
    """
    if request.policy is not None:
        refuse_typed(("mode",), "expected it instead of --policy, got both. Leave one out.")
    if checkpoint is not None and checkpoint.suffix == ".onnx":
        refuse_typed(NOT_IN_ONNX, "an ONNX file does not allow this option. Leave it out.")
        _recalibrate(checkpoint, request, estimation, reading.model)
        return
    from recal.checkpoint.checkpoint import read_checkpoint
    from recal.cli.console import quiet_unless, warn
    from recal.distributed import joined

    with joined() as world, quiet_unless(world.leads):
        path, data = checkpoint_or_sample(checkpoint, request.data)
        request = replace(request, data=data)
        loaded = read_checkpoint(path, reading)
        warn(doubt.sentence for doubt in loaded.doubts)
        if request.statistics is not None:
            refuse_typed(
                NOT_WITH_STATISTICS, "with --statistics nothing is estimated. Leave it out."
            )
            _combine(loaded, request)
        elif request.matrix:
            _estimate_matrix(loaded, request, estimation.settings(world))
        else:
            _estimate(loaded, request, estimation.settings(world))


def _combine(checkpoint: Checkpoint, request: Request) -> None:
    """Write the variant of one branch's affine and another's stored statistics."""
    from recal.variant.variant import branch_variant

    affine = request.one_affine or "main"
    variant = branch_variant(checkpoint, affine, statistics=request.statistics)
    name = f"{checkpoint.path.stem}-{affine}-{request.statistics}.safetensors"
    output = request.output or Path(name)
    written = _write({output: variant})
    _print(written, [], request.form, f"Wrote {output}: {variant.label}.")


def _estimate(checkpoint: Checkpoint, request: Request, settings: Settings) -> None:
    """Write one variant with estimated statistics."""
    from recal.calibration.calibrate import calibrate_matrix, usual_affine
    from recal.cli.console import note, progress_bar
    from recal.data.folders import TRAIN
    from recal.policies.families import open_family_images
    from recal.policies.policy import resolve_policy
    from recal.report.calibration import estimation_blocks

    spec = checkpoint.spec
    policy = resolve_policy(request.one_mode, spec.family)
    affine = request.one_affine or usual_affine(checkpoint, policy.name)
    images = open_family_images(spec, request.data, TRAIN)
    note(
        f"{checkpoint.path.name}: weight and bias of branch '{affine}', statistics of "
        f"'{policy.name}' images out of {len(images):,} in {images.where}.",
        request.form,
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        found = calibrate_matrix(
            checkpoint, [affine], [policy], data=images, settings=settings, progress=bar
        )
    if not settings.world.leads:
        return
    (variant,) = found.values()
    output = request.output or Path(f"{checkpoint.path.stem}-{affine}-{policy.name}.safetensors")
    written = _write({output: variant})
    _warn([variant], settings.tolerance)
    _print(
        written,
        estimation_blocks(variant, settings.tolerance),
        request.form,
        f"Wrote {output}. Next: recal eval {checkpoint.path} {output}{retyped()}",
    )


def _estimate_matrix(checkpoint: Checkpoint, request: Request, settings: Settings) -> None:
    """Write every affine with every policy's statistics, and with every other branch's stored."""
    from recal.calibration.calibrate import calibrate_matrix
    from recal.cli.console import note, progress_bar
    from recal.data.folders import TRAIN
    from recal.policies.families import open_family_images
    from recal.policies.policy import resolve_policy
    from recal.report.calibration import matrix_blocks
    from recal.variant.variant import branch_variant

    spec = checkpoint.spec
    policies = [resolve_policy(mode, spec.family) for mode in request.modes]
    affines = request.affine or tuple(checkpoint.branches)
    images = open_family_images(spec, request.data, TRAIN)
    note(
        f"{checkpoint.path.name}: weight and bias of {', '.join(affines)}; statistics of "
        f"{', '.join(policy.name for policy in policies)} images out of {len(images):,} in "
        f"{images.where}.",
        request.form,
    )
    with progress_bar("images", hidden=not settings.world.leads) as bar:
        found = calibrate_matrix(
            checkpoint, affines, policies, data=images, settings=settings, progress=bar
        )
    if not settings.world.leads:
        return
    estimated = list(found.values())
    found |= {
        (affine, branch): branch_variant(checkpoint, affine, statistics=branch)
        for affine in affines
        for branch in checkpoint.branches
        if branch != affine
    }
    folder = request.output or Path(f"{checkpoint.path.stem}-variants")
    written = _write({folder / f"{a}-{s}.safetensors": v for (a, s), v in found.items()})
    _warn(estimated, settings.tolerance)
    _print(
        written,
        matrix_blocks(written, settings.tolerance),
        request.form,
        f"Wrote {len(written)} variants to {folder}. Next: recal eval --checkpoint "
        f"{checkpoint.path} {' '.join(checkpoint.branches)} {folder}/*.safetensors{retyped()}",
    )


def _recalibrate(
    path: Path, request: Request, estimation: Estimation, overrides: ModelOverrides
) -> None:
    """Write a variant with the statistics that the network in an ONNX file sees itself."""
    from recal.cli.console import progress_bar
    from recal.data.folders import TRAIN
    from recal.errors import UsageError
    from recal.onnx_file.predict import network_spec
    from recal.onnx_file.reading import read_model
    from recal.onnx_file.recalibrate import recalibrate
    from recal.onnx_file.session import OnnxNetwork
    from recal.policies.families import open_family_images
    from recal.policies.policy import resolve_policy
    from recal.report.calibration import estimation_blocks

    if request.affine:
        raise UsageError("--affine: an ONNX file has one branch only. Leave it out.")
    if is_given("estimator") and estimation.estimator != "consistent":
        raise UsageError("--estimator: an ONNX file allows 'consistent' only. Leave it out.")
    spec = network_spec(OnnxNetwork(path), overrides, str(path))
    policy = resolve_policy(request.one_mode, spec.family)
    with progress_bar("images") as bar:
        variant = recalibrate(
            read_model(path),
            open_family_images(spec, request.data, TRAIN),
            spec,
            policy,
            samples=estimation.most_images,
            batch_size=estimation.batch_size,
            seed=estimation.seed,
            where=str(path),
            min_images=estimation.min_samples,
            skip_broken=estimation.skip_broken,
            progress=bar,
        )
    output = request.output or Path(f"{path.stem}-{policy.name}.safetensors")
    written = _write({output: variant})
    _warn([variant], None)
    _print(
        written,
        [*estimation_blocks(variant), "Computed by ONNX Runtime."],
        request.form,
        f"Wrote {output}. Next: recal patch {path} {output}",
    )


def _write(variants: Mapping[Path, Variant]) -> list[WrittenVariant]:
    from recal.report.calibration import WrittenVariant
    from recal.variant.file import save_variant

    for path, variant in variants.items():
        save_variant(variant, path)
    return [WrittenVariant(file=path, variant=variant) for path, variant in variants.items()]


def _warn(variants: Sequence[Variant], tolerance: float | None) -> None:
    from recal.cli.console import warn
    from recal.report.calibration import calibration_warnings

    warn(calibration_warnings(variants, tolerance))


def _print(
    written: Sequence[WrittenVariant], blocks: Sequence[Block], form: str, last: str
) -> None:
    """Print what was estimated, and last a sentence about the files."""
    from recal.cli.console import note, print_results

    rows = [item.row for item in written]
    if blocks or form != "plain":
        print_results(form, {"variants": rows}, rows, blocks)
    note(last, form)
