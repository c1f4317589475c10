"""Finding the module that cannot be exported."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


@torch.inference_mode()
def find_culprit(network: nn.Module, example: torch.Tensor, opset: int) -> str:
    """Return the path and class of the innermost module whose own export fails.

    The exporter names the operator but not where it stands, so every module is exported alone, on
    the input that it gets inside the network, children before parents.
    """
    inputs: dict[str, tuple[Any, ...]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: inputs.setdefault(name, given))
        for name, module in network.named_modules()
    ]
    try:
        network(example)
    except Exception:  # noqa: BLE001  (whatever a user's module raises, the search goes on)
        return type(network).__name__
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(network.named_modules())
    for name in sorted(inputs, key=lambda name: -name.count(".") - bool(name)):
        if not _exports(modules[name], inputs[name], opset):
            return f"{name or 'the network'} ({type(modules[name]).__name__})"
    return type(network).__name__


def _exports(module: nn.Module, inputs: tuple[Any, ...], opset: int) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                inputs,
                io.BytesIO(),  # type: ignore[arg-type]  # the tracing exporter writes to files too
                dynamo=False,
                opset_version=opset,
            )
    except Exception:  # noqa: BLE001  (see above)
        return False
    return True
