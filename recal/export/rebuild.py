"""Checking an ONNX file against the checkpoint that it came from, by exporting it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recal.errors import InputError, UsageError, VerificationError
from recal.export.export import (
    options_of,
    prove_switchable,
    rivals_of,
    switchable_model,
    to_model,
)
from recal.export.proof import FLOAT16, FLOAT32, prove
from recal.export.rebuild_int8 import judge_again
from recal.networks.build import build
from recal.networks.spec import ModelSpec
from recal.onnx_file.reading import graph_bytes, read_model, tensor_digest
from recal.onnx_file.record import describe, require_entries, require_record, variants_of
from recal.variant.variant import branch_variant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import nn

    from recal.checkpoint.checkpoint import Checkpoint
    from recal.export.int8 import Ranges
    from recal.export.int8_proof import Int8Proof
    from recal.export.proof import Proof
    from recal.variant.variant import Variant


SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What a file shows beside its checkpoint and variants.

    Attributes:
        same_bytes: Whether the graph is, byte for byte, the one exported again.
        proofs: The comparison with PyTorch, on the images given, by variant; of an int8 file, that
            of its float32 form.
        int8: How an int8 file differs from that; None for others.
        same_ranges: Whether an int8 file's ranges were recomputed, from the images that it records.
    """

    same_bytes: bool
    proofs: Mapping[str, Proof]
    int8: Int8Proof | None = None
    same_ranges: bool = False


def verify_against(
    path: Path,
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    images: NDArray[np.uint8],
    data: Path | None = None,
) -> Rebuilt:
    """Export the variants again and compare: record, every tensor, bytes, then logits.

    Args:
        path: The file.
        checkpoint: The weights that it should hold.
        variants: The variant that it should be; of a switchable file, all of them, in order.
        images: What to compare logits on, uint8 (N, size, size, 3).
        data: The folder that an int8 file may have been made with: then its ranges and what it
            loses are looked at again.

    Raises:
        VerificationError: The file is not these variants of these weights; a tensor that differs is
            named.
        InputError: It is no ONNX file of recal's.
        UsageError: The file holds another number of variants.
    """
    model = read_model(path)
    record = require_entries(model, str(path))
    options = options_of(record, str(path))
    entries = variants_of(record, str(path))
    if len(entries) != len(variants):
        raise UsageError(
            f"{path}: --variant: expected the {len(entries)} variants of the file, in order, got "
            f"{len(variants)}."
        )
    for entry, variant in zip(entries, variants, strict=True):
        _check_claims(record, entry, variant, path)
    networks = [build(checkpoint, variant) for variant in variants]
    if len(variants) > 1:
        again = switchable_model(networks[0], variants, options)
    else:
        again = to_model(networks[0], variants[0], options, _ranges(record, path))
    differing = different_tensors(model, again)
    if differing:
        raise VerificationError(
            f"{path}: expected the tensors of the variant, got others in {_brief(differing)}. The "
            "file was changed, or is not what its record says."
        )
    rebuilt = _prove(model, record, checkpoint, variants, networks, images, data, path)
    same = graph_bytes(model) == graph_bytes(again)
    current = describe(variants[0].record(), variants[0].label, variants[0].sha256)
    if not same and record.get("versions") == current["versions"]:
        raise VerificationError(
            f"{path}: expected the bytes of the same export, got another graph with the same "
            "tensors: its nodes were changed."
        )
    require_record(model, str(path))
    return replace(rebuilt, same_bytes=same)


def recorded_variants(
    record: Mapping[str, Any], checkpoint: Checkpoint, path: Path
) -> list[Variant]:
    """Return the variants that a record names, where they are made of stored branches.

    Raises:
        UsageError: The statistics of one were estimated, so that its file is needed.
    """
    spec = ModelSpec.from_json(record["model"])
    found = []
    for entry in variants_of(record, str(path)):
        if entry["statistics"]["source"] != "branch":
            raise UsageError(
                f"{path}: holds {entry['variant']}, which only its variant file gives again. Name "
                "it with --variant (of a switchable file all of them, with commas between)."
            )
        found.append(
            branch_variant(
                checkpoint, entry["affine"], spec, statistics=entry["statistics"]["branch"]
            )
        )
    return found


def different_tensors(found: onnx.ModelProto, expected: onnx.ModelProto) -> list[str]:
    """Return the tensors that two models do not share, by name; of constants, by their node's."""
    ours, theirs = _digests(found.graph), _digests(expected.graph)
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def _digests(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the hash of every initialiser, those of branches inside nodes too, by name."""
    digests = {tensor.name: tensor_digest(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                digests |= _digests(attribute.g)
    return digests


def _check_claims(
    record: Mapping[str, Any], entry: Mapping[str, Any], variant: Variant, path: Path
) -> None:
    for key, source, expected in (
        ("weights_sha256", record, variant.weights_sha256),
        ("model", record, variant.spec.to_json()),
        ("variant_sha256", entry, variant.sha256),
    ):
        if source.get(key) != expected:
            raise VerificationError(
                f"{path}: {key}: expected {_brief(expected)} as checkpoint and variant give it, "
                f"got {_brief(source.get(key))}."
            )


def _ranges(record: Mapping[str, Any], path: Path) -> Ranges | None:
    """Return the ranges of activations that an int8 file records; None for other files."""
    if not record["options"].get("int8"):
        return None
    try:
        ranges = record["int8"]["ranges"]
        return {str(name): [float(low), float(high)] for name, (low, high) in ranges.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected the ranges of its activations, got {error}.") from error


def _prove(
    model: onnx.ModelProto,
    record: Mapping[str, Any],
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    networks: Sequence[nn.Module],
    images: NDArray[np.uint8],
    data: Path | None,
    path: Path,
) -> Rebuilt:
    """Compare a file's outputs with PyTorch's; `same_bytes` is left open."""
    options, content = options_of(record, str(path)), model.SerializeToString()
    if len(variants) > 1:
        names = [entry["variant"] for entry in variants_of(record, str(path))]
        named = dict(zip(names, networks, strict=True))
        proofs = prove_switchable(content, named, images, variants[0].spec, where=str(path))
        return Rebuilt(same_bytes=False, proofs=proofs)
    (variant,), (network,) = variants, networks
    rivals = rivals_of(checkpoint, variant)
    allowed, judged, same_ranges = FLOAT16 if options.fp16 else FLOAT32, None, False
    if options.int8:
        folded = to_model(network, variant, replace(options, int8=False)).SerializeToString()
        judged, same_ranges = judge_again(
            content, folded, network, rivals, variant, record["int8"], options, images, data,
            str(path),
        )  # fmt: skip
        content = folded
    proof = prove(content, network, rivals, images, variant.spec, allowed=allowed, where=str(path))
    return Rebuilt(
        same_bytes=False, proofs={variant.label: proof}, int8=judged, same_ranges=same_ranges
    )


def _brief(value: Any) -> str:
    if isinstance(value, list):
        more = f" and {len(value) - SHOWN} more" if len(value) > SHOWN else ""
        return f"{', '.join(map(str, value[:SHOWN]))}{more}"
    return value[:12] if isinstance(value, str) else str(value)
