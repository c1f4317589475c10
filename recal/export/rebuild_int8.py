"""Checking an int8 file once more: its ranges on the images they came from, and what it loses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.errors import InputError, VerificationError
from recal.export.export_int8 import ranges_of
from recal.export.images import (
    HeldOutImages,
    calibration_images,
    held_out_images,
    shipped_policy,
)
from recal.export.int8_proof import judge
from recal.wording import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from recal.export.export import ExportOptions
    from recal.export.int8 import Ranges
    from recal.export.int8_proof import Int8Proof
    from recal.variant.variant import Variant


# of a range's width; another processor adds up in another order
SAME_RANGE = 1e-3


def judge_again(
    content: bytes,
    folded: bytes,
    network: nn.Module,
    rivals: Mapping[str, nn.Module],
    variant: Variant,
    made: Mapping[str, Any],
    options: ExportOptions,
    images: NDArray[np.uint8],
    data: Path | None,
    where: str,
) -> tuple[Int8Proof, bool]:
    """Repeat what was shown of an int8 file when it was exported, as far as the images are here.

    Args:
        content: The file.
        folded: The same network in float32.
        network: What it should be, in eval mode on the CPU.
        rivals: The other branches, by name.
        variant: The variant that it should be.
        made: The record's entry `int8`.
        options: The form of the file.
        images: What to compare outputs on, uint8 (N, size, size, 3), where there is no `data`.
        data: The folder that the file may have been made with.
        where: The file's name in messages.

    Returns:
        How it differs from float32, and whether its ranges were recomputed and found the same.

    Raises:
        VerificationError: It does not stand for the network, or its ranges are others than those of
            the images that it records, or on these it loses more than was allowed.
        InputError: The record says too little.
    """
    spec, max_drop = variant.spec, None
    held_out = HeldOutImages(pixels=images, labels=None, what=f"{len(images)} images")
    same = False
    try:
        recorded, count = made["calibration"], int(made["calibration"]["images"])
        allowed, tested = float(made["max_drop"]), int(made["images"])
        check_type(recorded["policy"], str, "policy")
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{where}: int8: expected a record of its images, got {error}.") from error
    if data is not None:
        policy = shipped_policy(spec, recorded["policy"], recorded.get("policy_sha256"))
        calibration = calibration_images(spec, variant.statistics, data, policy=policy, count=count)
        same = dict(calibration.record) == recorded
    if data is not None and same:
        _check_ranges(made["ranges"], ranges_of(network, spec, options, calibration.pixels), where)
        held_out, max_drop = held_out_images(spec, data, calibration, tested), allowed
    proof = judge(content, folded, network, rivals, held_out, spec, max_drop=max_drop, where=where)
    return proof, same


def _check_ranges(recorded: Ranges, found: Ranges, where: str) -> None:
    for name, (low, high) in recorded.items():
        lowest, highest = found.get(name, (low, high))
        if max(abs(lowest - low), abs(highest - high)) > SAME_RANGE * (highest - lowest):
            raise VerificationError(
                f"{where}: tensor '{name}': expected the range {lowest:.4g} to {highest:.4g} of "
                f"the images that the file records, got {low:.4g} to {high:.4g}. The record was "
                "changed."
            )
