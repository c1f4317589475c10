"""Suites: declared benchmarks, read from TOML."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from recal.attacks.attack import AnyAttack
from recal.corruptions.parameters import ALL_CORRUPTIONS
from recal.data.label_files import read_classes
from recal.datasets.catalogue import catalogue, wnids
from recal.datasets.classes import ClassOrder
from recal.errors import InputError, UsageError, did_you_mean, listed, pick, shown
from recal.files import read_text, shipped
from recal.policies.families import family_names, usual_folders
from recal.policies.policy import Policy, read_policy
from recal.schema import Record, json_schema, parse_toml


@dataclass(frozen=True)
class Cell:
    """One column of a table: a corruption at a severity, or the clean images."""

    corruption: str | None
    severity: int | None

    @property
    def name(self) -> str:
        """The name of the cell and its file: `clean`, or such as `contrast-3`."""
        return "clean" if self.corruption is None else f"{self.corruption}-{self.severity}"

    @classmethod
    def parse(cls, name: str) -> Cell:
        """Return the cell of that name, or raise a ValueError, also for `../x`."""
        if name == "clean":
            return cls(None, None)
        found = re.fullmatch(r"(\w[\w.-]{0,99})-(\d{1,4})", name, re.ASCII)
        if found is None:
            raise ValueError(f"expected the name of a cell, such as fog-3, got {name[:100]!r}.")
        return cls(found[1], int(found[2]))


Count: TypeAlias = Annotated[int, Meta(ge=0)]
ErrorRate: TypeAlias = Annotated[float, Meta(gt=0, le=1, description="a fraction above 0")]
LIST_ENDS = (".txt", ".json")
CLASS_LIST = r"[^/\\]+\.(?:txt|json)"
Order: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^(?:sorted|wnids|numbers|{CLASS_LIST})\Z",
        description="one of 'sorted', 'wnids', 'numbers', or the name of a .txt or .json file",
    ),
]
Subset: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^(?:|imagenet_a|imagenet_r|{CLASS_LIST})\Z",
        description="one of 'imagenet_a', 'imagenet_r', or the name of a .txt or .json file",
    ),
]
ParameterName: TypeAlias = Annotated[
    Literal["", "cifar", "tiny", "imagenet"], Meta(description="one of cifar, tiny, imagenet")
]


class CleanSet(Record, frozen=True, kw_only=True):
    """The images of a suite's clean cell.

    Attributes:
        data: The data set's name for `recal data fetch`; empty for none.
        folders: Usual names of its folder; empty for those of the family.
        arrays: Names of the .npy files of images and labels, where it comes as these.
        policy: File of the policy that prepares them, relative to the suite's; empty for the
            networks' own preparation.
        images: Number of images as published; 0 if it is unknown.
        answers: Right answers that override the labels: `imagenet_real` for ReaL's; empty for none.
    """

    data: str = ""
    folders: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    policy: str = ""
    images: Count = 0
    answers: Literal["", "imagenet_real"] = ""

    def __post_init__(self) -> None:
        if self.data:
            _one_of(self.data, catalogue(), "data")
        if len(self.arrays) not in (0, 2):
            raise ValueError(
                f"arrays: expected the files of images and of labels, got {len(self.arrays)} names."
            )


class CorruptedSet(Record, frozen=True, kw_only=True):
    """The images of a suite's corrupted cells.

    Attributes:
        data: The data set's name for `recal data fetch`; empty for none.
        layout: Form of the published images: `arrays` (`<corruption>.npy`, severity after severity,
            and `labels.npy`) or `folders` (`<corruption>/<severity>/<class>/*`).
        folders: Usual names of their folder, or of its tar file without `.tar`.
        rows: Number of images per severity; 0 if it is unknown.
        size: Side of the published images, in pixels; 0 if it is unknown.
        parameters: Name of the parameters to corrupt clean images by; empty if only published
            images are valid.
        severities: Severities of each corruption, rising.
        corruptions: Names of the corruptions, in the order of tables.
    """

    data: str = ""
    layout: Literal["arrays", "folders"] = "arrays"
    folders: tuple[str, ...] = ()
    rows: Count = 0
    size: Count = 0
    parameters: ParameterName = ""
    severities: Annotated[tuple[int, ...], Meta(min_length=1)]
    corruptions: Annotated[tuple[str, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        if self.data:
            _one_of(self.data, catalogue(), "data")
        names, severities = self.corruptions, list(self.severities)
        for name in names:
            if not name or set(name) & set("/\\.:\0"):
                raise ValueError(f"corruptions: expected plain names, got {shown(name)}.")
            if self.parameters:
                _one_of(name, ALL_CORRUPTIONS, "corruptions (with parameters)")
        if len(set(names)) < len(names):
            raise ValueError(f"corruptions: expected each name once, got {shown(list(names))}.")
        if sorted(set(severities)) != severities or min(severities, default=1) < 1:
            raise ValueError(
                f"severities: expected rising numbers from 1 on, got {shown(severities)}."
            )
        if names and not (self.parameters or self.folders or self.data):
            raise ValueError(
                "expected `folders` with the published images, `data`, or `parameters` to corrupt "
                "clean ones by, got none of them."
            )


class Reference(Record, frozen=True, kw_only=True):
    """The errors that a suite's are divided by for mCE.

    Attributes:
        source: The network, and the publication of its errors.
        clean_error: Its error on the clean images, a fraction, for relative mCE; or None.
        errors: Its error on each corruption of the suite, a fraction, the mean over severities.
    """

    source: str
    clean_error: ErrorRate | None = None
    errors: dict[str, ErrorRate]


class SuiteFile(Record, frozen=True, kw_only=True):
    """The content of a suite file.

    Attributes:
        title: One line for people.
        source: The publication.
        family: Family of policies; its clean policy prepares the clean images by default.
        classes: Number of logits of the networks that it is for.
        order: How folders name classes: `sorted` (the n-th name is class n), `wnids` (ImageNet's
            1000 in their own order), `numbers` (`0`, `1`, ...), or a file with the name of each.
        subset: The classes that count (`imagenet_a`, `imagenet_r`, or a file of their names); the
            other logits, and images of other classes, are left out. Empty for all.
        first: Number of images to use, in the published order; 0 for all.
        names: A file that lists the images to use, `<class>/<file>` per line; empty for all.
        clean: The clean images.
        corrupted: The corrupted images; without corruptions for a clean suite.
        attack: Attacks by name: every target that is attacked has a cell for each of them.
        reference: The errors that mCE is relative to, or None.
    """

    title: str
    source: str = ""
    family: str
    classes: Annotated[int, Meta(ge=1)]
    order: Order = "sorted"
    subset: Subset = ""
    first: Count = 0
    names: str = ""
    clean: CleanSet = CleanSet()
    corrupted: CorruptedSet = CorruptedSet(severities=(), corruptions=())
    attack: dict[str, AnyAttack] = msgspec.field(default_factory=dict)
    reference: Reference | None = None

    def __post_init__(self) -> None:
        for name in self.attack:
            if re.fullmatch(r"\w{1,30}", name, re.ASCII) is None:
                raise ValueError(
                    f"attack: expected names of letters and digits, got {shown(name)}."
                )
        if self.attack and (self.corrupted.corruptions or self.subset):
            raise ValueError("attack: expected neither corruptions nor a subset beside attacks.")
        _one_of(self.family, family_names(), "family")
        if self.reference is not None:
            names, known = self.reference.errors, self.corrupted.corruptions
            for name in names:
                _one_of(name, known, "reference: errors")
            missing = [name for name in known if name not in names]
            if missing:
                raise ValueError(f"reference: errors: {', '.join(missing)} missing. Add it.")


class Suite(SuiteFile, frozen=True, kw_only=True):
    """A declared benchmark: the content of its file, with the usual names of folders filled in.

    Attributes:
        name: The file's name without `.toml`.
        text: The file's text, followed by the files of classes that it names.
        ordered: Name of each class of the networks, or empty if the order is `sorted`.
        kept: Names of the classes that count, or empty for all.
        policy: The policy that prepares the clean images, if the suite names one.
    """

    name: str
    text: str
    ordered: tuple[str, ...]
    kept: tuple[str, ...]
    policy: Policy | None = None

    def __post_init__(self) -> None:
        # the checks of the file were made when it was read
        if self.ordered and len(self.ordered) != self.classes:
            raise InputError(
                f"suite {self.name}: order: expected {self.classes} classes, got "
                f"{len(self.ordered)} in {self.order}."
            )
        if not self.ordered and self.kept:
            raise InputError(
                f"suite {self.name}: subset: expected the order of all classes beside it, got "
                f"'{self.order}'. Set order to wnids, or to a file of classes."
            )
        strangers = sorted(set(self.kept) - set(self.ordered))
        if strangers:
            raise InputError(
                f"suite {self.name}: subset: expected classes of order {self.order}, got "
                f"{listed(strangers)}."
            )

    def cells(self, corruptions: Sequence[str] = (), severities: Sequence[int] = ()) -> list[Cell]:
        """Return the corrupted cells of some corruptions and severities, in the suite's order.

        Empty arguments mean all. A name that the suite does not have is a `UsageError`.
        """
        known = self.corrupted
        for name in corruptions:
            pick(name, known.corruptions, f"--corruptions (suite {self.name})")
        for severity in severities:
            pick(str(severity), [str(s) for s in known.severities], "--severities")
        return [
            Cell(corruption, severity)
            for corruption in known.corruptions
            if not corruptions or corruption in corruptions
            for severity in known.severities
            if not severities or severity in severities
        ]


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(path.stem for path in shipped("evals").glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Read a shipped suite by its name, or a suite file by its path."""
    if name.endswith(".toml") or "/" in name:
        return read_suite(Path(name))
    if name not in suite_names():
        raise UsageError(
            f"--suite: expected one of {', '.join(suite_names())}, or a .toml file, got "
            f"{shown(name)}.{did_you_mean(name, suite_names())} `recal suites` lists them."
        )
    return read_suite(shipped("evals") / f"{name}.toml")


def usual_suite(family: str, classes: int) -> Suite:
    """Return the suite that fits a network when none is named: the first of its family."""
    for suite in map(load_suite, suite_names()):
        if (suite.family, suite.classes) == (family, classes):
            return suite
    raise UsageError(
        f"no suite for networks of family {family} with {classes} classes. Give one with --suite: "
        f"{', '.join(suite_names())}."
    )


def read_suite(path: Path) -> Suite:
    """Read a suite file; an unreadable or invalid one is an `InputError`."""
    text = read_text(path)
    file = parse_toml(text, SuiteFile, str(path))
    clean, corrupted = file.clean, file.corrupted
    folders = _with_own_name(clean.folders or usual_folders(file), clean.data)
    named = _with_own_name(corrupted.folders, corrupted.data)
    ordered, kept = _classes(file.order, file, path), _classes(file.subset, file, path)
    text += "".join(
        "\n".join(names)
        for names, word in ((ordered, file.order), (kept, file.subset))
        if word.endswith(LIST_ENDS)
    )
    content = {
        **msgspec.structs.asdict(file),
        "clean": msgspec.structs.replace(clean, folders=folders),
        "corrupted": msgspec.structs.replace(corrupted, folders=named),
    }
    return Suite(
        name=path.stem,
        text=text,
        ordered=ordered,
        kept=kept,
        policy=_clean_policy(path, clean.policy),
        **content,
    )


def _clean_policy(suite: Path, name: str) -> Policy | None:
    policy = read_policy(suite.parent / name) if name else None
    if policy is not None and policy.draws:
        raise InputError(
            f"{suite}: clean: policy: expected a policy without random ops, got {shown(name)}."
        )
    return policy


def _classes(word: str, file: SuiteFile, path: Path) -> tuple[str, ...]:
    """Return the names of the classes that a word for an order or subset stands for, in order."""
    if word.endswith(LIST_ENDS):
        return read_classes(path.parent / word)
    if word == "numbers":
        return tuple(map(str, range(file.classes)))
    if word in ("", "sorted"):
        return ()
    return wnids("imagenet" if word == "wnids" else word)


def class_numbers(folders: Sequence[str], suite: Suite, where: Path) -> NDArray[np.int64]:
    """Return the class of each class folder, int64 (len(folders),); with a subset, those within it.

    It is an `InputError`, about `where`, if a name is none of the suite's classes, or if some of
    the sorted names are missing.
    """
    return class_order(suite).numbers(folders, where)


def class_order(suite: Suite) -> ClassOrder:
    """Return the order of a suite's classes; with a subset, of those within it."""
    names = suite.kept or suite.ordered or None
    others: set[str] = set()
    if names and (suite.subset or suite.order).endswith(LIST_ENDS):
        # a part of the classes is evaluated on folders of all of them
        others = {*suite.ordered, *wnids("imagenet")} - set(names)
    return ClassOrder(
        count=class_count(suite), names=names, others=frozenset(others), what=f"suite {suite.name}"
    )


def kept_logits(suite: Suite) -> NDArray[np.int64] | None:
    """Return the indices of the logits that count, in order, or None for all of them.

    ImageNet-A and -R have images of 200 classes: the prediction is the largest of these 200 logits.
    """
    if not suite.kept:
        return None
    return np.array([suite.ordered.index(name) for name in suite.kept], np.int64)


def class_count(suite: Suite) -> int:
    """Return the number of classes that a suite's labels can be of."""
    return len(suite.kept) or suite.classes


def suite_schema() -> dict[str, Any]:
    """Return the JSON schema of suite files, by which editors complete and check them."""
    return json_schema(SuiteFile)


def _one_of(word: str, known: Collection[str], where: str) -> None:
    if word not in known:
        raise ValueError(
            f"{where}: expected one of {', '.join(filter(None, known))}, got {shown(word)}."
            f"{did_you_mean(word, known)}"
        )


def _with_own_name(folders: tuple[str, ...], data: str) -> tuple[str, ...]:
    """Return the usual folders of a set, of which that of `recal data fetch` comes first."""
    own = [catalogue()[data].folder] if data else []
    return tuple(dict.fromkeys([*own, *folders]))
