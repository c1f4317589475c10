"""Putting another variant into a patchable ONNX file, by onnx and NumPy alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx

from recal.errors import InputError, VerificationError
from recal.files import write_whole
from recal.onnx_file.editing import layer_tensors, with_arrays
from recal.onnx_file.reading import check_model, graph_bytes, read_model
from recal.onnx_file.record import describe, read_record, require_record, write_record
from recal.onnx_file.session import probe, probe_distance
from recal.variant.file import VariantFile, read_variant

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


KEPT = ("options", "classes", "checkpoint_sha256")
FOREIGN = "onnx:"
TOLERANCE = 1e-3


def patch_file(path: Path, variant: Path, output: Path) -> VariantFile:
    """Write a copy of a patchable ONNX file that holds another variant.

    The graph is, byte for byte, that of a fresh patchable export of the variant.

    Args:
        path: The base file; not changed unless it is `output`.
        variant: The variant's file.
        output: The file to write, after ONNX Runtime has run it.

    Raises:
        InputError: The file is not patchable, or the variant belongs to other weights.
        VerificationError: The base file was changed, or ONNX Runtime does not run the new tensors.
    """
    model, found = read_model(path), read_variant(variant)
    patched = patch_model(model, found, str(path), str(variant))
    check_model(patched, str(output))
    write_whole(output, patched.SerializeToString(deterministic=True))
    return found


def patch_model(
    model: onnx.ModelProto, variant: VariantFile, where: str, what: str
) -> onnx.ModelProto:
    """Return a copy of a model with a variant's BatchNorm tensors and record; see `patch_file`."""
    record = require_patchable(model, where)
    own = weights_identity(model)
    if variant.record["weights_sha256"] != own:
        raise InputError(
            f"{what}: expected a variant for the weights in {where} ({_short(own)}), got one for "
            f"others ({_short(variant.record['weights_sha256'])})."
        )
    _check_preprocessing(variant, record, where, what)
    patched = with_arrays(model, _by_initialiser(model, variant, where, what))
    _check_runs(model, patched, where)
    entries = describe(variant.record, variant.label, variant.sha256)
    entries |= {key: record[key] for key in KEPT if key in record}
    entries.setdefault("options", {"patchable": True})
    write_record(patched, {**entries, "probe": probe(patched.SerializeToString())})
    return patched


def require_patchable(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Return the record of a file whose BatchNorm tensors are all there; {} if recal wrote none.

    Raises:
        InputError: BatchNorm was folded into other weights, there is none, it is in training mode,
            or a layer has no statistics of its own.
        VerificationError: The file was changed since it was written.
    """
    record = read_record(model)
    if record:
        record = require_record(model, where)
        if not record["options"].get("patchable"):
            raise InputError(
                f"{where}: expected a patchable file, got one whose BatchNorm is folded into the "
                "weights. Export it with --patchable."
            )
    for node in _batch_norms(model):
        if any(a.name == "training_mode" and a.i for a in node.attribute):
            raise InputError(
                f"{where}: node '{node.name}': expected BatchNormalization with stored statistics, "
                "got one in training mode, which takes each batch's own. Export the network in "
                "eval mode."
            )
    if not _batch_norms(model):
        raise InputError(f"{where}: expected BatchNormalization nodes, got none.")
    known = {tensor.name for tensor in model.graph.initializer}
    users = Counter(name for node in _batch_norms(model) for name in node.input[3:5])
    for node in _batch_norms(model):
        joined = [name for name in node.input[3:5] if name not in known or users[name] > 1]
        if joined:
            raise InputError(
                f"{where}: node '{node.name}': expected statistics of its own, got '{joined[0]}', "
                "which is another layer's too or computed. Exporters join equal tensors, as those "
                "of layers that were never trained are: export the network by recal, which keeps "
                "them apart."
            )
    return record


def _batch_norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def weights_identity(model: onnx.ModelProto) -> str:
    """Return what a variant must be bound to: the weights' hash, or that of a foreign graph."""
    recorded = read_record(model).get("weights_sha256")
    if isinstance(recorded, str):
        return recorded
    names = set(layer_tensors(model.graph).values())
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [tensor for tensor in bare.graph.initializer if tensor.name not in names]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(kept)
    return FOREIGN + hashlib.sha256(graph_bytes(bare)).hexdigest()


def _by_initialiser(
    model: onnx.ModelProto, variant: VariantFile, where: str, what: str
) -> dict[str, NDArray[np.float32]]:
    names = layer_tensors(model.graph)
    odd = sorted(names.keys() ^ variant.tensors.keys())
    if odd:
        side = what if odd[0] in names else where
        raise InputError(f"{side}: expected the tensor '{odd[0]}', which the other has, got none.")
    return {name: variant.tensors[key] for key, name in names.items()}


def _check_preprocessing(
    variant: VariantFile, record: dict[str, Any], where: str, what: str
) -> None:
    """Refuse a variant that the part of the preprocessing inside the graph does not fit."""
    if not record:
        return
    inside = ("size", "classes", *(("mean", "std") if record["options"].get("uint8") else ()))
    ours, theirs = record["model"], variant.record["model"]
    for key in inside:
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{what}: expected {key} {ours.get(key)}, which is part of the graph of {where}, "
                f"got {theirs.get(key)}."
            )


def _check_runs(base: onnx.ModelProto, patched: onnx.ModelProto, where: str) -> None:
    """Refuse unless ONNX Runtime computes with the new tensors, folded as well as not.

    Replaced tensors have been ignored before: after folding, a session may hold the old ones.
    """
    content = patched.SerializeToString()
    difference = probe_distance(content, content, optimise=(True, False))
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"{where}: expected the same outputs with and without ONNX Runtime's folding, got a "
            f"difference of {difference:.1e} of the largest. No file was written."
        )
    changed = graph_bytes(base) != graph_bytes(patched)
    if changed and probe_distance(base.SerializeToString(), content) == 0.0:
        raise VerificationError(
            f"{where}: expected other outputs than before, got the same: ONNX Runtime does not use "
            "the new tensors. No file was written."
        )


def _short(identity: str) -> str:
    return identity.removeprefix(FOREIGN)[:12]
