"""Exporting a file's variants again and comparing: record, every tensor, outputs, bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from recal.checkpoint.checkpoint import Checkpoint
from recal.errors import UsageError, VerificationError, listed
from recal.export.forms import FLOAT_FORMS, Evidence, Form, Int8
from recal.export.int8_images import (
    HeldOutImages,
    RangeImages,
    held_out_images,
    range_images,
    shipped_policy,
)
from recal.export.preparation import prove_preparation
from recal.export.subject import Subject, make_subjects, pictures
from recal.onnx_file.preparing import resizes
from recal.onnx_file.reading import all_tensors, graph_bytes, read_model
from recal.onnx_file.record import OnnxRecord, check_digest, read_record, with_onnx
from recal.progress import silent
from recal.variant.statistics import BranchStatistics
from recal.variant.variant import Variant, branch_variant, versions_with_torch

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
        images: Images to compare outputs on, uint8 (N, size, size, C).
        data: The folder that an int8 file may have been made with. If it holds the recorded images,
            the ranges are taken again, and the file is judged again. A file that prepares images
            is compared with Pillow on its images, or on the bundled ones.

    Raises:
        VerificationError: The file is not these variants; the message names a tensor that differs.
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
    claims: list[tuple[str, object, object]] = [
        ("weights_sha256", record.weights_sha256, variants[0].weights_sha256),
        ("model", record.model, variants[0].spec),
    ]
    for number, (held, variant) in enumerate(zip(record.variants, variants, strict=True), 1):
        claims.append((f"variants {number}: sha256", held.sha256, variant.sha256))
    for key, found, expected in claims:
        if found != expected:
            own, given = (v[:12] if isinstance(v, str) else v for v in (found, expected))
            raise VerificationError(
                f"{where}: {key}: expected {given} as checkpoint and variant give it, got {own}."
            )
    form, same_ranges = _recorded_form(record, subjects, data)
    again = form.make(subjects, record.options)
    ours, theirs = (
        {
            t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes())
            for t in all_tensors(m.graph)
            if t.name
        }
        for m in (model, again)
    )
    differing = sorted({name for name, _ in ours.items() ^ theirs.items()})
    if differing:
        raise VerificationError(
            f"{path}: expected the tensors of the variant, got others in {listed(differing, 5)}. "
            "The file was changed, or is not what its record says."
        )
    content = model.SerializeToString()
    evidence = form.prove(content, subjects, record.options, silent)
    if resizes(record.options, record.model):
        shown = prove_preparation(content, subjects[0], pictures(record.model, data))
        evidence = replace(evidence, preparation=shown)
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
    variants = []
    for held in record.variants:
        if not isinstance(held.statistics, BranchStatistics):
            raise UsageError(
                f"{path}: holds {held.name}, whose statistics only its variant file gives. Name it "
                "with --variant (for a switchable file all of them, with commas between)."
            )
        branch = held.statistics.branch
        variants.append(
            branch_variant(checkpoint, held.affine, statistics=branch, spec=record.model)
        )
    return variants


def _recorded_form(
    record: OnnxRecord, subjects: Sequence[Subject], data: Path | None
) -> tuple[Form, bool]:
    """Return the form that a record names, and whether ranges were taken again and are the same."""
    if record.int8 is None:
        return FLOAT_FORMS[record.form], False
    subject, recorded = subjects[0], record.int8
    # judged on any images, the file may lose what it will
    unlabelled = HeldOutImages(pixels=subject.images, answers=None, what="images")
    made_of, nothing = recorded.range_images, np.zeros(0, np.int64)
    images = RangeImages(record=made_of, pixels=subject.images[:0], indices=nothing, where=Path())
    form = Int8(
        images=images,
        held_out=unlabelled,
        max_drop=1.0,
        ranges=recorded.ranges,
        symmetric=recorded.symmetric,
    )
    if data is None:
        return form, False
    spec, statistics = subject.spec, subject.variant.statistics
    policy = shipped_policy(spec, made_of.policy, made_of.policy_sha256)
    images = range_images(spec, statistics, data, policy=policy, count=made_of.images)
    if images.record != made_of:
        return form, False
    form = replace(form, images=images)
    ranges = form.fitted(subjects, record.options).ranges
    for name, (low, high) in recorded.ranges.items():
        lowest, highest = ranges.get(name, (low, high))
        if max(abs(lowest - low), abs(highest - high)) > SAME_RANGE * (highest - lowest):
            raise VerificationError(
                f"{subject.where}: tensor '{name}': expected the range {lowest:.4g} to "
                f"{highest:.4g} of the images that the file records, got {low:.4g} to {high:.4g}. "
                "The record was changed."
            )
    held_out = held_out_images(spec, data, images, recorded.proof.images)
    return replace(form, held_out=held_out, max_drop=recorded.max_drop), True
