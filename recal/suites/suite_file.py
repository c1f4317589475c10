"""Finding suites, and reading them: a closed vocabulary, every value of its type and range."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.corruptions.names import CORRUPTIONS, EXTRA_CORRUPTIONS
from recal.data.policies import family_names, load_family
from recal.data.published import PUBLISHED
from recal.declared import check_keys, check_type, did_you_mean, read_toml
from recal.errors import InputError, UsageError
from recal.resources import shipped
from recal.suites.class_order import ORDERS, SUBSETS
from recal.suites.suite import CleanSet, Reference, Suite

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

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
