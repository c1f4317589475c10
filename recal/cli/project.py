"""The project file recal.toml: defaults for the options of every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.declared import check_keys, check_type, read_toml

if TYPE_CHECKING:
    from pathlib import Path

    import click

SHARED_TABLES = {
    "model": (
        "checkpoint",
        "arch",
        "classes",
        "family",
        "mean",
        "std",
        "size",
        "layout",
        "roles",
        "ema",
    ),
    "data": ("data", "workers"),
}
COMMAND_TABLES = ("calibrate", "eval", "export")
# to inspect or verify a file, or to draw a policy, is not to ask for the project's images
OF_DATA = (*COMMAND_TABLES, "suites")


def project_defaults(path: Path, command: click.Command) -> dict[str, Any]:
    """Return what the file says for the parameters of a command.

    Keys are named as the options are (`batch-size` or `batch_size`). The tables `[model]` and
    `[data]` hold for every command, `[calibrate]`, `[eval]` and `[export]` for that one.

    Raises:
        InputError: The file is not TOML, or has unknown tables or keys.
    """
    document = read_toml(path)
    check_keys(document, (*SHARED_TABLES, *COMMAND_TABLES), f"{path}: tables")
    known = {_key(parameter): parameter.name or "" for parameter in command.params}
    defaults: dict[str, Any] = {}
    for table, keys in SHARED_TABLES.items():
        values = _values(document, table, path)
        check_keys(values, keys, f"{path}: [{table}]")
        if table == "data" and command.name not in OF_DATA:
            continue
        defaults |= {known[key]: value for key, value in values.items() if key in known}
    if command.name in document:
        values = _values(document, command.name, path)
        check_keys(values, known, f"{path}: [{command.name}]")
        defaults |= {known[key]: value for key, value in values.items()}
    return defaults


def _key(parameter: click.Parameter) -> str:
    """Return the name of an option as users know it: its longest spelling without dashes."""
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def _values(document: dict[str, Any], table: str, path: Path) -> dict[str, Any]:
    values = document.get(table, {})
    check_type(values, dict, f"{path}: [{table}]")
    return {key.replace("-", "_"): value for key, value in values.items()}
