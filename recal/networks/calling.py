"""Calling a network on images alone, and taking the logits out of what it returns.

Networks of the user's own may need further inputs, or return a tuple, a dictionary or an object.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import nn

from recal.errors import InputError, RecalWarning, listed, reason

# names of logits among the parts of an output, the surest first
NAMES = ("logits", "out", "output")
SHOWN = 5
# section of docs/checkpoints.md that errors refer to
HELP = "docs/checkpoints.md (Networks that need more than images) has examples"


def further_inputs(module: nn.Module) -> list[str]:
    """Return the names of the inputs that a module requires beside its first one."""
    required = [
        name
        for name, given in inspect.signature(module.forward).parameters.items()
        if given.default is given.empty
        and given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD)
    ]
    return required[1:]


def call_on_images(network: nn.Module, shape: tuple[int, int, int], where: str) -> Any:
    """Run a network on two random images (2, C, H, W), and return what it returns.

    Args:
        network: The network, in eval mode, on the CPU.
        shape: Shape of an image, (C, H, W).
        where: Checkpoint and architecture, for messages.

    Raises:
        InputError: It needs further inputs, or does not run. The message shows how to wrap it.
    """
    name, needed = type(network).__name__, further_inputs(network)
    if needed:
        given = ", ".join(f"{key}=VALUE" for key in needed)
        raise InputError(
            f"{where}: expected a network that is called with images alone, got {name}.forward, "
            f"which also needs {', '.join(needed)}. Name a class as --arch that gives it, such as: "
            f"class Images({name}): forward = lambda self, x: super(Images, self).forward(x, "
            f"{given}). {HELP}."
        )
    if "forward" in vars(network):
        raise InputError(
            f"{where}: expected {name} with the forward of a class, got one assigned to the "
            f"object, which copies of the network would not have. Define a class. {HELP}."
        )
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            return network(images)
    except Exception as error:
        raise InputError(
            f"{where}: expected {name} to run on images {tuple(images.shape)} alone, got "
            f"{type(error).__name__}: {reason(error)}. Give --size or --channels, or name a class "
            f"as --arch that runs on images. {HELP}."
        ) from error


def take_logits(
    network: nn.Module, shape: tuple[int, int, int], classes: int | None, where: str
) -> None:
    """Let a network return logits alone, (N, K), in place; a warning names the part that is taken.

    Args:
        network: The network, in eval mode, on the CPU.
        shape: Shape of an image, (C, H, W).
        classes: Number of classes, K, if it is certain.
        where: Checkpoint and architecture, for messages.

    Raises:
        InputError: The network does not run on images alone, or does not tell its logits.
    """
    place = logits_place(call_on_images(network, shape, where), classes, where)
    if place is None:
        return
    take, name = place
    network.register_forward_hook(partial(_taken, take))
    warnings.warn(
        f"{where}: {type(network).__name__} returns more than a tensor; its part '{name}' is taken "
        "as the logits.",
        RecalWarning,
        stacklevel=2,
    )


def _taken(take: Callable[[Any], torch.Tensor], _module: nn.Module, _args: Any, output: Any) -> Any:
    return take(output)


def logits_place(
    output: Any, classes: int | None, where: str
) -> tuple[Callable[[Any], torch.Tensor], str] | None:
    """Return how to take the logits out of an output, and their name; None if it is a tensor.

    They are the part named `logits`, `out` or `output`, or else the only one of shape (N, K).

    Raises:
        InputError: No part, or more than one, can be the logits.
    """
    if isinstance(output, torch.Tensor):
        return None
    parts = parts_of(output)
    fitting = {
        name: take
        for name, (take, value) in parts.items()
        if isinstance(value, torch.Tensor)
        and value.ndim == 2
        and value.is_floating_point()
        and classes in (None, value.shape[1])
    }
    found = [name for name in NAMES if name in fitting][:1] or list(fitting)
    if len(found) != 1:
        shapes = [
            f"{name} {tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__}"
            for name, (_, v) in parts.items()
        ]
        raise InputError(
            f"{where}: expected logits (N, {classes or 'K'}), got {type(output).__name__} of "
            f"{listed(shapes, SHOWN) or 'nothing'}. Give --classes, or name a class as --arch that "
            f"returns the logits alone. {HELP}."
        )
    return fitting[found[0]], found[0]


def parts_of(output: Any) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """Return the parts of an output by name, and functions that take them."""
    if isinstance(output, Mapping):
        takers: dict[str, Callable[[Any], Any]] = {str(key): itemgetter(key) for key in output}
    elif isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        takers = {f"[{number}]": itemgetter(number) for number in range(len(output))}
    else:
        names = getattr(output, "_fields", None) or getattr(output, "__dict__", {})
        takers = {name: attrgetter(name) for name in names}
    return {name: (take, take(output)) for name, take in takers.items()}
