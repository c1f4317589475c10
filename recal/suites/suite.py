"""Suites: declared benchmarks, which images they have and how these are laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.declared import pick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
class CleanSet:
    """The images that a suite's clean cell is of.

    Attributes:
        data: The data set's name for `recal data fetch`; empty for none.
        folders: Usual names of its folder.
        arrays: Names of the .npy files of images and labels, where it comes as these.
        count: Number of images as published; 0 where it is not known.
    """

    data: str
    folders: tuple[str, ...]
    arrays: tuple[str, ...]
    count: int


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
        source: Where it was published.
        family: Family of policies; its clean policy prepares the clean images.
        classes: Number of logits of the networks that it is for.
        order: How folders name classes: `sorted` (the n-th name is class n), `wnids` (ImageNet's
            1000 in their own order) or `numbers` (`0`, `1`, ...).
        subset: Only these ImageNet classes have images (`imagenet_a`, `imagenet_r`): the other
            logits are left out. Empty for all.
        first: Only the first so many images, in the published order; 0 for all.
        names: A file that lists the images to use, `<class>/<file>` a line; empty for all.
        clean: The clean images.
        corruptions: Their names, in order; empty for a clean suite.
        severities: Severities of each corruption.
        parameters: Family of corruption parameters (cifar, tiny or imagenet) to corrupt clean
            images by; empty where only published images will do.
        data: The corrupted data set's name for `recal data fetch`; empty for none.
        layout: Of the published corrupted images: `arrays` (`<corruption>.npy`, severity after
            severity, and `labels.npy`) or `folders` (`<corruption>/<severity>/<class>/*`).
        folders: Usual names of the folder with them, or of the tar file.
        rows: Images a severity; 0 where it is not known.
        size: Side of the published corrupted images in pixels. They are used as they are.
        reference: The errors that mCE is relative to; None where none are published.
        text: The file's text.
    """

    name: str
    title: str
    source: str
    family: str
    classes: int
    order: str
    subset: str
    first: int
    names: str
    clean: CleanSet
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    parameters: str
    data: str
    layout: str
    folders: tuple[str, ...]
    rows: int
    size: int
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
