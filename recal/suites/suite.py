"""Finding suites, and reading them: a closed vocabulary, every value of its type and range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.corruptions.parameters import CORRUPTIONS, EXTRA_CORRUPTIONS
from recal.datasets.catalogue import PUBLISHED
from recal.errors import InputError, UsageError
from recal.policies.families import family_names, load_family
from recal.resources import shipped
from recal.suites.classes import ORDERS, SUBSETS
from recal.wording import check_keys, check_type, did_you_mean, pick, read_toml

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


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


LAYOUTS = ("arrays", "folders")
PARAMETERS = ("cifar", "tiny", "imagenet")


def suite_names() -> list[str]:
    """Return the names of the shipped suites."""
    return sorted(path.stem for path in shipped("evals").glob("*.toml"))


def load_suite(name: str) -> Suite:
    """Read a shipped suite, or a file of one's own.

    Args:
        name: Its name, or the path of a .toml file.

    Raises:
        UsageError: There is none of this name.
        InputError: The file cannot be read or says what it must not.
    """
    if name.endswith(".toml") or "/" in name:
        return read_suite(Path(name))
    if name not in suite_names():
        raise UsageError(
            f"--suite: expected one of {', '.join(suite_names())}, or a .toml file, got '{name}'."
            f"{did_you_mean(name, suite_names())} `recal suites` says what each is."
        )
    return read_suite(shipped("evals") / f"{name}.toml")


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
        InputError: It cannot be read, has unknown or missing keys, or values that cannot be.
    """
    where = str(path)
    table = _checked(read_toml(path), SUITE_KEYS, where, ("title", "family", "classes"))
    _one_of(table["family"], family_names(), f"{where}: family")
    _one_of(table["order"], ORDERS, f"{where}: order")
    _one_of(table["subset"], ("", *SUBSETS), f"{where}: subset")
    clean = _checked(table["clean"], CLEAN_KEYS, f"{where}: [clean]")
    corrupted = _read_corrupted(table["corrupted"], f"{where}: [corrupted]")
    for data, place in ((clean["data"], "[clean]"), (corrupted["data"], "[corrupted]")):
        _one_of(data, ("", *PUBLISHED), f"{where}: {place} data")
    if len(clean["arrays"]) not in (0, 2):
        raise InputError(
            f"{where}: [clean] arrays: expected the files of images and of labels, got "
            f"{len(clean['arrays'])} names."
        )
    folders = clean["folders"] or load_family(table["family"]).folders.get(table["classes"], ())
    return Suite(
        name=path.stem,
        **{key: table[key] for key in SUITE_KEYS if key not in TABLES},
        clean=CleanSet(
            data=clean["data"], folders=_with_set(folders, clean["data"]),
            arrays=tuple(clean["arrays"]), count=clean["images"],
        ),
        corruptions=tuple(corrupted["corruptions"]),
        severities=tuple(corrupted["severities"]),
        parameters=corrupted["parameters"],
        data=corrupted["data"],
        layout=corrupted["layout"],
        folders=_with_set(corrupted["folders"], corrupted["data"]),
        rows=corrupted["rows"],
        size=corrupted["size"],
        reference=_read_reference(table["reference"], corrupted, f"{where}: [reference]"),
        text=path.read_text(encoding="utf-8"),
    )  # fmt: skip


def _read_corrupted(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    required = ("corruptions", "severities") if given else ()
    table = _checked(given, CORRUPTED_KEYS, where, required)
    _one_of(table["layout"], LAYOUTS, f"{where} layout")
    _one_of(table["parameters"], ("", *PARAMETERS), f"{where} parameters")
    names, severities = table["corruptions"], table["severities"]
    for name in names:
        if not name or set(name) & set("/\\.:\0"):
            raise InputError(f"{where} corruptions: expected plain names, got '{name}'.")
        if table["parameters"]:
            known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
            _one_of(name, known, f"{where} corruptions (with parameters)")
    if given and (not names or len(set(names)) < len(names)):
        raise InputError(f"{where} corruptions: expected each name once, got {names}.")
    if given and (not severities or sorted(set(severities)) != severities or severities[0] < 1):
        raise InputError(
            f"{where} severities: expected rising numbers from 1 on, got {severities}."
        )
    if given and not (table["parameters"] or table["folders"] or table["data"]):
        raise InputError(
            f"{where}: expected `folders` with the published images, `data`, or `parameters` to "
            "corrupt clean ones by, got none of them."
        )
    return table


def _read_reference(
    given: Mapping[str, Any], corrupted: Mapping[str, Any], where: str
) -> Reference | None:
    if not given:
        return None
    table = _checked(given, REFERENCE_KEYS, where, ("source", "errors"))
    names = corrupted["corruptions"]
    check_keys(table["errors"], names, f"{where} errors", names)
    clean = given.get("clean_error")
    for name, error in {**table["errors"], **({} if clean is None else {"clean": clean})}.items():
        check_type(error, float, f"{where} {name}")
        if not 0 < error <= 1:
            raise InputError(f"{where} {name}: expected a fraction above 0, got {error}.")
    return Reference(source=table["source"], clean_error=clean, errors=table["errors"])


def _checked(
    table: Mapping[str, Any], keys: Mapping[str, Any], where: str, required: Collection[str] = ()
) -> dict[str, Any]:
    """Return a table with its defaults filled in, each value of its default's type.

    Lists are of texts, that of severities of numbers.
    """
    check_keys(table, keys, where, required)
    for key, value in table.items():
        check_type(value, type(keys[key]), f"{where} {key}")
        for item in value if isinstance(value, list) else ():
            check_type(item, int if key == "severities" else str, f"{where} {key}")
        if isinstance(value, int) and value < 0:
            raise InputError(f"{where} {key}: expected no negative number, got {value}.")
    return {**keys, **table}


def _one_of(word: str, known: Collection[str], where: str) -> None:
    if word not in known:
        raise InputError(
            f"{where}: expected one of {', '.join(filter(None, known))}, got '{word}'."
            f"{did_you_mean(word, known)}"
        )


def _with_set(folders: Collection[str], data: str) -> tuple[str, ...]:
    """Return the usual folders; a published set's own name comes first."""
    own = [PUBLISHED[data].folder] if data else []
    return tuple(dict.fromkeys([*own, *folders]))


# the keys of each table and their defaults, whose types the values must have
TABLES = ("clean", "corrupted", "reference")
SUITE_KEYS: dict[str, Any] = {
    "title": "", "source": "", "family": "", "classes": 0, "order": "sorted", "subset": "",
    "first": 0, "names": "", "clean": {}, "corrupted": {}, "reference": {},
}  # fmt: skip
CLEAN_KEYS: dict[str, Any] = {"data": "", "folders": [], "arrays": [], "images": 0}
CORRUPTED_KEYS: dict[str, Any] = {
    "data": "", "layout": "arrays", "folders": [], "rows": 0, "size": 0, "parameters": "",
    "severities": [], "corruptions": [],
}  # fmt: skip
REFERENCE_KEYS: dict[str, Any] = {"source": "", "clean_error": 0.0, "errors": {}}
