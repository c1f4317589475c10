"""The forms of an ONNX file: how each is made of a variant, and how it is proven.

A form takes the same steps when a file is exported and when it is verified: `fitted` takes what
depends on images, `make` gives the graph, `prove` compares it with the network. A new form is a
class here, in `FLOAT_FORMS` if nothing but its name is needed to make it again, and a name in
`recal.onnx_file.record.FormName`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import msgspec

from recal.data.normalise import normalise_array
from recal.errors import InputError
from recal.export.int8_proof import MAX_DROP, judge
from recal.export.proof import FLOAT16, FLOAT32, Tolerance, prove
from recal.export.quantise import activation_ranges, simplified, to_int8
from recal.export.switchable import switchable
from recal.export.trace import to_onnx
from recal.onnx_file.editing import accept_uint8, end_in_softmax, layer_tensors, to_half
from recal.onnx_file.record import Int8Record
from recal.onnx_file.session import filled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from recal.export.int8_images import HeldOutImages, RangeImages
    from recal.export.subject import Subject
    from recal.networks.spec import ModelSpec
    from recal.onnx_file.record import FormName, GraphOptions, Proof, Ranges
    from recal.progress import Progress


BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was shown of an ONNX file.

    Attributes:
        proofs: Comparison with PyTorch of each variant, by name; of an int8 file, the comparison
            of its float32 form.
        int8: How an int8 file was made and what it loses; None for other forms.
    """

    proofs: dict[str, Proof]
    int8: Int8Record | None = None

    @property
    def proof(self) -> Proof:
        """The comparison of a file's only variant, or of its first one."""
        return next(iter(self.proofs.values()))


class Form(ABC):
    """A form of ONNX file.

    Attributes:
        name: The form's name in the record of a file.
        several: Whether the file holds several variants instead of one.
        advice: What to do about a file that is not proven.
    """

    name: ClassVar[FormName]
    several: ClassVar[bool] = False
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

    @abstractmethod
    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the graph of the variants, without a record.

        Raises:
            InputError: A network cannot be exported.
            UsageError: The operator set is not supported.
        """

    @abstractmethod
    def prove(
        self, model: bytes, subjects: Sequence[Subject], options: GraphOptions, progress: Progress
    ) -> Evidence:
        """Compare a model with the networks that it should be.

        Args:
            model: A serialised model in this form.
            subjects: The variants that it should hold.
            options: Input and output of the model.
            progress: Called with the numbers of images done and in total.

        Raises:
            VerificationError: The model differs from a network, or is as near to a rival.
        """


class FloatForm(Form):
    """A form whose outputs are those of PyTorch up to rounding.

    Attributes:
        allowed: Tolerance of the outputs.
    """

    allowed: ClassVar[Tolerance] = FLOAT32

    def prove(
        self,
        model: bytes,
        subjects: Sequence[Subject],
        options: GraphOptions,
        progress: Progress,
    ) -> Evidence:
        """Compare every variant's outputs with PyTorch's."""
        return Evidence(
            proofs={
                subject.name: prove(model, subject, allowed=self.allowed, number=number)
                for number, subject in enumerate(subjects)
            }
        )


@dataclass(frozen=True)
class Float32(FloatForm):
    """BatchNorm folded into convolutions, everything in float32."""

    name: ClassVar[FormName] = "float32"

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the folded graph."""
        return _dressed(_traced(subjects[0], options, fold=True), subjects[0].spec, options)


@dataclass(frozen=True)
class Float16(FloatForm):
    """Weights and arithmetic in float16; input and output stay float32."""

    name: ClassVar[FormName] = "float16"
    allowed: ClassVar[Tolerance] = FLOAT16

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the folded graph in float16."""
        half = to_half(_traced(subjects[0], options, fold=True))
        return _dressed(half, subjects[0].spec, options)


@dataclass(frozen=True)
class Patchable(FloatForm):
    """Every BatchNorm kept as named initialisers, into which `recal patch` writes a variant."""

    name: ClassVar[FormName] = "patchable"

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the unfolded graph."""
        return _dressed(_unfolded(subjects[0], options), subjects[0].spec, options)


@dataclass(frozen=True)
class Switchable(FloatForm):
    """Several variants with shared weights; an input `variant`, int64 (), chooses one by number."""

    name: ClassVar[FormName] = "switchable"
    several: ClassVar[bool] = True

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return a graph that chooses between the BatchNorm tensors of the variants."""
        spec = subjects[0].spec
        unfolded = _unfolded(subjects[0], options)
        normalised = msgspec.structs.replace(options, uint8=False)
        arrays = [subject.variant.tensors for subject in subjects]
        model = switchable(_dressed(unfolded, spec, normalised), arrays)
        if options.uint8:
            accept_uint8(model, spec.mean, spec.std)
        return model


@dataclass(frozen=True, kw_only=True)
class Int8(Form):
    """Weights and activations in 8 bits, judged by the predictions that stay.

    Attributes:
        images: Images on which activations get their ranges.
        held_out: Images by which the file is judged.
        max_drop: Largest accepted loss of accuracy, in [0, 1]; without labels, of predictions that
            change.
        ranges: Lowest and highest value of each activation; `fitted` takes them on the images.
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

    def fitted(self, subjects: Sequence[Subject], options: GraphOptions) -> Int8:
        """Return the form with the ranges that activations take on the images."""
        graph = simplified(_traced(subjects[0], options, fold=True))
        batches = _batches(self.images.pixels, subjects[0].spec, options.batch)
        return replace(self, ranges=activation_ranges(graph, batches))

    def make(self, subjects: Sequence[Subject], options: GraphOptions) -> onnx.ModelProto:
        """Return the folded graph in 8 bits."""
        folded = _traced(subjects[0], options, fold=True)
        return _dressed(to_int8(simplified(folded), self.ranges), subjects[0].spec, options)

    def prove(
        self, model: bytes, subjects: Sequence[Subject], options: GraphOptions, progress: Progress
    ) -> Evidence:
        """Prove the folded float32 graph, and judge the int8 model by what it loses."""
        (subject,) = subjects
        folded = Float32().make(subjects, options).SerializeToString()
        proofs = Float32().prove(folded, subjects, options, progress).proofs
        lost = judge(
            model, folded, subject, self.held_out, max_drop=self.max_drop, progress=progress
        )
        made = Int8Record(
            ranges=self.ranges, range_images=self.images.record, max_drop=self.max_drop, proof=lost
        )
        return Evidence(proofs=proofs, int8=made)


FLOAT_FORMS: dict[FormName, Form] = {
    form.name: form for form in (Float32(), Float16(), Patchable(), Switchable())
}


def _traced(subject: Subject, options: GraphOptions, *, fold: bool) -> onnx.ModelProto:
    return to_onnx(
        subject.network, subject.spec.size, fold=fold, opset=options.opset, batch=options.batch,
        any_size=options.any_size,
    )  # fmt: skip


def _unfolded(subject: Subject, options: GraphOptions) -> onnx.ModelProto:
    """Trace a network whose BatchNorm tensors can all be replaced in the file.

    Raises:
        InputError: A layer of another class reads its tensors in another way than BatchNorm.
    """
    model = _traced(subject, options, fold=False)
    held = {tensor.name for tensor in model.graph.initializer}
    fixed = (held & subject.variant.tensors.keys()) - layer_tensors(model.graph).keys()
    if fixed:
        raise InputError(
            f"export: expected plain BatchNorm at every layer, got another one with the tensor "
            f"'{min(fixed)}'. Export a folded file of each variant."
        )
    return model


def _dressed(model: onnx.ModelProto, spec: ModelSpec, options: GraphOptions) -> onnx.ModelProto:
    """Give a graph the input and output asked for, and recal's name."""
    if options.softmax:
        end_in_softmax(model)
    if options.uint8:
        accept_uint8(model, spec.mean, spec.std)
    model.producer_name, model.producer_version = "recal", ""
    model.graph.name = "recal"
    return model


def _batches(
    pixels: NDArray[np.uint8], spec: ModelSpec, fixed: int | None
) -> Iterator[NDArray[np.float32]]:
    """Yield normalised batches; one smaller than a fixed batch is filled with its last image."""
    size = fixed or BATCH
    for start in range(0, len(pixels), size):
        part = filled(pixels[start : start + size], fixed or 0)
        yield normalise_array(part, spec.mean, spec.std)
