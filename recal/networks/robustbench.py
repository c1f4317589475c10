"""Networks of RobustBench's model zoo. RobustBench is an optional extra.

Release 1.1.1 cannot be imported as installed: it needs `pkg_resources`, which setuptools 81
removed, and `autoattack`, which its dependency installs as `pyautoattack`. Both names are provided
while it is imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recal.errors import UsageError
from recal.networks.spec import ModelOverrides
from recal.networks.wrappers import strip_front
from recal.wording import pick

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


INSTALL = (
    "Install it: pip install --no-deps robustbench, then pip install gdown geotorch pandas "
    "pyautoattack torchdiffeq (or pip install 'recal-bn[robustbench]' in an environment of its "
    "own, because it pins an old timm)."
)


def create(name: str) -> nn.Module:
    """Build a network of RobustBench's model zoo with fresh weights; nothing is downloaded.

    Args:
        name: `DATASET/THREAT/NAME`, such as `cifar10/corruptions/Hendrycks2020AugMix_WRN`.

    Raises:
        UsageError: There is no network of this name, or RobustBench is not installed.
    """
    from torch import nn

    parts = name.split("/")
    if len(parts) != 3:
        raise UsageError(f"--arch robustbench: expected DATASET/THREAT/NAME, got '{name}'.")
    zoo = _zoo()
    for level, part in zip(("dataset", "threat model", "network"), parts, strict=True):
        zoo = zoo[pick(part, zoo, f"--arch robustbench: {level}")]
    with _borrowed_names():
        network = zoo["model"]()
    if not isinstance(network, nn.Module):
        raise UsageError(f"--arch robustbench: '{name}' is several networks, not one.")
    return network


@functools.lru_cache
def preprocessing(name: str) -> ModelOverrides:
    """Return the preprocessing of a network of the zoo.

    The networks take images in [0, 1] and normalise them themselves. If a network has mean and
    standard deviation as buffers, recal applies them in its place.
    """
    dataset = name.partition("/")[0]
    front = strip_front(create(name).state_dict())
    return ModelOverrides(
        family="imagenet" if dataset == "imagenet" else "cifar",
        mean=front.mean or (0.0, 0.0, 0.0),
        std=front.std or (1.0, 1.0, 1.0),
    )


def load_cifar10c(
    folder: Path, corruption: str, severity: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read CIFAR-10-C with RobustBench's own reader.

    Args:
        folder: Holds `CIFAR-10-C/<corruption>.npy` and `labels.npy`.
        corruption: Name of the corruption.
        severity: 1 to 5.
        count: Number of images, the first of the severity.

    Returns:
        Images float32 (N, 3, 32, 32) in [0, 1], and labels (N,).
    """
    reader = _module("robustbench.data").load_cifar10c
    images, labels = reader(count, severity, str(folder), False, [corruption])
    return images, labels


def clean_accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return top-1 accuracy as RobustBench computes it, a fraction in [0, 1]."""
    return float(_module("robustbench.utils").clean_accuracy(network, images, labels))


def _zoo() -> Any:
    dicts = _module("robustbench.model_zoo").model_dicts
    return {
        dataset.value: {threat.value: dict(models) for threat, models in threats.items()}
        for dataset, threats in dicts.items()
    }


def _module(name: str) -> types.ModuleType:
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
        resources.resource_filename = _resource_filename  # type: ignore[attr-defined]
        lent["pkg_resources"] = resources
    lent = {name: module for name, module in lent.items() if name not in sys.modules}
    sys.modules.update(lent)
    try:
        yield
    finally:
        for name in lent:
            sys.modules.pop(name, None)


def _resource_filename(package: str, resource: str) -> str:
    return str(Path(sys.modules[package].__file__ or "").parent / resource)
