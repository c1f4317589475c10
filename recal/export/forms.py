"""The forms of an ONNX file: how each is made of a variant, and how it is proven.

A form takes the same steps when a file is exported and when it is verified: `fitted` takes what
depends on images, `make` gives the graph, `prove` compares it with the network. A new form is a
class here, in `FLOAT_FORMS` if nothing but its name is needed to make it again, and a name in
`recal.onnx_file.record.FormName`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from recal.data.normalise import normalise_array
from recal.errors import InputError, VerificationError
from recal.export.int8 import MAX_DROP, activation_ranges, judge, simplified, to_int8
from recal.export.int8_images import HeldOutImages, RangeImages
from recal.export.proof import FLOAT16, FLOAT32, Tolerance, prove
from recal.export.subject import Subject
from recal.export.trace import to_onnx
from recal.networks.spec import ModelSpec
from recal.onnx_file.editing import accept_uint8, end_in_softmax, layer_tensors, switchable, to_half
from recal.onnx_file.preparing import prepare_in_graph, resizes
from recal.onnx_file.record import (
    FormName,
    GraphOptions,
    Int8Record,
    PreparationProof,
    Proof,
    Ranges,
)
from recal.onnx_file.session import filled
from recal.progress import Progress

BATCH = 16
LARGEST_HALF = float(np.finfo(np.float16).max)
RANGE_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was shown of an ONNX file.

    Attributes:
        proofs: Comparison of each variant with PyTorch, by name; for int8, of its float32 form.
        int8: How an int8 file was made and what it loses; None for other forms.
        preparation: Comparison of images prepared in the file with Pillow's; None where it
            prepares none.
    """

    proofs: dict[str, Proof]
    int8: Int8Record | None = None
    preparation: PreparationProof | None = None

    @property
    def proof(self) -> Proof:
        """The comparison of a file's only variant, or of its first one."""
        return next(iter(self.proofs.values()))


class Form:
    """A form of ONNX file, which is made in the same steps for export and for verification.

    Attributes:
        name: The form's name in the record of a file.
        several: Whether the file holds several variants instead of one.
        folds: Whether BatchNorm is folded into convolutions.
        allowed: Tolerance of the outputs.
        advice: What to do about a file that is not proven.
    """

    name: ClassVar[FormName]
    several: ClassVar[bool] = False
    folds: ClassVar[bool] = True
    allowed: ClassVar[Tolerance] = FLOAT32
    advice: ClassVar[str] = "Please report the architecture."

    def check(self, subjects: Sequence[Subject]) -> None:
        """Refuse a number of variants that this form cannot hold.

        Raises:
            InputError: There are several, or of a switchable file less than two.
        """
        if self.several and len(subjects) < 2:
            raise InputError(f"--switchable: expected two variants or more, got {len(subjects)}.")
        if not self.several and len(subjects) > 1:
            raise InputError(
                f"export: expected one variant for a file in {self.name}, got {len(subjects)}. "
                "Export a file of each, or a switchable one."
            )

    def fitted(self, subjects: Sequence[Subject], options: GraphOptions) -> Form:
        """Return the form with everything that depends on network and images."""
        return self

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the graph of the variants, without a record.

        Raises:
            InputError: A network cannot be exported.
            UsageError: The operator set is not supported.
        """
        model = self.converted(_traced(subjects[0], options, fold=self.folds))
        return _dressed(model, subjects[0].spec, options)

    def converted(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a traced model in the numbers of this form."""
        return model

    def prove(
        self, model: bytes, subjects: Sequence[Subject], options: GraphOptions, progress: Progress
    ) -> Evidence:
        """Compare a serialised model in this form with the networks that it should be.

        Raises:
            VerificationError: The model differs from a network, or is as near to a rival.
        """
        proofs = {
            subject.name: prove(model, subject, allowed=self.allowed, number=number)
            for number, subject in enumerate(subjects)
        }
        return Evidence(proofs=proofs)


@dataclass(frozen=True)
class Float32(Form):
    """BatchNorm folded into convolutions, everything in float32."""

    name: ClassVar[FormName] = "float32"


@dataclass(frozen=True)
class Float16(Form):
    """Weights and arithmetic in float16; input and output stay float32."""

    name: ClassVar[FormName] = "float16"
    allowed: ClassVar[Tolerance] = FLOAT16
    advice: ClassVar[str] = "Export float32 or int8."

    def converted(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model in float16."""
        return to_half(model)

    def prove(
        self, model: bytes, subjects: Sequence[Subject], options: GraphOptions, progress: Progress
    ) -> Evidence:
        """Compare as every form does, once it is known that float16 holds the activations.

        ONNX Runtime computes parts of a float16 file in float32 on a CPU, so that the comparison
        alone could miss an overflow that other engines have.
        """
        graph = _traced(subjects[0], options, fold=self.folds)
        ranges = _ranges(graph, subjects[0], subjects[0].images[:RANGE_IMAGES], options)
        for name, pair in ranges.items():
            if max(map(abs, pair)) > LARGEST_HALF:
                raise VerificationError(
                    f"{subjects[0].where}: tensor '{name}': expected values that float16 holds, up "
                    f"to {LARGEST_HALF:,.0f}, got {pair[0]:.4g} to {pair[1]:.4g}: an overflow."
                )
        return super().prove(model, subjects, options, progress)


@dataclass(frozen=True)
class Patchable(Form):
    """Every BatchNorm kept as named initialisers, into which `recal patch` writes a variant."""

    name: ClassVar[FormName] = "patchable"
    folds: ClassVar[bool] = False


@dataclass(frozen=True)
class Switchable(Form):
    """Several variants with shared weights; an input `variant`, int64 (), chooses one by number."""

    name: ClassVar[FormName] = "switchable"
    several: ClassVar[bool] = True
    folds: ClassVar[bool] = False

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return a graph that chooses between the BatchNorm tensors of the variants."""
        spec = subjects[0].spec
        unfolded = _traced(subjects[0], options, fold=self.folds)
        normalised = msgspec.structs.replace(options, uint8=False, preprocess=False)
        arrays = [subject.variant.tensors for subject in subjects]
        model = switchable(_dressed(unfolded, spec, normalised), arrays)
        return _accepting(model, spec, options)


@dataclass(frozen=True, kw_only=True)
class Int8(Form):
    """Weights and activations in 8 bits, judged by the predictions that stay.

    Attributes:
        images: Images on which activations get their ranges.
        held_out: Images by which the file is judged.
        max_drop: Largest accepted loss of accuracy, in [0, 1]; without labels, of predictions.
        ranges: Lowest and highest value of each activation; `fitted` takes them on the images.
        symmetric: Whether activations are int8 around zero, as some engines demand.
    """

    name: ClassVar[FormName] = "int8"
    advice: ClassVar[str] = (
        "Give labelled images, other images or more of them (--data, --int8-samples, --mode), "
        "accept a larger --max-drop, or export float32."
    )
    images: RangeImages
    held_out: HeldOutImages
    max_drop: float = MAX_DROP
    ranges: Ranges = field(default_factory=dict)
    symmetric: bool = False

    def fitted(self, subjects: Sequence[Subject], options: GraphOptions) -> Int8:
        """Return the form with the ranges that activations take on the images."""
        graph = simplified(_traced(subjects[0], options, fold=self.folds))
        ranges = _ranges(graph, subjects[0], self.images.pixels, options)
        return replace(self, ranges=ranges)

    def converted(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model in 8 bits."""
        return to_int8(simplified(model), self.ranges, symmetric=self.symmetric)

    def prove(
        self, model: bytes, subjects: Sequence[Subject], options: GraphOptions, progress: Progress
    ) -> Evidence:
        """Prove the folded float32 graph, and judge the int8 model by what it loses."""
        folded = Float32().make(subjects, options).SerializeToString()
        proofs = Float32().prove(folded, subjects, options, progress).proofs
        (subject,), most = subjects, self.max_drop
        lost = judge(model, folded, subject, self.held_out, max_drop=most, progress=progress)
        used = self.images.record
        made = Int8Record(
            ranges=self.ranges,
            range_images=used,
            symmetric=self.symmetric,
            max_drop=most,
            proof=lost,
        )
        return Evidence(proofs=proofs, int8=made)


FLOAT_FORMS: dict[FormName, Form] = {
    form.name: form for form in (Float32(), Float16(), Patchable(), Switchable())
}


def _traced(subject: Subject, options: GraphOptions, *, fold: bool) -> onnx.ModelProto:
    spec = subject.spec
    model = to_onnx(subject.network, spec.size, fold=fold, channels=spec.channels, options=options)
    held = {tensor.name for tensor in model.graph.initializer}
    fixed = (held & subject.variant.tensors.keys()) - layer_tensors(model.graph).keys()
    if fixed and not fold:
        raise InputError(
            f"export: expected plain BatchNorm at every layer, got another one with the tensor "
            f"'{min(fixed)}'. Export a folded file of each variant."
        )
    return model


def _ranges(
    graph: onnx.ModelProto, subject: Subject, pixels: NDArray[np.uint8], options: GraphOptions
) -> Ranges:
    """Return the lowest and highest value of each tensor on pixels (N, size, size, C)."""
    spec, size = subject.spec, options.batch or BATCH
    parts = (pixels[start : start + size] for start in range(0, len(pixels), size))
    batches = (
        normalise_array(filled(part, options.batch or 0), spec.normalisation) for part in parts
    )
    return activation_ranges(graph, batches)


def _accepting(model: onnx.ModelProto, spec: ModelSpec, options: GraphOptions) -> onnx.ModelProto:
    """Give a graph the input asked for: normalised, pixels, or pixels of any size."""
    if options.takes_pixels:
        accept_uint8(model, spec.normalisation)
    if resizes(options, spec):
        prepare_in_graph(model, spec.preparation, spec.normalisation.step)
    return model


def _dressed(model: onnx.ModelProto, spec: ModelSpec, options: GraphOptions) -> onnx.ModelProto:
    """Give a graph the input and output asked for, and recal's name."""
    if options.softmax:
        end_in_softmax(model)
    model = _accepting(model, spec, options)
    model.producer_name, model.producer_version = "recal", ""
    model.graph.name = "recal"
    return model
