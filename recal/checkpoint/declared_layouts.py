"""Layouts that users describe in a TOML file, and layouts and roles as options give them.

A file of one's own:

    name = "my-fork"
    roles = "main = clean, aux0 = attacked"
    affine = "own"                                # or "shared": weight and bias at {layer}

    [[branch]]                                    # in order: main, aux0 ...
    key = "{layer}.norm_clean.{leaf}"

    [[branch]]
    key = "{layer}.norm_attacked.{leaf}"

Branches that are numbered need one entry, `key = "{layer}.norms.{index}.{leaf}"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.checkpoint.layouts import BY_NAME, Layout, Place
from recal.declared import check_keys, check_type, pick, read_toml
from recal.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def choose_layout(name: str) -> Layout:
    """Return a layout by name, or the one that a TOML file describes.

    Raises:
        UsageError: There is none of this name.
        InputError: The file describes none.
    """
    if name.endswith(".toml"):
        return read_layout(Path(name))
    return BY_NAME[pick(name, BY_NAME, "--layout (or a .toml file)")]


def read_layout(path: Path) -> Layout:
    """Read a layout of one's own.

    Raises:
        InputError: The file is not TOML, or its keys are not those of a layout.
    """
    table = read_toml(path)
    check_keys(table, ("name", "roles", "affine", "branch"), str(path), ("branch",))
    for key in ("name", "roles", "affine"):
        check_type(table.get(key, ""), str, f"{path}: {key}")
    affine = table.get("affine", "own")
    if affine not in ("own", "shared"):
        raise InputError(f"{path}: affine: expected own or shared, got '{affine}'.")
    check_type(table["branch"], list, f"{path}: branch")
    places = [_place(entry, f"{path}: branch {i}") for i, entry in enumerate(table["branch"])]
    numbered = [place for place in places if "{index}" in place.key]
    if len(places) < 2 and not numbered:
        raise InputError(f"{path}: branch: expected two at least, or one with {{index}}, got one.")
    # the more specific of two patterns has to be tried first
    ordered = sorted(
        (Place(place.key, first) for first, place in enumerate(places)),
        key=lambda place: -len(place.key),
    )
    return Layout(
        name=table.get("name", path.stem),
        writer=str(path),
        source=str(path),
        roles=table.get("roles", "by position"),
        places=tuple(ordered),
        affine="shared" if affine == "shared" else "own",
        automatic=False,
    )


def _place(entry: Any, where: str) -> Place:
    check_type(entry, dict, where)
    check_keys(entry, ("key",), where, ("key",))
    key = entry["key"]
    check_type(key, str, f"{where}: key")
    if not key.startswith("{layer}") or not key.endswith("{leaf}") or key.count("{") > 3:
        raise InputError(
            f"{where}: key: expected a pattern such as {{layer}}.norm_clean.{{leaf}}, got '{key}'."
        )
    return Place(key)


def parse_roles(text: str | Mapping[str, Any]) -> dict[str, int]:
    """Read `main=1,aux0=0`.

    Raises:
        UsageError: It is not of this form.
    """
    pairs = (
        [tuple(part.partition("=")[::2]) for part in text.split(",")]
        if isinstance(text, str)
        else list(text.items())
    )
    try:
        return {str(name).strip(): int(position) for name, position in pairs}
    except ValueError as error:
        raise UsageError(f"--roles: expected main=1,aux0=0, got '{text}'.") from error
