"""Calibration: from a checkpoint, policies and images to variants."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recal.calibration.estimators import Estimate, layer_errors
from recal.calibration.feeding import check_feeding, sample_pixels
from recal.calibration.modules import calibrate_module
from recal.calibration.rounds import (
    DEFAULT_BATCH,
    Estimation,
    Key,
    Settings,
    estimate,
)
from recal.calibration.selection import estimate_only
from recal.checkpoint.checkpoint import Checkpoint
from recal.data.images import MIN_IMAGES, ImageSource, image_hashes
from recal.data.sampling import DEFAULT_SAMPLES
from recal.data.splits import TRAIN
from recal.distributed import ALONE, WHOLE, Part, World
from recal.errors import InputError, listed
from recal.networks.feeding import AS_ASSUMED
from recal.policies.families import open_family_images
from recal.policies.policy import Policy, resolve_policy
from recal.policies.prepared import PreparedTogether
from recal.progress import Progress, silent
from recal.variant.build import build_runnable
from recal.variant.statistics import EstimatedStatistics
from recal.variant.variant import STATISTICS, Variant, initial_variant


def usual_affine(checkpoint: Checkpoint, mode: str) -> str:
    """Return the branch whose affine is used by default for a policy of the name `mode`.

    It is the first auxiliary branch if there is one and the name begins with `strong`, else `main`.
    """
    auxiliary = (name for name in checkpoint.branches if name != "main")
    return next(auxiliary, "main") if mode.startswith("strong") else "main"


@overload
def calibrate(
    source: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = ...,
    estimator: str = ...,
    layers: str | Iterable[str] = ...,
    autocast: torch.dtype | None = ...,
    world: World = ...,
) -> nn.Module: ...


@overload
def calibrate(
    source: Checkpoint,
    *,
    mode: str | Path | Policy | None = ...,
    affine: str | None = ...,
    data: str | Path | ImageSource | None = ...,
    estimator: str = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    seed: int = ...,
    tolerance: float | None = ...,
    min_images: int = ...,
    skip_broken: bool = ...,
    device: str | torch.device = ...,
    workers: int = ...,
    layers: str | Iterable[str] = ...,
    autocast: torch.dtype | None = ...,
    world: World = ...,
    progress: Progress = ...,
) -> Variant: ...


def calibrate(
    source: nn.Module | Checkpoint,
    batches: Iterable[Any] | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    mode: str | Path | Policy | None = None,
    affine: str | None = None,
    data: str | Path | ImageSource | None = None,
    estimator: str = "pooled",
    samples: int | None = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH,
    seed: int = 0,
    tolerance: float | None = None,
    min_images: int = MIN_IMAGES,
    skip_broken: bool = False,
    device: str | torch.device = "cpu",
    workers: int = 0,
    layers: str | Iterable[str] = (),
    autocast: torch.dtype | None = None,
    world: World = ALONE,
    progress: Progress = silent,
) -> nn.Module | Variant:
    """Re-estimate the statistics of every BatchNorm layer.

    With a module and batches of normalised images, returns a copy of the module in eval mode with
    new statistics; the module itself is not changed. Frozen BatchNorm is calibrated, too, and
    BatchNorm with `track_running_stats=False` is given statistics. Layers that keep their
    statistics are named in a `RecalWarning`. Of the keyword arguments, only `forward`, `estimator`,
    `layers`, `autocast` and `world` go with a module.

    With a checkpoint, returns a `Variant`.

    Args:
        source: A module, or a `Checkpoint` as `load_checkpoint` returns it.
        batches: With a module, batches of float images (N, C, H, W), alone or before their labels,
            as loaders return them; or anything that `forward` takes. `consistent` may read them
            several times.
        forward: With a module, the function that runs it on a batch, for modules of several inputs
            and batches of any kind: `lambda module, batch: module(batch["left"], batch["right"])`.
            It is called with a copy of the module in eval mode, from several threads, and moves the
            batch to the module's device itself. What it returns is ignored. Statistics are of all
            values that reach a layer, so the number of images in a batch is not needed.
        mode: Policy that is applied to the images: its name in the network's family, a .toml file,
            or a `Policy`; by default `weak`.
        affine: Branch that weight and bias come from; by default the first auxiliary branch for
            policies named `strong...`, else `main`.
        data: A folder of images, or an `ImageSource`; by default the family's data set in the usual
            places.
        estimator: Name of an estimator: `pooled`, `consistent`, `ema` or `mean-of-batches`.
        samples: Largest number of images, which the seed chooses; None for all.
        batch_size: Images per batch.
        seed: Seed of the choice and order of images, and of the policy's draws.
        tolerance: Stop when the largest 95 % error bound of all layers is at most this, a relative
            error between 0 and 1; None to use all samples.
        min_images: Smallest number of images that is accepted.
        skip_broken: Whether to leave out images that cannot be decoded; otherwise they are an
            error.
        device: Device that the network runs on.
        workers: Number of processes that decode and augment images.
        layers: Layers to estimate: names, patterns such as `layer4.*`, `first` or `last`; none for
            all. The others keep their statistics and normalise by them.
        autocast: Reduced precision of the forward pass, such as `torch.bfloat16`; None for float32.
        world: The processes of a distributed job, as `recal.distributed.joined` returns them. With
            a module, each process gives its own batches, and all get the same statistics.
        progress: Called with the numbers of image passes done and expected.

    Raises:
        UsageError: There is no such policy, branch or estimator, or a number is out of its range;
            or the stored statistics fit the images clearly better under another normalisation than
            the assumed one, which `Checkpoint.overridden` sets (`mean`, `std`, `channel_order`, or
            `mean="as-assumed"`).
        InputError: There are no images, or too few; or they have the wrong size; or weights and
            architecture do not fit.
        TypeError: An argument does not go with a module.
    """
    settings = Settings(
        estimator=estimator,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        tolerance=tolerance,
        min_images=min_images,
        skip_broken=skip_broken,
        device=torch.device(device),
        workers=workers,
        autocast=autocast,
        world=world,
        layers=(layers,) if isinstance(layers, str) else tuple(layers),
    )
    if isinstance(source, Checkpoint) and batches is None and forward is None:
        policy = resolve_policy(mode or "weak", source.spec.family)
        branch = affine or usual_affine(source, policy.name)
        table = calibrate_matrix(
            source, [branch], [policy], data=data, settings=settings, progress=progress
        )
        return table[branch, policy.name]
    if not isinstance(source, nn.Module) or batches is None:
        raise TypeError(
            "calibrate: expected a checkpoint, as load_checkpoint returns it, or a module and "
            f"batches, got {type(source).__name__} and {type(batches).__name__}"
            + ("; forward goes with a module alone" if forward is not None else "")
        )
    fitting = Settings(estimator=estimator, autocast=autocast, world=world, layers=settings.layers)
    if settings != fitting or not mode is affine is data is None:
        raise TypeError(
            "calibrate: with a module, only estimator, layers, autocast, world and forward go"
        )
    return calibrate_module(source, batches, settings, forward)


def calibrate_matrix(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    modes: Sequence[str | Path | Policy],
    *,
    data: str | Path | ImageSource | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> dict[tuple[str, str], Variant]:
    """Estimate the statistics of every affine under every policy in one reading of the images.

    Each image is decoded once. The variants are those that `calibrate` returns one by one; with a
    tolerance, all use as many images as the one that needs most.

    Args:
        checkpoint: The checkpoint with the weights.
        affines: Branches that weight and bias come from.
        modes: Policies, .toml files, or names of policies of the network's family.
        data: Images as for `calibrate`.
        settings: How to estimate; by default `Settings()`.
        progress: Called with the numbers of image passes done and expected.

    Returns:
        The variants by branch and policy name, in the order given.

    Raises:
        UsageError, InputError: The same faults as for `calibrate`.
    """
    plan = prepare_calibration(checkpoint, affines, modes, data, settings or Settings())
    found = plan.estimate(progress=progress)
    used = np.concatenate(found.batches)
    # hashing reads every image's file: one process is enough
    hashes = plan.settings.world.ask_leader(lambda: image_hashes(plan.images.source, used))
    return {
        (draft.affine, draft.estimated.policy): with_estimates(
            draft, found.layers[key], hashes, found.skipped, found.passes[key]
        )
        for key, draft in plan.drafts.items()
    }


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibration that is ready to be computed.

    Attributes:
        images: The images under their policies.
        networks: The networks on the device, by affine and number of the policy.
        drafts: The variants to make: with stored statistics, but the record of the estimated ones.
        settings: How to estimate.
    """

    images: PreparedTogether
    networks: dict[Key, nn.Module]
    drafts: dict[Key, Variant]
    settings: Settings

    def estimate(self, *, part: Part = WHOLE, progress: Progress = silent) -> Estimation:
        """Estimate the statistics of all variants, or the moments of a part of the batches."""
        spec = next(iter(self.drafts.values())).spec
        return estimate(
            self.networks, self.images, self.settings, spec, part=part, progress=progress
        )


def prepare_calibration(
    checkpoint: Checkpoint,
    affines: Sequence[str],
    modes: Sequence[str | Path | Policy],
    data: str | Path | ImageSource | None,
    settings: Settings,
) -> Calibration:
    """Open the images and build the networks of a calibration, as `calibrate_matrix` needs them."""
    spec = checkpoint.spec
    policies = [resolve_policy(mode, spec.family) for mode in modes]
    stored = {affine: initial_variant(checkpoint, affine) for affine in affines}
    built = {
        affine: build_runnable(checkpoint, variant).to(settings.device)
        for affine, variant in stored.items()
    }
    chosen: tuple[str, ...] = ()
    if settings.layers:
        example = torch.zeros(2, *spec.input_shape, device=settings.device)
        for network in built.values():
            chosen = estimate_only(network, settings.layers, example)
        if unknown := set(checkpoint.missing) - set(chosen):
            raise InputError(
                f"{checkpoint.path}: --layers: expected all layers without stored statistics among "
                f"them, got some without {listed(sorted(unknown))}."
            )
    if data is None or isinstance(data, (str, Path)):
        data = open_family_images(spec, data, TRAIN)
    if spec.input_from != AS_ASSUMED:
        check_feeding(checkpoint, spec, sample_pixels(data, spec))
    images = PreparedTogether(data, policies, settings.seed, spec.preparation)
    networks: dict[Key, nn.Module] = {}
    drafts: dict[Key, Variant] = {}
    for affine, variant in stored.items():
        tensors = dict(variant.tensors)
        for name in checkpoint.missing:
            for leaf in STATISTICS:  # no number may stand for statistics that nobody knows
                tensors[f"{name}.{leaf}"] = np.full_like(tensors[f"{name}.{leaf}"], np.nan)
        for number, policy in enumerate(policies):
            statistics = EstimatedStatistics(
                policy=policy.name,
                policy_sha256=policy.sha256,
                policy_text=policy.text,
                data_sha256="",
                whole=images.each[number].whole,
                images=1,
                batch_size=settings.batch_size,
                estimator=settings.estimator,
                passes=1,
                seed=settings.seed,
                tolerance=settings.tolerance,
                autocast=None if settings.autocast is None else str(settings.autocast),
                errors={},
                layers=chosen,
            )
            networks[affine, number] = built[affine]
            drafts[affine, number] = replace(
                variant, tensors=tensors, statistics=statistics, spec=spec.prepared_by(policy)
            )
    return Calibration(
        images=images,
        networks=networks,
        drafts=drafts,
        settings=settings,
    )


def with_estimates(
    draft: Variant,
    layers: Mapping[str, Estimate],
    hashes: NDArray[np.uint8],
    skipped: Sequence[str],
    passes: int = 1,
) -> Variant:
    """Return a variant of `Calibration` with its statistics.

    Args:
        draft: The variant without them.
        layers: The statistics of every layer that saw data.
        hashes: Hashes of the images used, in order, as `image_hashes` returns them.
        skipped: Names of images that were left out.
        passes: Number of passes over the images.
    """
    tensors = dict(draft.tensors)
    for name, layer in layers.items():
        tensors[f"{name}.running_mean"] = layer.mean.float().cpu().numpy()
        tensors[f"{name}.running_var"] = layer.variance.float().cpu().numpy()
    statistics = msgspec.structs.replace(
        draft.estimated,
        data_sha256=hashlib.sha256(hashes.tobytes()).hexdigest(),
        images=len(hashes),
        skipped=tuple(skipped),
        passes=passes,
        errors=layer_errors(layers),
        layers_without_data=tuple(
            sorted(set(draft.estimated.layers or draft.layers) - set(layers))
        ),
    )
    return replace(draft, tensors=tensors, statistics=statistics)
