"""What an ONNX file says of itself: a typed record, kept as the `recal.*` entries of its metadata.

Each field of `OnnxRecord` is one entry. Texts are stored as they are, everything else as JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import msgspec
import onnx
from msgspec import Meta

from recal.errors import InputError, VerificationError
from recal.networks.spec import ModelSpec
from recal.onnx_file.probe import Probe
from recal.onnx_file.reading import graph_bytes
from recal.schema import Record, convert, read_json, to_json
from recal.variant.statistics import Statistics
from recal.variant.variant import Variant

PREFIX = "recal."
DIGEST = "sha256"
OPSETS = range(13, 21)  # BatchNormalization was another operator before 13; 21 cannot be traced
OPSET = 18

T = TypeVar("T", bound=Record)
FormName = Literal["float32", "float16", "int8", "patchable", "switchable"]
Count = Annotated[int, Meta(ge=0)]
Ranges = dict[str, tuple[float, float]]


class GraphOptions(Record, frozen=True, kw_only=True):
    """Input, output and operator set of an ONNX file; every form of file has them.

    Attributes:
        opset: ONNX operator set.
        uint8: Whether the input is pixels, uint8 (N, H, W, C), which the graph normalises.
        preprocess: Whether the input is pixels of any height and width, which the graph resizes,
            crops and normalises.
        softmax: Whether the output is `probabilities` instead of `logits`.
        batch: The fixed number of images, or None for any number.
        any_size: Whether height and width are dynamic, as far as the network allows.
    """

    opset: Annotated[int, Meta(ge=OPSETS[0], le=OPSETS[-1])] = OPSET
    uint8: bool = False
    preprocess: bool = False
    softmax: bool = False
    batch: Annotated[int, Meta(ge=1)] | None = None
    any_size: bool = False

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is pixels, of the network's size or of any."""
        return self.uint8 or self.preprocess

    @property
    def inside(self) -> tuple[str, ...]:
        """Names of the fields of `ModelSpec` that are part of the graph."""
        normalises = ("mean", "std", "channel_order") if self.takes_pixels else ()
        prepares = ("family", "crop_share", "interpolation", "crop_mode", "policy")
        return ("size", "channels", "classes", *normalises, *(prepares if self.preprocess else ()))


class Rival(Record, frozen=True, kw_only=True):
    """The distance of a file from a network that it must not be.

    Attributes:
        distance: Largest absolute difference between an output of the file and the rival's.
        expected: Largest absolute difference between an output of the variant and the rival's.
    """

    distance: float
    expected: float


class Proof(Record, frozen=True, kw_only=True):
    """How the outputs of an ONNX file compare with those of the network in PyTorch.

    Attributes:
        images: Number of images compared.
        batches: Batch sizes in which they were run.
        difference: Largest absolute difference of an output.
        tolerance: Largest accepted `difference`.
        hostile_inputs: Number of adversarial, scaled and patterned inputs compared.
        hostile_difference: Largest error against `reference`, relative to max(1, largest
            |output|).
        rivals: Distance from every other network, by name.
        indistinct: Rivals whose own outputs equal the variant's within the tolerance.
        reference: Numbers in which PyTorch computed what hostile inputs are compared with; float32
            if the network's code is bound to it.
    """

    images: int
    batches: tuple[int, ...]
    difference: float
    tolerance: float
    hostile_inputs: int
    hostile_difference: float
    rivals: dict[str, Rival]
    indistinct: tuple[str, ...]
    reference: Literal["float64", "float32"] = "float64"


class Int8Proof(Record, frozen=True, kw_only=True):
    """How an int8 file compares with its network in float32, on images it was not made with.

    Attributes:
        images: Number of images.
        agreement: Share of the images on which both predict the same class, in [0, 1].
        error: Root mean square error, relative to the standard deviation of the network's outputs.
        accuracies: Top-1 accuracy of `pytorch` (float32), `folded` (ONNX, float32) and `int8`, in
            [0, 1]; empty if the images have no labels.
        drop: Lost accuracy, `pytorch` minus `int8`; without labels, the share of predictions that
            changed, which is the most that can be lost.
        drop_error: Standard error of `drop` over the images.
        rivals: Place on the line from the variant's outputs (0) to those of each branch (1).
        indistinct: Branches whose own outputs equal the variant's.
    """

    images: int
    agreement: float
    error: float
    accuracies: dict[str, float]
    drop: float
    drop_error: float
    rivals: dict[str, float]
    indistinct: tuple[str, ...]


class PreparationProof(Record, frozen=True, kw_only=True):
    """How images prepared inside a file compare with those prepared by Pillow.

    Attributes:
        images: Number of images, each of its own size.
        shapes: Number of further sizes to which some of them were resized before.
        largest: Largest difference of a level, of 0 to 255.
        largest_in_shapes: Largest difference of a level of the images resized before.
        differing: Share of levels that differ at all, in [0, 1].
        beyond: Largest share of one image's levels that differ by more than one, in [0, 1]; of the
            images resized before too.
        changed: Share of the images whose predicted class changes, in [0, 1].
    """

    images: Count
    shapes: Count
    largest: Count
    largest_in_shapes: Count
    differing: float
    beyond: float
    changed: float


class RangeImagesRecord(Record, frozen=True, kw_only=True):
    """The images from which an int8 file's activations got their ranges.

    Attributes:
        policy: Name of the policy applied to them.
        policy_sha256: Hash of the policy's text.
        data_sha256: Hash of the images before the policy.
        images: Number of images.
        seed: Seed of the choice of images and of the policy's draws.
        class_balanced: Whether the images are spread evenly over the classes.
    """

    policy: str
    policy_sha256: str
    data_sha256: str
    images: Annotated[int, Meta(ge=1)]
    seed: Count
    class_balanced: bool


class Int8Record(Record, frozen=True, kw_only=True):
    """How an int8 file was made and judged.

    Attributes:
        ranges: Lowest and highest value of each activation.
        range_images: The images on which the ranges were taken.
        symmetric: Whether activations are int8 around zero, instead of uint8 with a zero point.
        max_drop: Largest accepted `proof.drop`.
        proof: What the file loses.
    """

    ranges: Ranges
    range_images: RangeImagesRecord
    symmetric: bool = False
    max_drop: Annotated[float, Meta(ge=0, le=1)]
    proof: Int8Proof


class Accuracies(Record, frozen=True, kw_only=True):
    """What an evaluation found of the variant in the file.

    Attributes:
        suite: Name of the suite.
        provenance: What the corrupted images are; None for a clean suite.
        images: Number of images, or None if it is not known.
        clean_accuracy: Top-1 accuracy on clean images, in [0, 1].
        corrupted_accuracy: Mean top-1 accuracy over the corrupted cells, in [0, 1].
        mean_corruption_error: 1 - `corrupted_accuracy`, only of a whole suite, in [0, 1].
    """

    suite: str
    provenance: str | None = None
    images: int | None = None
    clean_accuracy: float | None = None
    corrupted_accuracy: float | None = None
    mean_corruption_error: float | None = None


class HeldVariant(Record, frozen=True, kw_only=True):
    """A variant in an ONNX file.

    Attributes:
        name: A short name; for a switchable file the one by which the variant is chosen.
        sha256: Hash of the network that the variant makes.
        affine: The branch of weight and bias.
        statistics: Where the statistics come from.
    """

    name: str
    sha256: str
    affine: str
    statistics: Statistics

    @classmethod
    def of(cls, variant: Variant, name: str | None = None) -> HeldVariant:
        """Describe a variant, by default under its label."""
        return cls(
            name=variant.label if name is None else name,
            sha256=variant.sha256,
            affine=variant.affine,
            statistics=variant.statistics,
        )


class OnnxRecord(Record, frozen=True, kw_only=True):
    """What an ONNX file says of itself.

    Attributes:
        format: Version of this record.
        form: Form of the file.
        options: Input, output and operator set.
        weights_sha256: Hash of the weights, which all variants share.
        model: Architecture and preprocessing.
        variants: The variants in the file: one, or in a switchable file several, in order.
        versions: Versions of the libraries that made the file.
        probe: Outputs on noise that any language can repeat.
        checkpoint_sha256: Hash of the checkpoint's file.
        classes: Names of the classes, in the order of the outputs.
        accuracies: Results of an evaluation of the variant.
        parity: Comparison of each variant with PyTorch, by name; for int8, of its float32 form.
        preparation: Comparison of images prepared in the file with Pillow's; None where it
            prepares none.
        int8: How an int8 file was made and judged; None for other forms.
        sha256: Hash of the graph and of all other entries.
    """

    format: Literal[1] = 1
    form: FormName
    options: GraphOptions
    weights_sha256: str
    model: ModelSpec
    variants: Annotated[tuple[HeldVariant, ...], Meta(min_length=1)]
    versions: dict[str, str]
    probe: Probe
    checkpoint_sha256: str | None = None
    classes: tuple[str, ...] | None = None
    accuracies: Accuracies | None = None
    parity: dict[str, Proof] = msgspec.field(default_factory=dict)
    preparation: PreparationProof | None = None
    int8: Int8Record | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if (len(self.variants) > 1) != (self.form == "switchable"):
            raise ValueError(f"variants: expected one, got {len(self.variants)} ({self.form}).")
        if len({variant.name for variant in self.variants}) < len(self.variants):
            raise ValueError(f"variants: expected different names, got {self.title}.")
        if (self.int8 is not None) != (self.form == "int8"):
            raise ValueError(f"int8: expected it in int8 files alone, got it in {self.form}.")

    @property
    def title(self) -> str:
        """The names of the variants, for messages."""
        return ", ".join(variant.name for variant in self.variants)


def with_onnx(versions: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of the libraries that made a network, and of onnx."""
    return {**versions, "onnx": onnx.__version__}


TEXTS = ("form", "weights_sha256", "checkpoint_sha256", "sha256")
OPTIONAL = ("checkpoint_sha256", "classes", "accuracies", "parity", "preparation", "int8")
REQUIRED = tuple(name for name in OnnxRecord.__struct_fields__ if name not in OPTIONAL)


def read_entries(model: onnx.ModelProto) -> dict[str, str]:
    """Return all metadata of a model as it is stored."""
    return {entry.key: entry.value for entry in model.metadata_props}


def parse_record(entries: Mapping[str, str], where: str) -> OnnxRecord | None:
    """Return the record among the metadata of a file, or None if recal wrote none of it.

    Raises:
        InputError: An entry is missing or not as recal writes it, or a newer recal wrote it.
    """
    return _parsed(entries, where) if any(key.startswith(PREFIX) for key in entries) else None


def read_record(model: onnx.ModelProto, where: str) -> OnnxRecord:
    """Return the record of a file that recal wrote, whether it was changed since or not.

    Raises:
        InputError: recal did not write it, or a newer one did.
    """
    return _parsed(read_entries(model), where)


def _parsed(entries: Mapping[str, str], where: str) -> OnnxRecord:
    own = {k.removeprefix(PREFIX): v for k, v in entries.items() if k.startswith(PREFIX)}
    missing = [key for key in REQUIRED if key not in own]
    if missing:
        which = f" {', '.join(missing)}" if own else ""
        raise InputError(
            f"{where}: expected a file that recal wrote, got none of its entries{which}. Only such "
            "a file says what it should be."
        )
    content = {
        key: value if key in TEXTS else read_json(value, object, f"{where}: {PREFIX}{key}")
        for key, value in own.items()
    }
    return convert(content, OnnxRecord, where)


def write_record(model: onnx.ModelProto, record: OnnxRecord) -> None:
    """Replace a model's metadata by a record and the digest that covers it and the graph."""
    content = msgspec.to_builtins(record)
    write_entries(model, {
        f"{PREFIX}{key}": value if key in TEXTS else to_json(value)
        for key, value in content.items()
        if value or key not in OPTIONAL
    })  # fmt: skip


def write_entries(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace a model's metadata by these entries, and compute the digest."""
    kept = {key: value for key, value in entries.items() if key != f"{PREFIX}{DIGEST}"}
    onnx.helper.set_model_props(model, dict(sorted(kept.items())))
    model.metadata_props.add(key=f"{PREFIX}{DIGEST}", value=record_digest(model))


def record_digest(model: onnx.ModelProto) -> str:
    """Return the hash of the graph and of every metadata entry but the digest itself."""
    digest = hashlib.sha256(graph_bytes(model))
    for entry in sorted(model.metadata_props, key=lambda entry: entry.key):
        if entry.key != f"{PREFIX}{DIGEST}":
            digest.update(f"\0{entry.key}\0{entry.value}".encode())
    return digest.hexdigest()


def check_digest(model: onnx.ModelProto, record: OnnxRecord, where: str) -> None:
    """Refuse a file whose graph or record was changed since it was written.

    Raises:
        VerificationError: The digest is not that of the contents.
    """
    found = record_digest(model)
    if record.sha256 != found:
        raise VerificationError(
            f"{where}: expected the contents that were written ({record.sha256[:12]}), got others "
            f"({found[:12]}): the graph, a tensor or the record was changed. Name --checkpoint and "
            "--variant to learn which."
        )


def shortened(record: T, digits: int) -> T:
    """Return a record whose numbers have few significant digits, which repeat from run to run."""

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(part) for key, part in value.items()}
        return float(f"{value:.{digits}g}") if isinstance(value, float) else value

    return msgspec.convert(rounded(msgspec.to_builtins(record)), type(record))
