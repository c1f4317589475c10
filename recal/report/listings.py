"""What is known and what is available: suites, policies and data sets, as records and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.report.blocks import Block, Facts, Grid

if TYPE_CHECKING:
    from recal.suites.locate import SuiteLocation
    from recal.suites.suite import Suite


@dataclass(frozen=True, kw_only=True)
class SuiteStatus:
    """A benchmark suite, and where its images are on this machine."""

    suite: Suite
    location: SuiteLocation

    @property
    def row(self) -> dict[str, object]:
        """The suite for CSV and JSON; `cells` are those of each target, with the clean one."""
        suite, location = self.suite, self.location
        return {
            "name": suite.name,
            "title": suite.title,
            "source": suite.source,
            "family": suite.family,
            "classes": suite.classes,
            "cells": len(suite.cells()) + 1,
            "reference": suite.reference.source if suite.reference else None,
            "clean": str(location.clean) if location.clean else None,
            "corrupted": str(location.corrupted) if location.corrupted else None,
            "ready": location.ready,
            "missing": location.missing,
        }


def suites_blocks(found: Sequence[SuiteStatus]) -> list[Block]:
    """Return one table of suites; images are here (`yes`), `to be made`, or missing (`-`)."""
    rows = []
    for status in found:
        suite, location = status.suite, status.location
        published = location.corrupted or not suite.cells()
        available = ("yes" if published else "to be made") if location.ready else "-"
        rows.append((suite.name, available, str(len(suite.cells()) + 1), suite.title))
    return [
        Grid("", ("suite", "available", "cells", "benchmark"), tuple(rows), left=(0, 1, 3)),
        "`recal suites NAME` shows where its images are, or how to get them. `recal eval --suite` "
        "takes these names, and .toml files of your own.",
    ]


def suite_blocks(found: SuiteStatus) -> list[Block]:
    """Return all that is known about one suite."""
    suite, corrupted, location = found.suite, found.suite.corrupted, found.location
    subset = f", of which {len(suite.kept)} ({suite.subset}) count" if suite.kept else ""
    clean = f"{location.clean or 'not here'}, prepared by policy {suite.family}/clean"
    rows = [
        ("source", suite.source),
        ("classes", f"{suite.classes}{subset}; order: {suite.order}"),
        ("clean images", clean),
    ]
    if corrupted.corruptions:
        side = corrupted.size
        used = f"{side}x{side} pixels, used as they are" if side else "none"
        rows += [
            ("published", f"{location.corrupted or 'not here'} ({used})"),
            ("corruptions", ", ".join(corrupted.corruptions)),
            ("severities", ", ".join(map(str, corrupted.severities))),
            ("on the fly", f"parameters of family: {corrupted.parameters or 'cannot be made'}"),
        ]
    reference = suite.reference.source if suite.reference else "none: errors are not normalised"
    rows.append(("reference", reference))
    if location.missing:
        rows.append(("to get", location.missing))
    return [Facts(tuple(rows), f"{suite.name}: {suite.title}")]


@dataclass(frozen=True, kw_only=True)
class SetStatus:
    """A published data set, where it is on this machine, and how to get it."""

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

    return [
        SetStatus(
            name=name,
            title=published.title,
            gigabytes=published.gigabytes,
            folder=str(folder) if folder else None,
            label=label_of(folder) if folder else None,
            ways=("fetch",) * bool(published.downloads) + ("generate",) * (name in GENERATED),
            page=published.page or None,
        )
        for name, published in catalogue().items()
        for folder in [find_set(name)]
    ]


def data_sets_blocks(found: Sequence[SetStatus]) -> list[Block]:
    """Return one table of data sets."""
    rows = tuple((s.name, s.title, f"{s.gigabytes:g}", s.place) for s in found)
    return [Grid("", ("name", "data set", "GB", "where"), rows, left=(0, 1, 3))]
