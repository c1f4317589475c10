"""Networks from code outside of recal: the user's own (`python:`) and RobustBench's zoo.

The code is run, so only names that the user gave come here. RobustBench is an optional extra. Its
release 1.1.1 cannot be imported as installed: it needs `pkg_resources`, which setuptools 81
removed, and `autoattack`, which its dependency installs as `pyautoattack`. Both names are provided
while it is imported.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from recal.errors import UsageError, did_you_mean, pick
from recal.networks.neighbours import importing_from, search_orders

# names of the parameter for the number of classes
CLASSES = ("num_classes", "classes", "n_classes", "nb_classes")
CHANNELS = ("in_chans", "in_channels", "input_channels")


def user_network(target: str, classes: int, channels: int = 3) -> nn.Module:
    """Call the user's callable, named as after `python:`, and return its network.

    The number of classes is passed on if the callable has a parameter of `CLASSES`, and that of the
    images' channels if it has one of `CHANNELS`.
    """
    where = f"--arch python:{target}"
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{where}: expected python:FILE.py:CALLABLE or python:PACKAGE.MODULE:CALLABLE."
        )
    try:
        network = _call(place, name, classes, channels, where)
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


def _call(place: str, name: str, classes: int, channels: int, where: str) -> Any:
    """Import a file or module, with its neighbours, and return what its callable returns."""
    file = Path(place).expanduser().resolve() if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"{where}: expected a file, got nothing at {file}.")
    orders = search_orders(file)
    for folders in orders:
        try:
            with importing_from(folders):
                module = _from_file(file) if file else importlib.import_module(place)
                maker = _attribute(module, name, where)
                return maker(**_arguments(maker, classes, channels))
        except ImportError:
            if folders == orders[-1]:
                raise
    return None


def _from_file(path: Path) -> types.ModuleType:
    # the name depends on the path, so that two files named model.py are two modules
    name = f"_recal_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _attribute(module: types.ModuleType, name: str, where: str) -> Callable[..., Any]:
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


def _arguments(maker: Callable[..., Any], classes: int, channels: int) -> dict[str, int]:
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):
        return {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name in CLASSES if name in parameters] or CLASSES[:1] * takes_any
    of_images = [name for name in CHANNELS if name in parameters]
    return dict.fromkeys(named[:1], classes) | dict.fromkeys(of_images[:1], channels)


INSTALL = (
    "Install it: pip install --no-deps robustbench, then pip install gdown geotorch pandas "
    "pyautoattack torchdiffeq (or pip install 'recal-bn[robustbench]' in an environment of its "
    "own, because it pins an old timm)."
)


def zoo_network(name: str) -> nn.Module:
    """Build a network of RobustBench's model zoo with fresh weights; nothing is downloaded.

    Its name is `DATASET/THREAT/NAME`, such as `cifar10/corruptions/Hendrycks2020AugMix_WRN`.
    """
    parts = name.split("/")
    if len(parts) != 3:
        raise UsageError(f"--arch robustbench: expected DATASET/THREAT/NAME, got '{name}'.")
    zoo: Any = {
        dataset.value: {threat.value: dict(models) for threat, models in threats.items()}
        for dataset, threats in robustbench_module("robustbench.model_zoo").model_dicts.items()
    }
    for level, part in zip(("dataset", "threat model", "network"), parts, strict=True):
        zoo = zoo[pick(part, zoo, f"--arch robustbench: {level}")]
    with _borrowed_names():
        network = zoo["model"]()
    if not isinstance(network, nn.Module):
        raise UsageError(f"--arch robustbench: '{name}' is several networks, not one.")
    return network


def robustbench_module(name: str) -> types.ModuleType:
    """Import a module of RobustBench, or raise a `UsageError` that says how to install it."""
    with _borrowed_names(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports timm by deprecated names
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = "" if error.name == "robustbench" else f", which needs {error.name},"
            raise UsageError(
                f"--arch robustbench: robustbench{missing} is not installed. {INSTALL}"
            ) from error
        except ImportError as error:
            raise UsageError(f"--arch robustbench: cannot be imported ({error}).") from error


@contextmanager
def _borrowed_names() -> Iterator[None]:
    """Provide the module names that RobustBench imports but that no package installs."""
    lent: dict[str, types.ModuleType] = {}
    if importlib.util.find_spec("autoattack") is None:
        for name in ("autoattack", "autoattack.state"):
            try:
                lent[name] = importlib.import_module(f"py{name}")
            except ModuleNotFoundError:
                break
    if importlib.util.find_spec("pkg_resources") is None:
        resources = types.ModuleType("pkg_resources")
        resources.resource_filename = lambda package, resource: str(  # type: ignore[attr-defined]
            Path(sys.modules[package].__file__ or "").parent / resource
        )
        lent["pkg_resources"] = resources
    lent = {name: module for name, module in lent.items() if name not in sys.modules}
    sys.modules.update(lent)
    try:
        yield
    finally:
        for name in lent:
            sys.modules.pop(name, None)
