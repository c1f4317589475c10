"""Writing variants as an ONNX file, only if the file is proven to be those variants."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from recal.checkpoint.checkpoint import Checkpoint
from recal.errors import InputError, UsageError, VerificationError
from recal.export.forms import Evidence, Float32, Form
from recal.export.preparation import prove_preparation
from recal.export.subject import comparison_images, make_subjects
from recal.export.subject import pictures as bundled_pictures
from recal.files import write_whole
from recal.onnx_file.preparing import check_preprocess, resizes
from recal.onnx_file.reading import check_model
from recal.onnx_file.record import (
    OPSET,
    Accuracies,
    GraphOptions,
    HeldVariant,
    OnnxRecord,
    shortened,
    with_onnx,
    write_record,
)
from recal.onnx_file.session import make_probe, noise_side
from recal.progress import Progress, silent
from recal.variant.variant import Variant, branch_variant, versions_with_torch


def export_onnx(
    checkpoint: Checkpoint,
    variant: Variant | str | Mapping[str, Variant],
    path: str | Path,
    images: NDArray[np.uint8] | None = None,
    *,
    form: Form | None = None,
    opset: int = OPSET,
    uint8: bool = False,
    preprocess: bool = False,
    softmax: bool = False,
    batch: int | None = None,
    any_size: bool = False,
    pictures: Iterable[NDArray[np.uint8]] | None = None,
    class_names: Sequence[str] | None = None,
    accuracies: Accuracies | None = None,
    progress: Progress = silent,
) -> Evidence:
    """Export a variant and compare the file, in ONNX Runtime, with the network in PyTorch.

    The file is written after the proof. A file that exists at `path` stays as it is until then.

    Args:
        checkpoint: The weights.
        variant: A variant or the name of a branch; for a switchable file several variants, by
            name, in the order of the numbers that its input takes.
        path: The file to write.
        images: Images to compare outputs on, uint8 (N, size, size, C); by default the bundled ones.
        form: One of the forms in `recal.export.forms`, by default `Float32()`.
        opset: ONNX operator set, 13 to 20.
        uint8: Whether the file takes pixels, uint8 (N, H, W, C), and normalises them in the graph.
        preprocess: Whether the file takes pixels of any height and width, uint8 (N, H, W, C), and
            resizes, crops and normalises them in the graph.
        softmax: Whether the file gives `probabilities` instead of `logits`.
        batch: A fixed number of images, or None for any number.
        any_size: Whether the file takes any height and width, as far as the network allows.
        pictures: Decoded images of any size, uint8 (H, W, C), on which the preparation of
            `preprocess` is compared with Pillow's; by default the bundled ones.
        class_names: Names of the classes in the order of the outputs, for the record.
        accuracies: Results of an evaluation, for the record.
        progress: Called with the numbers of images judged and in total, for an int8 file.

    Returns:
        What was shown of the file: for most forms one `proof`.

    Raises:
        VerificationError: The file differs from a variant, or not from another network.
        InputError: A network cannot be built or exported, or an argument does not fit it.
        UsageError: There is no such branch, no variant at all, or no such operator set or batch.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"export: batch: expected 1 image or more, got {batch}.")
    form = form or Float32()
    options = GraphOptions(
        opset=opset,
        uint8=uint8,
        preprocess=preprocess,
        softmax=softmax,
        batch=batch,
        any_size=any_size,
    )
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant)
    variants = variant if isinstance(variant, Mapping) else {variant.label: variant}
    if not variants:
        raise UsageError("export: expected one variant or more, got none.")
    spec = next(iter(variants.values())).spec
    check_preprocess(options, spec)
    if class_names is not None and len(class_names) != spec.classes:
        raise InputError(f"--class-names: expected {spec.classes} names, got {len(class_names)}.")
    if images is None:
        images, _ = comparison_images(spec, None)
    subjects = make_subjects(checkpoint, variants, images)
    form.check(subjects)
    form = form.fitted(subjects, options)
    model = form.make(subjects, options)
    content = model.SerializeToString()
    try:
        evidence = form.prove(content, subjects, options, progress)
        if resizes(options, spec):
            chosen = bundled_pictures(spec, None) if pictures is None else pictures
            shown = prove_preparation(content, subjects[0], chosen)
            evidence = replace(evidence, preparation=shown)
    except VerificationError as error:
        raise VerificationError(f"{error} No file was written. {form.advice}") from error
    digest = hashlib.sha256()
    for part in checkpoint.file.files:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    made = evidence.int8
    record = OnnxRecord(
        form=form.name,
        options=options,
        weights_sha256=checkpoint.weights_sha256,
        model=spec,
        variants=tuple(HeldVariant.of(subject.variant, subject.name) for subject in subjects),
        versions=with_onnx(versions_with_torch()),
        probe=make_probe(content, len(subjects), side=noise_side(options, spec)),
        checkpoint_sha256=digest.hexdigest(),
        classes=None if class_names is None else tuple(class_names),
        accuracies=accuracies,
        parity={name: shortened(proof, 2) for name, proof in evidence.proofs.items()},
        preparation=evidence.preparation and shortened(evidence.preparation, 2),
        int8=made and structs.replace(made, proof=shortened(made.proof, 4)),
    )
    write_record(model, record)
    check_model(model, str(path))
    write_whole(Path(path), model.SerializeToString(deterministic=True))
    return evidence
