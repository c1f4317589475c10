"""The project file recal.toml, which sets the defaults of the commands' options."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
from msgspec import UNSET, Meta, UnsetType

from recal.cli.options import MODEL_FIELDS
from recal.cli.values import Channels
from recal.schema import Record, read_toml

COMMAND_TABLES = ("calibrate", "eval", "export")
# other commands inspect or verify a file, or draw a policy, without the project's images
USE_DATA = (*COMMAND_TABLES, "suites")
# a file cannot give the permission to run the code that it names
NEVER = ("trust",)

MODEL_KEYS = tuple(name.replace("_", "-") for name in MODEL_FIELDS)
# tables that hold for all commands, and their keys
SHARED_TABLES = {
    "model": ("checkpoint", *MODEL_KEYS, "layout", "roles", "ema", "prefix", "bn-act"),
    "data": ("data", "workers"),
}


@cache
def project_record(group: click.Group) -> type[Record]:
    """Return the record of recal.toml: `[model]`, `[data]`, and a table for each of three commands.

    The keys of a command's table are its options, so the record is made from these.
    """
    tables: dict[str, dict[str, Any]] = {}
    for name in COMMAND_TABLES:
        options = [
            parameter
            for parameter in _parameters(group, name)
            if isinstance(parameter, click.Option) and parameter.name not in NEVER
        ]
        tables[name] = {_key(option): _type(option) for option in options}
    every = tables["calibrate"] | tables["eval"]
    shared = {name: {key: every[key] for key in keys} for name, keys in SHARED_TABLES.items()}
    records = {name: _record(name, fields) for name, fields in (shared | tables).items()}
    return _record("project", records)


def _record(name: str, fields: dict[str, Any]) -> type[Record]:
    """Return a record of optional fields; dashes of the keys are underscores in its attributes."""
    record = msgspec.defstruct(
        name.capitalize(),
        [(key.replace("-", "_"), kind | UnsetType, UNSET) for key, kind in fields.items()],
        bases=(Record,),
        rename={key.replace("-", "_"): key for key in fields},
        frozen=True,
        kw_only=True,
    )
    assert issubclass(record, Record)
    return record


def project_defaults(path: Path, name: str, group: click.Group) -> dict[str, Any]:
    """Return the defaults that the file sets for the parameters of the command with this name.

    The tables `[model]` and `[data]` hold for every command that has these options,
    `[calibrate]`, `[eval]` and `[export]` for that command. The whole file is checked.

    Raises:
        InputError: The file is not TOML, or has unknown tables, unknown keys or wrong values.
    """
    project = read_toml(path, project_record(group))
    known = {_key(parameter): parameter.name or "" for parameter in _parameters(group, name)}
    tables = ["model", *(["data"] if name in USE_DATA else [])]
    tables += [name] if name in COMMAND_TABLES else []
    defaults: dict[str, Any] = {}
    for table in tables:
        values = getattr(project, table)
        if values is not UNSET:
            given = msgspec.to_builtins(values)
            defaults |= {known[key]: value for key, value in given.items() if key in known}
    return defaults


def _parameters(group: click.Group, name: str) -> list[click.Parameter]:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command.params


def _key(parameter: click.Parameter) -> str:
    """Return an option's name as users know it: its longest spelling, without dashes in front."""
    return max(parameter.opts, key=len).lstrip("-")


def _type(option: click.Option) -> Any:
    """Return the type that an option has in the project file."""
    kind = option.type
    if option.is_flag:
        return bool
    if isinstance(kind, click.Choice):
        return Literal[tuple(kind.choices)]
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds: dict[str, Any] = {
            "gt" if kind.min_open else "ge": kind.min,
            "lt" if kind.max_open else "le": kind.max,
        }
        number = int if isinstance(kind, click.IntRange) else float
        return Annotated[number, Meta(**bounds)]
    if isinstance(kind, Channels):
        # a bound on the string would crash msgspec 0.22, which cannot hold one beside a length
        return str | float | tuple[float, float, float]
    simple = {"integer": int, "float": float, "text": str, "path": str}
    return simple.get(kind.name, str | float | tuple[str | float, ...])
