"""The project file recal.toml: defaults for the options of every command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recal.wording import check_keys, check_type, read_toml

if TYPE_CHECKING:
    from collections.abc import Collection
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
    known = {_key(parameter): parameter for parameter in command.params}
    defaults: dict[str, Any] = {}

    def take(table: str, keys: Collection[str], *, used: bool = True) -> None:
        values = document.get(table, {})
        check_type(values, dict, f"{path}: [{table}]")
        values = {key.replace("-", "_"): value for key, value in values.items()}
        check_keys(values, keys, f"{path}: [{table}]")
        for key in values.keys() & known.keys() if used else ():
            typed = _as_typed(values[key], known[key], f"{path}: [{table}] {key}")
            defaults[known[key].name or ""] = typed

    for table, keys in SHARED_TABLES.items():
        take(table, keys, used=table != "data" or command.name in OF_DATA)
    if command.name in document:
        take(command.name, known)
    return defaults


def _key(parameter: click.Parameter) -> str:
    """Return the name of an option as users know it: its longest spelling without dashes."""
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def _as_typed(value: Any, parameter: click.Parameter, where: str) -> str | bool:
    """Return a value as one would type it: click then says what is wrong with it, if anything is.

    Raises:
        InputError: It is nothing that could be typed.
    """
    if getattr(parameter, "is_flag", False):
        check_type(value, bool, where)
        return bool(value)
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        check_type(part, (str, float), where)
    return ",".join(map(str, parts))
