"""Checking an ONNX file against its record, and against the checkpoint that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recal.deploy.model_file import check_model, graph_bytes, read_model, tensor_digest
from recal.deploy.probe import probe_difference
from recal.deploy.record import describe, require_entries, require_record
from recal.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from recal.bn.variant import Variant
    from recal.checkpoint.checkpoint import Checkpoint
    from recal.deploy.proof import Proof

PROBE_TOLERANCE = 1e-3
HALF_PROBE_TOLERANCE = 5e-2
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What a file shows without its checkpoint.

    Attributes:
        record: The file's record, JSON decoded.
        probe_difference: How far outputs on seeded noise are from those recorded when it was
            written, relative to max(1, the largest).
    """

    record: dict[str, Any]
    probe_difference: float


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What a file shows beside its checkpoint and variant.

    Attributes:
        same_bytes: Whether the graph is, byte for byte, the one exported again.
        proof: The comparison with PyTorch, on the images given.
    """

    same_bytes: bool
    proof: Proof


def verify_alone(path: Path) -> SelfCheck:
    """Check a file by itself: whole, valid, unchanged since it was written, running as it did.

    A digest in the file protects against damage and careless edits. Who can recompute it is found
    by `verify_against` alone.

    Raises:
        InputError: It is no whole ONNX file, or not one that recal wrote.
        VerificationError: Its contents were changed, or ONNX Runtime here computes otherwise.
    """
    model = read_model(path)
    record = require_record(model, str(path))
    check_model(model, str(path))
    if "probe" not in record:
        return SelfCheck(record=record, probe_difference=0.0)
    difference = probe_difference(model.SerializeToString(), record["probe"])
    half = record["options"].get("fp16") or record["options"].get("int8")
    allowed = HALF_PROBE_TOLERANCE if half else PROBE_TOLERANCE
    if not difference <= allowed:
        raise VerificationError(
            f"{path}: expected the outputs that were recorded, within {allowed:.0e}, got a "
            f"difference of {difference:.1e} of the largest. This ONNX Runtime computes otherwise."
        )
    return SelfCheck(record=record, probe_difference=difference)


def verify_against(
    path: Path, checkpoint: Checkpoint, variant: Variant, images: NDArray[np.uint8]
) -> Rebuilt:
    """Export the variant again and compare: record, every tensor, bytes, then logits.

    Args:
        path: The file.
        checkpoint: The weights that it should hold.
        variant: The variant that it should be.
        images: What to compare logits on, uint8 (N, size, size, 3).

    Raises:
        VerificationError: The file is not this variant of these weights; a tensor that differs is
            named.
        InputError: It is no ONNX file of recal's, or a form that is not exported from a checkpoint.
    """
    from recal.bn.build import build
    from recal.deploy.export import options_of, rivals_of, to_model
    from recal.deploy.proof import FLOAT16, FLOAT32, prove

    model = read_model(path)
    record = require_entries(model, str(path))
    if "variants" in record:
        raise UsageError(
            f"{path}: holds several variants, which are not compared with a checkpoint yet. Verify "
            "it alone, or export it again and compare the bytes."
        )
    options = options_of(record, str(path))
    claims = {
        "weights_sha256": variant.weights_sha256,
        "model": variant.spec.to_json(),
        "variant_sha256": variant.sha256,
    }
    for key, expected in claims.items():
        if record.get(key) != expected:
            raise VerificationError(
                f"{path}: {key}: expected {_brief(expected)} as checkpoint and variant give it, "
                f"got {_brief(record.get(key))}."
            )
    network = build(checkpoint, variant)
    again = to_model(network, variant, options)
    differing = different_tensors(model, again)
    if differing:
        raise VerificationError(
            f"{path}: expected the tensors of the variant, got others in {_brief(differing)}. The "
            "file was changed, or is not what its record says."
        )
    proof = prove(
        model.SerializeToString(), network, rivals_of(checkpoint, variant), images, variant.spec,
        allowed=FLOAT16 if options.fp16 else FLOAT32, where=str(path),
    )  # fmt: skip
    same = graph_bytes(model) == graph_bytes(again)
    entries = describe(variant.record(), variant.label, variant.sha256)
    if not same and record.get("versions") == entries["versions"]:
        raise VerificationError(
            f"{path}: expected the bytes of the same export, got another graph with the same "
            "tensors: its nodes were changed."
        )
    require_record(model, str(path))
    return Rebuilt(same_bytes=same, proof=proof)


def recorded_variant(record: dict[str, Any], checkpoint: Checkpoint, path: Path) -> Variant:
    """Return the variant that a record names, where it is made of stored branches.

    Raises:
        UsageError: Its statistics were estimated, so that the variant's file is needed.
    """
    from recal.bn.variant import branch_variant
    from recal.checkpoint.spec import ModelSpec

    if record["statistics"].get("source") != "branch":
        raise UsageError(
            f"{path}: holds {record['variant']}, which only its variant file gives again. Name it "
            "with --variant."
        )
    spec = ModelSpec.from_json(record["model"])
    return branch_variant(
        checkpoint, record["affine"], spec, statistics=record["statistics"]["branch"]
    )


def different_tensors(found: onnx.ModelProto, expected: onnx.ModelProto) -> list[str]:
    """Return the initialisers that two models do not share, by name."""
    ours = {t.name: tensor_digest(t) for t in found.graph.initializer}
    theirs = {t.name: tensor_digest(t) for t in expected.graph.initializer}
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - SHOWN} more" if len(value) > SHOWN else ""
        return f"{', '.join(map(str, value[:SHOWN]))}{more}"
    return value[:12] if isinstance(value, str) else str(value)
