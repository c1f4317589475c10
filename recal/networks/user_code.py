"""Networks from the user's own code: `python:FILE.py:CALLABLE`, `python:PACKAGE.MODULE:CALLABLE`.

The code is run, so only names that the user gave come here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from recal.errors import UsageError
from recal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


# names of the parameter for the number of classes
CLASSES = ("num_classes", "classes", "n_classes", "nb_classes")


def create(target: str, classes: int) -> nn.Module:
    """Call the user's callable and return its network.

    Args:
        target: The part of the name after `python:`.
        classes: Number of classes, passed on if the callable has a parameter named num_classes,
            classes, n_classes or nb_classes.

    Raises:
        UsageError: There is no such file, module or callable; or it fails or returns no network.
    """
    where = f"--arch python:{target}"
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{where}: expected python:FILE.py:CALLABLE or python:PACKAGE.MODULE:CALLABLE."
        )
    try:
        module = _from_file(Path(place), where) if place.endswith(".py") else _import(place)
        maker = _attribute(module, name, where)
        network = maker(**_arguments(maker, classes))
    except UsageError:
        raise
    except Exception as error:  # the user's code can raise any error
        raise UsageError(
            f"{where}: its code raised {type(error).__name__}: {error}. Try it alone, or see the "
            "traceback with recal --debug."
        ) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"{where}: expected a torch.nn.Module, got a {type(network).__name__}.")
    return network


def _from_file(path: Path, where: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"{where}: expected a file, got nothing at {path}.")
    # the name depends on the path, so that two files named model.py are two modules
    name = f"_recal_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # so that the file can import its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(Path.cwd()))


def _attribute(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")]
            raise UsageError(
                f"{where}: '{getattr(found, '__name__', found)}' has no '{part}'."
                f"{did_you_mean(part, public)}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{where}: expected a callable, got a {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def _arguments(maker: Callable[..., Any], classes: int) -> dict[str, int]:
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name in CLASSES if name in parameters] or CLASSES[:1] * takes_any
    return dict.fromkeys(named[:1], classes)
