"""Checking an ONNX file against its own record, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recal.errors import VerificationError
from recal.onnx_file.reading import check_model, read_model
from recal.onnx_file.record import require_record
from recal.onnx_file.session import probe_difference

if TYPE_CHECKING:
    from pathlib import Path


PROBE_TOLERANCE = 1e-3
HALF_PROBE_TOLERANCE = 5e-2


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


def verify_alone(path: Path) -> SelfCheck:
    """Check a file by itself: whole, valid, unchanged since it was written, running as it did.

    A digest in the file protects against damage and careless edits. Who can recompute it is found
    by `recal.export.rebuild.verify_against` alone.

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
