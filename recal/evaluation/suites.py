"""Suites: declared benchmarks, read from TOML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recal.declared import check_keys, check_type, pick, read_toml
from recal.errors import InputError, UsageError
from recal.resources import shipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """One column of a table: a corruption at a severity, or the clean images."""

    corruption: str | None
    severity: int | None

    @property
    def name(self) -> str:
        """`clean`, or such as `contrast-3`; the name of the cell's file."""
        return "clean" if self.corruption is None else f"{self.corruption}-{self.severity}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The errors that a suite's are divided by for mCE.

    Attributes:
        source: Which network, and who says so.
        clean_error: Its error on the clean images, a fraction, for relative mCE; or None.
        errors: Its error on each corruption of the suite, a fraction, the mean over severities.
    """

    source: str
    clean_error: float | None
    errors: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A declared benchmark.

    Attributes:
        name: The file's name without `.toml`.
        title: One line for people.
        family: Family of policies; its clean policy prepares the clean images.
        classes: Number of classes.
        corruptions: Their names, in order; empty for a clean suite.
        severities: Severities of each corruption.
        parameters: Family of corruption parameters: cifar, tiny or imagenet.
        folders: Usual names of the folder with the published corrupted images.
        rows: Images a severity in the published .npy files.
        reference: The errors that mCE is relative to; None where none are published.
        text: The file's text.
    """

    name: str
    title: str
    family: str
    classes: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    parameters: str
    folders: tuple[str, ...]
    rows: int
    reference: Reference | None
    text: str

    def cells(self, corruptions: Sequence[str] = (), severities: Sequence[int] = ()) -> list[Cell]:
        """Return the corrupted cells, or the part of them that is asked for, in the suite's order.

        Raises:
            UsageError: The suite has no such corruption or severity.
        """
        for name in corruptions:
            pick(name, self.corruptions, f"--corruptions (suite {self.name})")
        for severity in severities:
            pick(str(severity), [str(s) for s in self.severities], "--severities")
        return [
            Cell(corruption, severity)
            for corruption in self.corruptions
            if not corruptions or corruption in corruptions
            for severity in self.severities
            if not severities or severity in severities
        ]


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(path.stem for path in shipped("evals").glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Read a shipped suite.

    Raises:
        UsageError: There is none of this name.
    """
    return read_suite(shipped("evals") / f"{pick(name, suite_names(), '--suite')}.toml")


def usual_suite(family: str, classes: int) -> Suite:
    """Return the suite that fits a network when none is named: the first of its family.

    Raises:
        UsageError: There is none for this family and number of classes.
    """
    for name in suite_names():
        suite = load_suite(name)
        if suite.family == family and suite.classes == classes:
            return suite
    raise UsageError(
        f"no suite for networks of family {family} with {classes} classes. Give one with --suite: "
        f"{', '.join(suite_names())}."
    )


def read_suite(path: Path) -> Suite:
    """Read a suite file.

    Raises:
        InputError: It cannot be read or has unknown or missing keys.
    """
    table = read_toml(path)
    required = ("title", "family", "classes")
    check_keys(table, (*required, "corrupted", "reference"), str(path), required)
    corrupted: dict[str, Any] = table.get("corrupted", {})
    keys = ("corruptions", "severities", "parameters")
    where = f"{path}: [corrupted]"
    check_keys(corrupted, (*keys, "folders", "rows"), where, keys if corrupted else ())
    return Suite(
        name=path.stem,
        title=table["title"],
        family=table["family"],
        classes=table["classes"],
        corruptions=tuple(corrupted.get("corruptions", ())),
        severities=tuple(corrupted.get("severities", ())),
        parameters=corrupted.get("parameters", ""),
        folders=tuple(corrupted.get("folders", ())),
        rows=corrupted.get("rows", 0),
        reference=_read_reference(table.get("reference"), corrupted, path),
        text=path.read_text(encoding="utf-8"),
    )


def _read_reference(
    table: Mapping[str, Any] | None, corrupted: Mapping[str, Any], path: Path
) -> Reference | None:
    if table is None:
        return None
    where = f"{path}: [reference]"
    check_keys(table, ("source", "clean_error", "errors"), where, ("source", "errors"))
    names = corrupted.get("corruptions", ())
    check_keys(table["errors"], names, f"{where} errors", names)
    for name, error in {**table["errors"], "clean_error": table.get("clean_error", 0.0)}.items():
        check_type(error, float, f"{where} {name}")
        if not 0 <= error <= 1:
            raise InputError(f"{where} {name}: expected a fraction from 0 to 1, got {error}.")
    return Reference(
        source=table["source"], clean_error=table.get("clean_error"), errors=table["errors"]
    )
