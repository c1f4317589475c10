"""Putting another variant into a patchable ONNX file, with onnx and NumPy alone."""

import copy
import hashlib
from collections import Counter
from pathlib import Path

import onnx

from recal.errors import InputError, VerificationError
from recal.files import write_whole
from recal.onnx_file.editing import arrays_of_graph, layer_tensors, refill, with_arrays
from recal.onnx_file.reading import check_model, graph_bytes, read_model
from recal.onnx_file.record import (
    GraphOptions,
    HeldVariant,
    OnnxRecord,
    check_digest,
    parse_record,
    read_entries,
    with_onnx,
    write_record,
)
from recal.onnx_file.session import NONE, make_probe, noise_difference, noise_side
from recal.variant.variant import Variant, load_variant

FOREIGN = "onnx:"
TOLERANCE = 1e-3


def patch_file(path: Path, variant: Path, output: Path) -> Variant:
    """Write a copy of a patchable ONNX file that holds another variant, and return the variant.

    The graph is, byte for byte, that of a fresh patchable export of the variant.

    Args:
        path: The base file; not changed unless it is `output`.
        variant: The variant's file.
        output: The file to write, after ONNX Runtime has run it.

    Raises:
        InputError: The file is not patchable, or the variant belongs to other weights.
        VerificationError: The base file was changed, or ONNX Runtime does not run the new tensors.
    """
    model, found = read_model(path), load_variant(variant)
    patched = patch_model(model, found, str(path), str(variant))
    check_model(patched, str(output))
    write_whole(output, patched.SerializeToString(deterministic=True))
    return found


def patch_model(model: onnx.ModelProto, variant: Variant, where: str, what: str) -> onnx.ModelProto:
    """Return a copy of a patchable model that holds a variant, and its record.

    Messages name the model `where` and the variant `what`. Errors are those of `patch_file`.
    """
    record = require_patchable(model, where)
    own = record.weights_sha256 if record else weights_identity(model)
    if variant.weights_sha256 != own:
        ours, theirs = (i.removeprefix(FOREIGN)[:12] for i in (own, variant.weights_sha256))
        raise InputError(
            f"{what}: expected a variant for the weights in {where} ({ours}), got one for others "
            f"({theirs})."
        )
    if record is not None:
        # the part of the preprocessing that is inside the graph
        for key in record.options.inside:
            inside, given = getattr(record.model, key), getattr(variant.spec, key)
            if inside != given:
                raise InputError(
                    f"{what}: expected {key} {inside}, which is part of the graph of {where}, got "
                    f"{given}."
                )
    patched = with_arrays(model, arrays_of_graph(model.graph, variant.tensors, where, what))
    _check_runs(model, patched, where)
    options = record.options if record else GraphOptions()
    patched_record = OnnxRecord(
        form="patchable",
        options=options,
        weights_sha256=own,
        model=variant.spec,
        variants=(HeldVariant.of(variant),),
        versions=with_onnx(variant.versions),
        probe=make_probe(patched.SerializeToString(), side=noise_side(options, variant.spec)),
        checkpoint_sha256=record.checkpoint_sha256 if record else None,
        classes=record.classes if record else None,
    )
    write_record(patched, patched_record)
    return patched


def require_patchable(model: onnx.ModelProto, where: str) -> OnnxRecord | None:
    """Return the record of a file whose BatchNorm tensors are all there; None if recal wrote none.

    Raises:
        InputError: There is no BatchNorm, or one is folded, in training mode or shares statistics.
        VerificationError: The file was changed since it was written.
    """
    record = parse_record(read_entries(model), where)
    if record is not None:
        check_digest(model, record, where)
        if record.form != "patchable":
            raise InputError(
                f"{where}: expected a patchable file, got one whose BatchNorm is folded into the "
                "weights. Export it with --patchable."
            )
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not nodes:
        raise InputError(f"{where}: expected BatchNormalization nodes, got none.")
    known = {tensor.name for tensor in model.graph.initializer}
    users = Counter(name for node in nodes for name in node.input[3:5])
    for node in nodes:
        if any(a.name == "training_mode" and a.i for a in node.attribute):
            raise InputError(
                f"{where}: node '{node.name}': expected BatchNormalization with stored statistics, "
                "got one in training mode, which takes each batch's own. Export the network in "
                "eval mode."
            )
        joined = [name for name in node.input[3:5] if name not in known or users[name] > 1]
        if joined:
            raise InputError(
                f"{where}: node '{node.name}': expected statistics of its own, got '{joined[0]}', "
                "which is another layer's too or computed. Exporters join equal tensors, such as "
                "those of layers that were never trained. Export the network with recal, which "
                "keeps them apart."
            )
    return record


def weights_identity(model: onnx.ModelProto) -> str:
    """Return the hash of a graph without its BatchNorm tensors, to which variants are bound."""
    names = set(layer_tensors(model.graph).values())
    bare = copy.deepcopy(model)
    refill(bare.graph.initializer, [t for t in bare.graph.initializer if t.name not in names])
    return FOREIGN + hashlib.sha256(graph_bytes(bare)).hexdigest()


def _check_runs(base: onnx.ModelProto, patched: onnx.ModelProto, where: str) -> None:
    """Refuse unless ONNX Runtime uses the new tensors, also where it folds them when it loads."""
    content = patched.SerializeToString()
    difference = noise_difference(content, content, NONE)
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"{where}: expected the same outputs with and without ONNX Runtime's folding, got a "
            f"difference of {difference:.1e} of the largest. No file was written."
        )
    changed = graph_bytes(base) != graph_bytes(patched)
    if changed and noise_difference(base.SerializeToString(), content) == 0.0:
        raise VerificationError(
            f"{where}: expected other outputs than before, got the same: ONNX Runtime does not use "
            "the new tensors. No file was written."
        )
