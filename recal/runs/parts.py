"""What the parts of a run have done: one file for each in the run's folder."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from recal.distributed import Part
from recal.errors import InputError
from recal.files import write_whole
from recal.schema import Record, read_json_file, to_json

FOLDER = "parts"
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="a sha256 in hexadecimal")]
Count = Annotated[int, Meta(ge=1)]


class PartRecord(Record, frozen=True, kw_only=True):
    """What one part of a run has done.

    Attributes:
        request: Hash of the request that the part is of.
        number: Number of the part, 1 to count.
        count: Number of parts.
        finished: Whether every cell of the part is there or has failed.
        held: Names of the cells that hold, by target.
        failures: Why single cells failed, one line each.
        execution: How networks were run, for people.
        warnings: What is odd about the images and the preprocessing.
    """

    request: Sha256
    number: Count
    count: Count
    finished: bool = False
    held: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    failures: tuple[str, ...] = ()
    execution: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def part(self) -> Part:
        """The part."""
        return Part(self.number, self.count)

    def with_cell(self, cell: str, targets: Iterable[str]) -> "PartRecord":
        """Return the record with one more cell that holds for some targets."""
        held = dict(self.held)
        for target in targets:
            held[target] = tuple(dict.fromkeys((*held.get(target, ()), cell)))
        return msgspec.structs.replace(self, held=held)


def digest_of(record: Record) -> str:
    """Return the hash of a record: the identity of a request."""
    return hashlib.sha256(to_json(record).encode()).hexdigest()


def part_file(folder: Path, part: Part) -> Path:
    """Return the path of a part's record in the folder of a run."""
    return folder / FOLDER / f"{part.name}.json"


def write_part(folder: Path, record: PartRecord) -> None:
    """Write the record of a part, whole or not at all."""
    write_whole(part_file(folder, record.part), to_json(record) + "\n")


def read_parts(folder: Path, request: str) -> tuple[PartRecord, ...]:
    """Read the records of all parts of a request, in order.

    Raises:
        InputError: One is damaged.
    """
    found = []
    for path in (folder / FOLDER).glob("*-of-*.json"):
        try:
            record = read_json_file(path, PartRecord)
        except InputError as error:
            raise InputError(f"{error} Delete it, and run this part again.") from error
        if record.request == request and record.number <= record.count:
            found.append(record)
    return tuple(sorted(found, key=lambda record: (record.count, record.number)))


def held_by(parts: Iterable[PartRecord], cells: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return which of the cells, by name, parts hold together for each target."""
    held: dict[str, set[str]] = {}
    for record in parts:
        for target, found in record.held.items():
            held.setdefault(target, set()).update(found)
    return {target: tuple(filter(found.__contains__, cells)) for target, found in held.items()}


def cells_left(cells: Sequence[str], parts: Iterable[PartRecord]) -> list[str]:
    """Return the names of the cells that no finished part has dealt with."""
    done = {cell for record in parts if record.finished for cell in record.part.share(cells)}
    return [cell for cell in cells if cell not in done]
