"""Checking an ONNX file against its own record, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.errors import VerificationError
from recal.onnx_file.reading import check_model, read_model
from recal.onnx_file.record import OnnxRecord, check_digest, read_record
from recal.onnx_file.session import probe_difference

if TYPE_CHECKING:
    from pathlib import Path


PROBE_TOLERANCE = 1e-3
COARSE_PROBE_TOLERANCE = 5e-2


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """The result of checking a file without its checkpoint.

    Attributes:
        record: What the file says of itself.
        probe_difference: How far outputs on seeded noise are from those recorded when the file was
            written, relative to max(1, the largest).
    """

    record: OnnxRecord
    probe_difference: float


def verify_alone(path: Path) -> SelfCheck:
    """Check that a file is whole, valid and unchanged, and that it computes as it did when written.

    The digest in the file protects against damage and careless edits. A forged file with a new
    digest is found by `recal.export.verify.verify_against` alone.

    Raises:
        InputError: It is no whole ONNX file, or not one that recal wrote.
        VerificationError: Its contents were changed, or this ONNX Runtime computes otherwise.
    """
    model, where = read_model(path), str(path)
    record = read_record(model, where)
    check_digest(model, record, where)
    check_model(model, where)
    difference = probe_difference(model.SerializeToString(), record.probe)
    coarse = record.form in ("float16", "int8")
    allowed = COARSE_PROBE_TOLERANCE if coarse else PROBE_TOLERANCE
    if not difference <= allowed:
        raise VerificationError(
            f"{path}: expected the outputs that were recorded, within {allowed:.0e}, got a "
            f"difference of {difference:.1e} of the largest. This ONNX Runtime computes otherwise."
        )
    return SelfCheck(record=record, probe_difference=difference)
