"""What is known and what is available: suites, policies and data sets, as records and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.report.blocks import Facts, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.report.blocks import Block
    from recal.suites.suite import Suite


@dataclass(frozen=True, kw_only=True)
class SuiteStatus:
    """A benchmark suite, and what of it this machine has.

    Attributes:
        name: Name of the suite.
        title: Title of the benchmark.
        source: The publication.
        family: Family of its images.
        classes: Number of classes.
        cells: Number of cells of each target, the clean images included.
        reference: Source of the reference errors of mCE, or None.
        clean: Where the clean images are, or None.
        corrupted: Where the published corrupted images are, or None.
        ready: Whether it can be evaluated here.
        missing: What is missing, and how to get it.
    """

    name: str
    title: str
    source: str
    family: str
    classes: int
    cells: int
    reference: str | None
    clean: str | None
    corrupted: str | None
    ready: bool
    missing: str

    @property
    def available(self) -> str:
        """Whether its images are here: `yes`, `to be made` or `-`."""
        if not self.ready:
            return "-"
        return "yes" if self.cells == 1 or self.corrupted else "to be made"


def suite_status(suite: Suite, data: Path | None) -> SuiteStatus:
    """Look for a suite's images in a folder, or in the usual places if it is None."""
    from recal.suites.locate import locate_suite

    places = locate_suite(suite, data)
    return SuiteStatus(
        name=suite.name,
        title=suite.title,
        source=suite.source,
        family=suite.family,
        classes=suite.classes,
        cells=len(suite.cells()) + 1,
        reference=suite.reference.source if suite.reference else None,
        clean=str(places.clean) if places.clean else None,
        corrupted=str(places.corrupted) if places.corrupted else None,
        ready=places.ready,
        missing=places.missing,
    )


def suites_blocks(found: Sequence[SuiteStatus]) -> list[Block]:
    """Return one table of suites."""
    rows = tuple((s.name, s.available, str(s.cells), s.title) for s in found)
    return [
        Grid("", ("suite", "available", "cells", "benchmark"), rows, left=(0, 1, 3)),
        "`recal suites NAME` shows where its images are, or how to get them. `recal eval --suite` "
        "takes these names, and .toml files of your own.",
    ]


def suite_blocks(suite: Suite, found: SuiteStatus) -> list[Block]:
    """Return all that is known about one suite."""
    subset = f", of which {suite.subset.replace('_', '-')}'s 200 count" if suite.subset else ""
    rows = [
        ("source", suite.source),
        ("classes", f"{suite.classes}{subset}; order: {suite.order}"),
        ("clean images", f"{found.clean or 'not here'}, prepared by policy {suite.family}/clean"),
    ]
    corrupted = suite.corrupted
    if corrupted.corruptions:
        side = corrupted.size
        used = f"{side}x{side} pixels, used as they are" if side else "none"
        rows += [
            ("published", f"{found.corrupted or 'not here'} ({used})"),
            ("corruptions", ", ".join(corrupted.corruptions)),
            ("severities", ", ".join(map(str, corrupted.severities))),
            ("on the fly", f"parameters of family: {corrupted.parameters or 'cannot be made'}"),
        ]
    rows.append(("reference", found.reference or "none: errors are not normalised"))
    if found.missing:
        rows.append(("to get", found.missing))
    return [Facts(tuple(rows), f"{suite.name}: {suite.title}")]


@dataclass(frozen=True, kw_only=True)
class SetStatus:
    """A published data set, and where it is on this machine.

    Attributes:
        name: Name of the data set.
        title: Title of the data set.
        gigabytes: Size on disk.
        folder: Where it is, or None.
        label: Label of results made with it, if it was regenerated.
        ways: How to get it: `fetch`, `generate`, both or none.
        page: Web page of the data set, or None.
    """

    name: str
    title: str
    gigabytes: float
    folder: str | None
    label: str | None
    ways: tuple[str, ...]
    page: str | None

    @property
    def place(self) -> str:
        """Where it is, or how to get it."""
        if self.folder:
            return f"{self.folder} ({self.label})" if self.label else self.folder
        return f"not here: {' or '.join(self.ways) or self.page}"


def data_sets() -> list[SetStatus]:
    """Look for every known data set in the usual places."""
    from recal.datasets.catalogue import catalogue, find_set, label_of
    from recal.datasets.generate import GENERATED

    found = []
    for name, published in catalogue().items():
        folder = find_set(name)
        ways = {"fetch": bool(published.downloads), "generate": name in GENERATED}
        status = SetStatus(
            name=name,
            title=published.title,
            gigabytes=published.gigabytes,
            folder=str(folder) if folder else None,
            label=label_of(folder) if folder else None,
            ways=tuple(way for way, possible in ways.items() if possible),
            page=published.page or None,
        )
        found.append(status)
    return found


def data_sets_blocks(found: Sequence[SetStatus]) -> list[Block]:
    """Return one table of data sets."""
    rows = tuple((s.name, s.title, f"{s.gigabytes:g}", s.place) for s in found)
    return [Grid("", ("name", "data set", "GB", "where"), rows, left=(0, 1, 3))]
