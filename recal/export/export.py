"""Writing a variant as an ONNX file, only if the file is proven to be that variant."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.errors import InputError, UsageError
from recal.export.images import IMAGES, comparison_images
from recal.export.int8 import simplified, to_int8
from recal.export.proof import FLOAT16, FLOAT32, Proof, prove
from recal.export.switchable import switchable
from recal.export.trace import OPSET, to_onnx
from recal.files import write_whole
from recal.networks.build import build
from recal.onnx_file.editing import accept_uint8, end_in_softmax, to_half
from recal.onnx_file.reading import check_model
from recal.onnx_file.record import describe, write_record
from recal.onnx_file.session import probe
from recal.variant.variant import Variant, branch_variant
from recal.wording import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.export.int8 import Ranges
    from recal.networks.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The form of an ONNX file.

    Attributes:
        opset: ONNX's operator set.
        patchable: Keep every BatchNorm as named initialisers, for `recal patch`.
        uint8: Take pixels, uint8 (N, H, W, 3), and normalise in the graph.
        softmax: Give `probabilities` instead of `logits`.
        fp16: Weights and arithmetic in float16, half the size.
        int8: Weights and activations in 8 bits, a third of the size or less; see
            `recal.export.export_int8`.
        batch: A fixed number of images; None for any.
        any_size: Any height and width, as far as the network allows.
    """

    opset: int = OPSET
    patchable: bool = False
    uint8: bool = False
    softmax: bool = False
    fp16: bool = False
    int8: bool = False
    batch: int | None = None
    any_size: bool = False

    def checked(self) -> ExportOptions:
        """Return self if the options go together.

        Raises:
            UsageError: They do not.
        """
        if self.fp16 and self.patchable:
            raise UsageError(
                "--fp16 does not go with --patchable: a variant's tensors are float32. Patch a "
                "float32 file, or export a float16 file of each variant."
            )
        if self.int8 and (self.fp16 or self.patchable):
            other = "--fp16" if self.fp16 else "--patchable"
            reason = (
                "a file has one of the two"
                if self.fp16
                else "the ranges of activations are a variant's own"
            )
            raise UsageError(f"--int8 does not go with {other}: {reason}. Export a file of each.")
        return self


def export_onnx(
    checkpoint: Checkpoint,
    variant: Variant | str,
    path: str | Path,
    images: NDArray[np.uint8] | None = None,
    *,
    options: ExportOptions | None = None,
    class_names: Sequence[str] | None = None,
    accuracies: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Proof:
    """Export a variant and compare the file, in ONNX Runtime, with the variant in PyTorch.

    Args:
        checkpoint: Lends the weights.
        variant: A variant, or the name of a branch.
        path: The file to write. It is written only after the proof; one that was there stays as it
            is until then.
        images: What to compare on, uint8 (N, size, size, 3); by default the bundled ones.
        options: The form of the file.
        class_names: The classes' names in the order of the logits, for the record.
        accuracies: What an evaluation found, for the record.
        **asked: With a branch: fields of `ModelSpec` that the file does not give.

    Returns:
        The proof.

    Raises:
        VerificationError: The file differs from the variant, or not from another branch.
        InputError: The network cannot be built or exported; the names do not fit the classes.
        UsageError: The options do not go together.
    """
    options = (options or ExportOptions()).checked()
    if options.int8:
        raise UsageError("export_onnx: expected a float form, got int8. Call export_int8.")
    if isinstance(variant, str):
        variant = branch_variant(checkpoint, variant, checkpoint.spec(**asked))
    if images is None:
        images, _ = comparison_images(variant.spec, None, IMAGES)
    network = build(checkpoint, variant)
    model = to_model(network, variant, options)
    proof = prove(
        model.SerializeToString(), network, rivals_of(checkpoint, variant), images, variant.spec,
        allowed=FLOAT16 if options.fp16 else FLOAT32,
    )  # fmt: skip
    record = entries_of(checkpoint, variant, options, class_names, accuracies)
    finish(model, {**record, "parity": proof.to_json()}, path)
    return proof


def export_switchable(
    checkpoint: Checkpoint,
    variants: Mapping[str, Variant],
    path: str | Path,
    images: NDArray[np.uint8],
    *,
    options: ExportOptions | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, Proof]:
    """Export several variants as one file with an input `variant`, and prove each of them.

    Args:
        checkpoint: Lends the weights, which the variants share.
        variants: By name, in the order of the numbers that the input takes; of one preprocessing.
        path: The file to write, after the proofs.
        images: What to compare on, uint8 (N, size, size, 3).
        options: The form of the file.
        class_names: The classes' names in the order of the logits, for the record.

    Returns:
        The proof of each, in which the others are rivals.

    Raises:
        VerificationError: The file, with one number, is not that variant.
        InputError: There are fewer than two, or they do not fit together.
        UsageError: The options do not go together.
    """
    options = (options or ExportOptions()).checked()
    for name in ("fp16", "int8", "patchable"):
        if getattr(options, name):
            raise UsageError(f"--switchable does not go with --{name}: variants are float32.")
    first = next(iter(variants.values()))
    for name, variant in variants.items():
        if variant.spec != first.spec:
            raise InputError(
                f"{name}: expected the preprocessing of the other variants, {first.spec}, got "
                f"{variant.spec}."
            )
    networks = {name: build(checkpoint, variant) for name, variant in variants.items()}
    model = switchable_model(next(iter(networks.values())), list(variants.values()), options)
    entries = {
        **entries_of(checkpoint, first, options, class_names, None),
        "variants": [
            {
                "variant": name,
                "variant_sha256": v.sha256,
                "affine": v.affine,
                "statistics": dict(v.statistics),
            }
            for name, v in variants.items()
        ],
    }
    write_record(model, entries)
    proofs = prove_switchable(model.SerializeToString(), networks, images, first.spec)
    parity = {name: proof.to_json() for name, proof in proofs.items()}
    finish(model, {**entries, "parity": parity}, path)
    return proofs


def switchable_model(
    network: nn.Module, variants: Sequence[Variant], options: ExportOptions
) -> onnx.ModelProto:
    """Trace the first variant's network and make a graph of all of them, without a record."""
    spec = variants[0].spec
    plain = to_model(network, variants[0], replace(options, patchable=True, uint8=False))
    arrays = [{k: t.numpy() for k, t in variant.tensors.items()} for variant in variants]
    model = switchable(plain, arrays)
    if options.uint8:
        accept_uint8(model, spec.mean, spec.std)
    return model


def prove_switchable(
    model: bytes,
    networks: Mapping[str, nn.Module],
    images: NDArray[np.uint8],
    spec: ModelSpec,
    where: str = "export",
) -> dict[str, Proof]:
    """Prove every variant of a switchable model, with the others as rivals."""
    return {
        name: prove(
            model, network, {n: other for n, other in networks.items() if n != name}, images,
            spec, variant=name, where=where,
        )
        for name, network in networks.items()
    }  # fmt: skip


def to_model(
    network: nn.Module, variant: Variant, options: ExportOptions, ranges: Ranges | None = None
) -> onnx.ModelProto:
    """Trace a variant's network and bring it into the form asked for, without a record.

    Args:
        network: In eval mode on the CPU.
        variant: Gives the preprocessing.
        options: The form.
        ranges: Of the activations, for int8.
    """
    model = to_onnx(
        network, variant.spec.size, fold=not options.patchable, opset=options.opset,
        batch=options.batch, any_size=options.any_size,
    )  # fmt: skip
    if options.fp16:
        model = to_half(model)
    if options.int8:
        model = to_int8(simplified(model), ranges or {})
    if options.softmax:
        end_in_softmax(model)
    if options.uint8:
        accept_uint8(model, variant.spec.mean, variant.spec.std)
    model.producer_name, model.producer_version = "recal", ""
    model.graph.name = "recal"
    return model


def entries_of(
    checkpoint: Checkpoint,
    variant: Variant,
    options: ExportOptions,
    class_names: Sequence[str] | None,
    accuracies: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what a file's record says beside its proof.

    Raises:
        InputError: The names do not fit the classes.
    """
    if class_names is not None and len(class_names) != variant.spec.classes:
        raise InputError(
            f"--class-names: expected {variant.spec.classes} names, got {len(class_names)}."
        )
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **describe(variant.record(), variant.label, variant.sha256),
        "checkpoint_sha256": digest,
        "options": asdict(options),
        **({} if class_names is None else {"classes": list(class_names)}),
        **({} if accuracies is None else {"accuracies": dict(accuracies)}),
    }


def finish(model: onnx.ModelProto, record: Mapping[str, Any], path: str | Path) -> None:
    """Write a proven model with its record and probe, whole or not at all.

    Raises:
        InputError: ONNX's checker finds fault.
        RecalError: The file cannot be written.
    """
    write_record(model, {**record, "probe": probe(model.SerializeToString())})
    check_model(model, str(path))
    write_whole(Path(path), model.SerializeToString(deterministic=True))


def rivals_of(checkpoint: Checkpoint, variant: Variant) -> dict[str, nn.Module]:
    """Build the stored branches that the variant is not."""
    return {
        name: build(checkpoint, branch_variant(checkpoint, name, variant.spec))
        for name in checkpoint.branches
        if variant.statistics != {"source": "branch", "branch": name} or variant.affine != name
    }


def options_of(record: Mapping[str, Any], where: str) -> ExportOptions:
    """Read the form of a file out of its record.

    Raises:
        InputError: It is not one that this version of recal writes.
    """
    try:
        options = replace(ExportOptions(), **record["options"])
    except TypeError as error:
        raise InputError(f"{where}: expected options that recal knows, got {error}.") from error
    for name, usual in asdict(ExportOptions()).items():
        value = getattr(options, name)
        if name != "batch" or value is not None:
            check_type(value, int if usual is None else type(usual), f"{where}: options: {name}")
    if options.batch is not None and options.batch < 1:
        raise InputError(f"{where}: options: batch: expected 1 image or more, got {options.batch}.")
    return options
