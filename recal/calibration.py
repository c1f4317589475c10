"""Calibration: from a checkpoint, a policy and images to a variant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from recal.bn.build import build
from recal.bn.estimators import ESTIMATORS, set_statistics
from recal.bn.layers import batch_norms
from recal.bn.variant import Variant, branch_variant
from recal.checkpoint.checkpoint import Checkpoint
from recal.data.draws import seeded_batches
from recal.data.finding import find_images
from recal.data.layouts import TRAIN
from recal.data.loading import NormalisedBatches, PolicyImages
from recal.data.policies import Policy, load_family, load_policy
from recal.declared import pick
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from recal.bn.moments import Moments
    from recal.checkpoint.spec import ModelSpec
    from recal.data.sources import ImageSource

DEFAULT_SAMPLES = 10_000
DEFAULT_BATCH = 128


def usual_affine(checkpoint: Checkpoint, mode: str) -> str:
    """Return the branch whose affine suits a mode: the first auxiliary for strong, else main."""
    auxiliary = [name for name in checkpoint.branches if name != "main"]
    return auxiliary[0] if mode.startswith("strong") and auxiliary else "main"


def calibration_images(spec: ModelSpec, data: str | Path | None) -> ImageSource:
    """Open the training images of a folder, or of the family's data set in the usual places.

    Raises:
        InputError: There are none.
    """
    names = load_family(spec.family).folders.get(spec.classes, ())
    folder = None if data is None else Path(data)
    what = f"calibration images ({spec.family})"
    return find_images(folder, names, TRAIN, classes=None, what=what)


@overload
def calibrate(
    source: nn.Module, batches: Iterable[torch.Tensor], *, estimator: str = ...
) -> nn.Module: ...


@overload
def calibrate(
    source: Checkpoint,
    *,
    mode: str | Policy = ...,
    affine: str | None = ...,
    data: str | Path | ImageSource | None = ...,
    estimator: str = ...,
    samples: int | None = ...,
    batch_size: int = ...,
    seed: int = ...,
    device: str = ...,
    workers: int = ...,
    progress: Callable[[int, int], None] | None = ...,
    **asked: Any,
) -> Variant: ...


def calibrate(source: Any, batches: Any = None, **options: Any) -> Any:
    """Re-estimate the statistics of every BatchNorm layer.

    With a module and batches of normalised images (float32, (N, 3, H, W), on the module's device;
    an iterable that can be read again for `consistent`), returns a copy of the module in eval mode
    with new statistics. The module itself stays as it is.

    With a checkpoint, returns a `Variant`. Its options:

    Args:
        source: A module or a `Checkpoint`.
        batches: With a module, the images.
        **options: `estimator` (`pooled` or `consistent`); with a checkpoint also `mode` (a policy
            or the name of one in the network's family), `affine` (the branch that lends weight and
            bias), `data` (a folder or an `ImageSource`; by default looked for in the usual
            places), `samples` (images at most; default 10,000, None for all), `batch_size`, `seed`,
            `device`, `workers`, `progress` (called with images done and in total), and the fields
            of `ModelSpec` that the file does not give.

    Raises:
        InputError: No images, too few, or of the wrong size; weights and architecture do not fit.
        UsageError: An unknown mode, branch or estimator.
    """
    if isinstance(source, Checkpoint):
        return _calibrate_checkpoint(source, **options)
    return _calibrate_module(source, batches, **options)


def _calibrate_module(
    module: nn.Module, batches: Iterable[torch.Tensor], *, estimator: str = "pooled"
) -> nn.Module:
    import copy

    network = copy.deepcopy(module).eval()
    moments = _estimate(network, batches, estimator)
    for name, layer in batch_norms(network).items():
        if name in moments:
            set_statistics(layer, moments[name])
    return network


def _calibrate_checkpoint(
    checkpoint: Checkpoint,
    *,
    mode: str | Policy = "weak",
    affine: str | None = None,
    data: str | Path | ImageSource | None = None,
    estimator: str = "pooled",
    samples: int | None = DEFAULT_SAMPLES,
    batch_size: int = DEFAULT_BATCH,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **asked: Any,
) -> Variant:
    spec = checkpoint.spec(**asked)
    policy = mode if isinstance(mode, Policy) else load_policy(spec.family, mode)
    stored = branch_variant(checkpoint, affine or usual_affine(checkpoint, policy.name), spec)
    network = build(checkpoint, stored).to(device)
    if data is None or isinstance(data, (str, Path)):
        source = calibration_images(spec, data)
    else:
        source = data
    indices = seeded_batches(len(source), samples or len(source), batch_size, seed)
    passes = len(batch_norms(network)) if estimator == "consistent" else 1
    total = sum(map(len, indices)) * passes
    images = PolicyImages(source, policy, seed, spec.size)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    batches = NormalisedBatches(
        images, indices, mean=spec.mean, std=spec.std, device=torch.device(device),
        workers=workers, on_batch=on_batch,
    )  # fmt: skip
    moments = _estimate(network, batches, estimator)
    tensors = dict(stored.tensors)
    for layer, found in moments.items():
        tensors[f"{layer}.running_mean"] = found.mean.float().cpu()
        tensors[f"{layer}.running_var"] = found.variance.float().cpu()
    used = [int(index) for batch in indices for index in batch]
    return Variant(
        tensors=tensors,
        weights_sha256=stored.weights_sha256,
        spec=spec,
        affine=stored.affine,
        statistics={
            "source": "policy",
            "policy": policy.name,
            "policy_sha256": policy.sha256,
            "policy_text": policy.text,
            "data_sha256": source.fingerprint(used),
            "images": len(used),
            "batch_size": batch_size,
            "estimator": estimator,
            "seed": seed,
            "layers_without_data": sorted(set(batch_norms(network)) - set(moments)),
        },
    )


def _estimate(
    network: nn.Module, batches: Iterable[torch.Tensor], estimator: str
) -> dict[str, Moments]:
    moments = ESTIMATORS[pick(estimator, ESTIMATORS, "--estimator")](network, batches)
    if not moments:
        raise InputError("calibration: expected at least one image, got none.")
    for name, found in moments.items():
        if not (found.mean.isfinite().all() and found.m2.isfinite().all()):
            raise InputError(
                f"calibration: layer {name}: expected finite values, got NaN or infinity. Look for "
                "them in the checkpoint (`recal inspect`) and in the images."
            )
    return moments
