"""The project file recal.toml, which sets the defaults of the commands' options."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import msgspec
from msgspec import UNSET, Meta, UnsetType

from recal.schema import Record, read_toml

if TYPE_CHECKING:
    from pathlib import Path

COMMAND_TABLES = ("calibrate", "eval", "export")
# other commands inspect or verify a file, or draw a policy, without the project's images
USE_DATA = (*COMMAND_TABLES, "suites")
# a file cannot give the permission to run the code that it names
NEVER = ("trust",)

# a bound on the string would crash msgspec 0.22, which cannot hold one beside a tuple's length
Channels = str | tuple[float, float, float]
Count = Annotated[int, Meta(ge=1)]


class ModelTable(Record, frozen=True, kw_only=True):
    """Table `[model]`: the checkpoint, and options of all commands that load one."""

    checkpoint: str | UnsetType = UNSET
    arch: str | UnsetType = UNSET
    classes: Count | UnsetType = UNSET
    family: str | UnsetType = UNSET
    mean: Channels | UnsetType = UNSET
    std: Channels | UnsetType = UNSET
    size: Count | UnsetType = UNSET
    layout: str | UnsetType = UNSET
    roles: str | UnsetType = UNSET
    ema: bool | UnsetType = UNSET


class DataTable(Record, frozen=True, kw_only=True):
    """Table `[data]`: the images, and how many processes prepare them."""

    data: str | UnsetType = UNSET
    workers: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


@cache
def project_record(group: click.Group) -> type[Record]:
    """Return the record of recal.toml: `[model]`, `[data]`, and a table for each of three commands.

    The keys of a command's table are its options, so the record is made from these.

    Args:
        group: The group that has the commands.
    """
    tables: dict[str, type[Record]] = {"model": ModelTable, "data": DataTable}
    for name in COMMAND_TABLES:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        options = [
            parameter
            for parameter in command.params
            if isinstance(parameter, click.Option) and parameter.name not in NEVER
        ]
        tables[name] = _record(name, {_key(option): _type(option) for option in options})
    return _record("project", tables)


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
    """Return the defaults that the file sets for the parameters of a command.

    The tables `[model]` and `[data]` hold for every command that has these options,
    `[calibrate]`, `[eval]` and `[export]` for that command. The whole file is checked.

    Args:
        path: The project file.
        name: Name of the command.
        group: The group that has the commands.

    Raises:
        InputError: The file is not TOML, or has unknown tables, unknown keys or wrong values.
    """
    project = read_toml(path, project_record(group))
    command = group.get_command(click.Context(group), name)
    assert command is not None
    known = {_key(parameter): parameter.name or "" for parameter in command.params}
    tables = ["model", *(["data"] if name in USE_DATA else [])]
    tables += [name] if name in COMMAND_TABLES else []
    defaults: dict[str, Any] = {}
    for table in tables:
        values = getattr(project, table)
        if values is not UNSET:
            given = msgspec.to_builtins(values)
            defaults |= {known[key]: value for key, value in given.items() if key in known}
    return defaults


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
    simple = {"integer": int, "float": float, "text": str, "path": str}
    return simple.get(kind.name, str | float | tuple[str | float, ...])
