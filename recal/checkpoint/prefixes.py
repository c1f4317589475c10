"""Prefixes in the names of a file's tensors, and what lies outside of them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from recal.errors import UsageError, did_you_mean, listed
from recal.networks.wrappers import PREFIXES, Front, strip_front

Tensors = Mapping[str, torch.Tensor]

# parts of names that wrappers add around a part of a network
SHOWN = 8
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(tensors: Tensors) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Remove the parts of names that compiled and otherwise wrapped modules inside add.

    Returns:
        The tensors, and the parts that were removed. Prefixes of every name are left.
    """
    prefix = strip_front(tensors).prefix
    found: dict[str, None] = {}
    plain = {}
    for name, tensor in tensors.items():
        start = prefix if name.startswith(prefix) else ""
        parts = name.removeprefix(start).split(".")
        found |= dict.fromkeys(part for part in parts if part in WRAPPERS)
        plain[start + ".".join(part for part in parts if part not in WRAPPERS)] = tensor
    return (plain, tuple(found)) if len(plain) == len(tensors) else (dict(tensors), ())


def take_below(tensors: Tensors, prefix: str) -> Front:
    """Return the tensors below a prefix, together with the normalisation in front of them."""
    front = strip_front(tensors)
    for outer in _outer(prefix):
        inside = {k.removeprefix(outer): t for k, t in tensors.items() if k.startswith(outer)}
        front = strip_front(inside)
        if f"{outer}{front.prefix}".startswith(prefix):
            front = replace(
                front,
                prefix=outer + front.prefix,
                normaliser={outer + key: tensor for key, tensor in front.normaliser.items()},
            )
            break
    whole = strip_front(tensors)
    if front.mean is None and _stands_before(whole, tensors, prefix):
        return replace(front, normaliser=whole.normaliser, mean=whole.mean, std=whole.std)
    return front


def _outer(prefix: str) -> Iterator[str]:
    """Yield the prefixes of a prefix, from none to itself."""
    parts = prefix.split(".")
    for count in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:count])


def _stands_before(whole: Front, tensors: Tensors, prefix: str) -> bool:
    """Return whether a normalisation belongs to the network below a prefix.

    It is a module beside the network that holds nothing else, or it is in a module around it.
    """
    names = list(whole.normaliser)
    if not names:
        return False
    module = names[0].rpartition(".")[0]
    alone = all(name in names for name in tensors if name.startswith(f"{module}."))
    around = f"{module}." if module else ""
    beside = module.rpartition(".")[0]
    return prefix.startswith(around) or (alone and prefix.startswith(f"{beside}." * bool(beside)))


def whole_prefix(tensors: Tensors, given: str, where: str) -> str:
    """Return the prefix that the user means, with the dot at its end and those in front of it.

    Raises:
        UsageError: No tensor has this prefix.
    """
    dotted = f"{given.removesuffix('.')}." if given else ""
    first = strip_front(tensors).prefix
    for prefix in (dotted, first + dotted, *(f"{outer}{dotted}" for outer in PREFIXES)):
        if any(name.startswith(prefix) for name in tensors):
            return prefix
    known = {
        next((part for part in name.split(".") if f"{part}." not in PREFIXES), "")
        for name in tensors
        if name.endswith((".running_mean", ".weight"))
    }
    raise UsageError(
        f"{where}: --prefix: expected the first part of the names of tensors, out of "
        f"{listed(sorted(known), SHOWN)}, got '{given}'.{did_you_mean(given, known)}"
    )


def outside(tensors: Tensors, front: Front) -> tuple[str, ...]:
    """Return the names of the tensors that are neither below a prefix nor in front of it."""
    return tuple(
        name
        for name in tensors
        if not name.startswith(front.prefix) and name not in front.normaliser
    )
