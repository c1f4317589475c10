"""What can be wrong with the branches of a checkpoint, one function per fault.

To add a fault, write a function from a checkpoint to findings and add it to `CHECKS`.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from itertools import combinations

import torch

from recal.checkpoint.checkpoint import Checkpoint, Finding
from recal.errors import listed
from recal.variant.variant import STATISTICS

# a smaller variance is negligible beside the 1e-5 that BatchNorm adds to it
VANISHING = 1e-12


def examine(checkpoint: Checkpoint) -> tuple[Finding, ...]:
    """Return the findings of every check."""
    return tuple(finding for check in CHECKS for finding in check(checkpoint))


def _failing(
    checkpoint: Checkpoint, leaf: str, test: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Yield branches of which channels fail a test, with the layers and the number of channels."""
    for name, tensors in checkpoint.branches.items():
        keys = ((layer, f"{layer}.{leaf}") for layer in checkpoint.layers)
        channels = {layer: int(test(tensors[key]).sum()) for layer, key in keys if key in tensors}
        layers = tuple(layer for layer, count in channels.items() if count)
        if layers:
            yield name, layers, sum(channels.values())


def _never_trained(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, tensors in checkpoint.branches.items():
        layers = tuple(
            layer
            for layer in checkpoint.layers
            if not tensors[f"{layer}.running_mean"].any()
            and bool((tensors[f"{layer}.running_var"] == 1).all())
        )
        if layers:
            whole = len(layers) == len(checkpoint.layers)
            yield Finding(
                kind="never-trained",
                branch=name,
                layers=layers,
                what="never trained: mean 0 and variance 1 throughout"
                if whole
                else f"{listed(layers)} never trained: mean 0 and variance 1 in every channel",
                follows="Its outputs mean nothing; do not deploy it, or estimate its statistics "
                "first (recal calibrate).",
            )


def _no_statistics(checkpoint: Checkpoint) -> Iterator[Finding]:
    if checkpoint.missing:
        count = f"{len(checkpoint.missing)} of {len(checkpoint.layers)} layers"
        yield Finding(
            kind="no-statistics",
            layers=checkpoint.missing,
            what=f"statistics: none stored for {count} ({listed(checkpoint.missing)}); calibrate "
            "first",
            follows=f"recal calibrate {shlex.quote(str(checkpoint.path))} estimates them on "
            "images; the variant that it writes can be evaluated and exported.",
        )


def _not_finite(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, tensors in checkpoint.branches.items():
        broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
        layers = tuple(
            layer
            for layer in dict.fromkeys(key.rpartition(".")[0] for key in broken)
            if layer not in checkpoint.missing
        )
        if layers:
            yield Finding(
                kind="not-finite",
                branch=name,
                layers=layers,
                what=f"NaN or infinity in {listed(layers)}",
                follows="Every output through this branch is NaN. "
                + (
                    f"recal calibrate {shlex.quote(str(checkpoint.path))} estimates its statistics."
                    if all(key.endswith(STATISTICS) for key in broken)
                    else "Training diverged, or the file is damaged."
                ),
            )
    weights = tuple(
        name
        for name, tensor in checkpoint.weights.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    )
    if weights:
        yield Finding(
            kind="not-finite",
            layers=weights,
            what=f"NaN or infinity in the shared weights {listed(weights)}",
            follows="No branch can give finite outputs; training diverged, or the file is damaged.",
        )


def _negative_variance(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, layers, _ in _failing(checkpoint, "running_var", lambda v: v < 0):
        yield Finding(
            kind="negative-variance",
            branch=name,
            layers=layers,
            what=f"negative variances in {listed(layers)}",
            follows="Their root is NaN or wrong; estimate the statistics again (recal calibrate).",
        )


def _vanishing_variance(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, layers, channels in _failing(
        checkpoint, "running_var", lambda variance: variance.abs() < VANISHING
    ):
        yield Finding(
            kind="vanishing-variance",
            branch=name,
            layers=layers,
            what=f"{channels} channels of variance 0 in {listed(layers)}",
            follows="Their input is constant: a unit before them is dead. Any input that does "
            "move there is multiplied by 1 / sqrt(epsilon), usually 316.",
        )


def _dead_channels(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, layers, channels in _failing(checkpoint, "weight", lambda weight: weight == 0):
        yield Finding(
            kind="dead-channels",
            branch=name,
            layers=layers,
            what=f"{channels} channels of weight 0 in {listed(layers)}",
            follows="They pass on a constant whatever the statistics: pruned, or never left a "
            "zero initialisation.",
        )


def _equal_branches(checkpoint: Checkpoint) -> Iterator[Finding]:
    for (first, tensors), (second, others) in combinations(checkpoint.branches.items(), 2):
        differing = {
            key.rpartition(".")[2]
            for key in tensors.keys() & others.keys()
            if not torch.equal(tensors[key], others[key])
        }
        if differing.isdisjoint(("running_mean", "running_var")):
            same_affine = differing.isdisjoint(("weight", "bias"))
            yield Finding(
                kind="equal-branches",
                branch=second,
                what=f"the same {'values' if same_affine else 'statistics'} as {first}",
                follows="The auxiliary BatchNorm was never used in training, or one was copied "
                "from the other."
                if same_affine
                else "Both were trained on the same images, or their statistics are shared.",
            )


def _adversarial_preprocessing(checkpoint: Checkpoint) -> Iterator[Finding]:
    """EfficientNet's AdvProp weights were trained with Inception's mean and deviation."""
    names = f"{checkpoint.facts.arch or ''} {checkpoint.path.name}".lower()
    stem = checkpoint.weights.keys() & {"conv_stem.weight", "_conv_stem.weight"}
    if (
        stem
        and re.search(r"(^|[-_. ])(ap|adv|advprop)([-_. ]|$)", names)
        and checkpoint.facts.mean is None
    ):
        yield Finding(
            kind="ap-preprocessing",
            what="by its name an EfficientNet trained with AdvProp ('AP')",
            follows="Those weights expect Inception's preprocessing: --mean 0.5,0.5,0.5 --std "
            "0.5,0.5,0.5. With ImageNet's usual numbers they work, some points worse.",
        )


def _widths(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Slimmable networks spell their widths as DuBN spells its branches."""
    if checkpoint.layout.name in ("dubn", "dubin") and len(checkpoint.branches) > 2:
        yield Finding(
            kind="width-collision",
            what=f"{len(checkpoint.branches)} branches under the names of DuBN, which has two",
            follows="Slimmable networks number their widths so; equal channel counts speak against "
            "that here. Say --layout plain if they are layers used one after the other.",
        )


CHECKS: tuple[Callable[[Checkpoint], Iterator[Finding]], ...] = (
    _never_trained,
    _no_statistics,
    _not_finite,
    _negative_variance,
    _vanishing_variance,
    _dead_channels,
    _equal_branches,
    lambda checkpoint: iter(checkpoint.doubtful),
    lambda checkpoint: iter([checkpoint.lost_activations] if checkpoint.lost_activations else []),
    _adversarial_preprocessing,
    _widths,
)
