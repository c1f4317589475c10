"""What an ONNX file says of itself: the `recal.*` entries of its metadata."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import onnx

from recal.errors import InputError, VerificationError
from recal.onnx_file.reading import graph_bytes
from recal.variant.file import check_statistics
from recal.wording import check_type

if TYPE_CHECKING:
    from collections.abc import Mapping


PREFIX = "recal."
DIGEST = "sha256"
FORMAT = 1
REQUIRED: dict[str, type] = {
    "format": int, "variant": str, "variant_sha256": str, "weights_sha256": str, "model": dict,
    "affine": str, "statistics": dict, "options": dict, DIGEST: str,
}  # fmt: skip
OF_VARIANT: dict[str, type] = {
    "variant": str, "variant_sha256": str, "affine": str, "statistics": dict,
}  # fmt: skip


def read_record(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the `recal.*` entries without the prefix, JSON decoded where they are JSON."""
    return decode_entries({entry.key: entry.value for entry in model.metadata_props})


def decode_entries(entries: Mapping[str, str]) -> dict[str, Any]:
    """Keep the entries with recal's prefix, without it, JSON decoded where they are JSON."""
    return {
        key.removeprefix(PREFIX): _decoded(value)
        for key, value in entries.items()
        if key.startswith(PREFIX)
    }


def describe(variant: Mapping[str, Any], label: str, sha256: str) -> dict[str, Any]:
    """Return the entries that say which variant a file holds.

    Args:
        variant: The variant's own record.
        label: Its short name.
        sha256: Hash of the network that it makes.
    """
    shared = ("format", "weights_sha256", "model", "affine", "statistics")
    return {
        **{key: variant[key] for key in shared},
        "variant": label,
        "variant_sha256": sha256,
        "versions": {**variant["versions"], "onnx": onnx.__version__},
    }


def write_record(model: onnx.ModelProto, record: Mapping[str, Any]) -> None:
    """Replace a model's metadata by a record and the digest that covers it and the graph."""
    entries = {
        f"{PREFIX}{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in record.items()
        if key != DIGEST
    }
    onnx.helper.set_model_props(model, dict(sorted(entries.items())))
    digest = record_digest(model)
    model.metadata_props.add(key=f"{PREFIX}{DIGEST}", value=digest)


def record_digest(model: onnx.ModelProto) -> str:
    """Return the hash of the graph and of every metadata entry but the digest itself."""
    digest = hashlib.sha256(graph_bytes(model))
    for entry in sorted(model.metadata_props, key=lambda entry: entry.key):
        if entry.key != f"{PREFIX}{DIGEST}":
            digest.update(f"\0{entry.key}\0{entry.value}".encode())
    return digest.hexdigest()


def require_entries(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Return the record of a file that recal wrote, whether changed since or not.

    Raises:
        InputError: recal did not write it, or a newer one did.
    """
    record = read_record(model)
    missing = [key for key in REQUIRED if not isinstance(record.get(key), REQUIRED[key])]
    if missing:
        raise InputError(
            f"{where}: expected a file that recal wrote, got none of its entries "
            f"{', '.join(missing)}. Only such a file says what it should be."
        )
    if record["format"] != FORMAT:
        raise InputError(
            f"{where}: expected format {FORMAT}, got {record['format']}. Use a newer recal."
        )
    return record


def variants_of(record: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return what a record says of each variant in the file: of most files, of one.

    Raises:
        InputError: An entry is not as recal writes it.
    """
    entries = record.get("variants", [record])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: variants: expected a list, got {entries!r}.")
    for entry in entries:
        check_type(entry, dict, f"{where}: variants")
        for key, kind in OF_VARIANT.items():
            check_type(entry.get(key), kind, f"{where}: {key}")
        check_statistics(entry["statistics"], where)
    return entries


def require_record(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Return the record of a file that recal wrote and nobody changed since.

    Raises:
        InputError: recal did not write it, or a newer one did.
        VerificationError: Graph or record are not those that were written.
    """
    record = require_entries(model, where)
    found = record_digest(model)
    if record[DIGEST] != found:
        raise VerificationError(
            f"{where}: expected the contents that were written ({record[DIGEST][:12]}), got "
            f"others ({found[:12]}): the graph, a tensor or the record was changed. Name "
            "--checkpoint and --variant to learn which."
        )
    return record


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
