"""Exporting a file's variants again and comparing: record, every tensor, outputs, bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recal.errors import UsageError, VerificationError, listed
from recal.export.export import held_variants
from recal.export.forms import FLOAT_FORMS, Evidence, Form, Int8
from recal.export.int8_images import (
    HeldOutImages,
    RangeImages,
    held_out_images,
    range_images,
    shipped_policy,
)
from recal.export.subject import Subject, make_subjects
from recal.onnx_file.reading import graph_bytes, read_model, tensor_digest
from recal.onnx_file.record import OnnxRecord, check_digest, read_record, with_onnx
from recal.progress import silent
from recal.variant.statistics import BranchStatistics
from recal.variant.variant import branch_variant, versions_with_torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from numpy.typing import NDArray

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.onnx_file.record import Ranges
    from recal.variant.variant import Variant


# relative to a range's width, because another processor adds up in another order
SAME_RANGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of comparing a file with its checkpoint and variants.

    Attributes:
        record: What the file says of itself.
        evidence: What was shown of the file on the images given.
        same_bytes: Whether the graph equals the one exported again, byte for byte.
        same_ranges: Whether an int8 file's ranges were taken again, on the images that it records.
    """

    record: OnnxRecord
    evidence: Evidence
    same_bytes: bool
    same_ranges: bool = False


def verify_against(
    path: Path,
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    images: NDArray[np.uint8],
    data: Path | None = None,
) -> Comparison:
    """Export variants again and compare them with a file.

    Args:
        path: The file.
        checkpoint: The weights that it should hold.
        variants: The variants that it should hold, in order.
        images: Images to compare outputs on, uint8 (N, size, size, 3).
        data: The folder that an int8 file may have been made with. If it holds the images that the
            file records, the ranges are taken again, and the file is judged again.

    Raises:
        VerificationError: The file is not these variants of these weights. The message names a
            tensor that differs.
        InputError: It is no ONNX file of recal's.
        UsageError: The file holds another number of variants.
    """
    where, model = str(path), read_model(path)
    record = read_record(model, where)
    if len(record.variants) != len(variants):
        raise UsageError(
            f"{path}: --variant: expected the {len(record.variants)} variants of the file, in "
            f"order, got {len(variants)}."
        )
    names = [held.name for held in record.variants]
    subjects = make_subjects(checkpoint, dict(zip(names, variants, strict=True)), images, where)
    _check_claims(record, subjects)
    form, same_ranges = _recorded_form(record, subjects, data)
    again = form.make(subjects, record.options)
    differing = different_tensors(model, again)
    if differing:
        raise VerificationError(
            f"{path}: expected the tensors of the variant, got others in {listed(differing, 5)}. "
            "The file was changed, or is not what its record says."
        )
    evidence = form.prove(model.SerializeToString(), subjects, record.options, silent)
    same_bytes = graph_bytes(model) == graph_bytes(again)
    if not same_bytes and record.versions == with_onnx(versions_with_torch()):
        raise VerificationError(
            f"{path}: expected the bytes of the same export, got another graph with the same "
            "tensors: its nodes were changed."
        )
    check_digest(model, record, where)
    return Comparison(
        record=record, evidence=evidence, same_bytes=same_bytes, same_ranges=same_ranges
    )


def recorded_variants(record: OnnxRecord, checkpoint: Checkpoint, path: Path) -> list[Variant]:
    """Return the variants that a record names, if they are made of stored branches.

    Raises:
        UsageError: The statistics of one were estimated, so that its file is needed.
    """
    found = []
    for held in record.variants:
        if not isinstance(held.statistics, BranchStatistics):
            raise UsageError(
                f"{path}: holds {held.name}, whose statistics only its variant file gives. Name it "
                "with --variant (for a switchable file all of them, with commas between)."
            )
        found.append(
            branch_variant(
                checkpoint, held.affine, statistics=held.statistics.branch, spec=record.model
            )
        )
    return found


def different_tensors(found: onnx.ModelProto, expected: onnx.ModelProto) -> list[str]:
    """Return the names of the initialisers that two models do not share."""
    ours, theirs = _digests(found.graph), _digests(expected.graph)
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def _digests(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the hash of every initialiser, in graphs inside nodes too, by name."""
    digests = {tensor.name: tensor_digest(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                digests |= _digests(attribute.g)
    return digests


def _check_claims(record: OnnxRecord, subjects: Sequence[Subject]) -> None:
    variant, where = subjects[0].variant, subjects[0].where
    claims = [
        ("weights_sha256", record.weights_sha256, variant.weights_sha256),
        ("model", record.model, variant.spec),
    ]
    pairs = zip(record.variants, held_variants(subjects), strict=True)
    claims += [(f"variants {i}: sha256", h.sha256, o.sha256) for i, (h, o) in enumerate(pairs, 1)]
    for key, found, expected in claims:
        if found != expected:
            raise VerificationError(
                f"{where}: {key}: expected {_brief(expected)} as checkpoint and variant give it, "
                f"got {_brief(found)}."
            )


def _recorded_form(
    record: OnnxRecord, subjects: Sequence[Subject], data: Path | None
) -> tuple[Form, bool]:
    """Return the form that a record names, and whether ranges were taken again and are the same."""
    if record.int8 is None:
        return FLOAT_FORMS[record.form], False
    subject, recorded = subjects[0], record.int8
    # judged on any images, the file may lose what it will
    unlabelled = HeldOutImages(pixels=subject.images, labels=None, what="images")
    nothing = np.zeros((0, *subject.images.shape[1:]), np.uint8)
    images = RangeImages(
        record=recorded.range_images, pixels=nothing, indices=np.zeros(0, np.int64), where=Path()
    )
    form = Int8(images=images, held_out=unlabelled, max_drop=1.0, ranges=recorded.ranges)
    if data is None:
        return form, False
    spec, made_of = subject.spec, recorded.range_images
    policy = shipped_policy(spec, made_of.policy, made_of.policy_sha256)
    images = range_images(
        spec, subject.variant.statistics, data, policy=policy, count=made_of.images
    )
    if images.record != made_of:
        return form, False
    form = replace(form, images=images)
    _check_ranges(recorded.ranges, form.fitted(subjects, record.options).ranges, subject.where)
    held_out = held_out_images(spec, data, images, recorded.proof.images)
    return replace(form, held_out=held_out, max_drop=recorded.max_drop), True


def _check_ranges(recorded: Ranges, found: Ranges, where: str) -> None:
    for name, (low, high) in recorded.items():
        lowest, highest = found.get(name, (low, high))
        if max(abs(lowest - low), abs(highest - high)) > SAME_RANGE * (highest - lowest):
            raise VerificationError(
                f"{where}: tensor '{name}': expected the range {lowest:.4g} to {highest:.4g} of "
                f"the images that the file records, got {low:.4g} to {high:.4g}. The record was "
                "changed."
            )


def _brief(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
