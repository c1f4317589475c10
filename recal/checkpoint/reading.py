"""Reading a file of weights without running code from it."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from recal.errors import InputError
from recal.files import require_file

# where training scripts put the weights; the averaged ones come after the plain ones, because which
# of the two is wanted is the user's choice, and the plain ones are what training left
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")

# what training checkpoints carry beside tensors, none of which can run code
HARMLESS = (argparse.Namespace,)


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The content of a checkpoint file.

    Attributes:
        tensors: The tensors by name, without wrappers and common prefixes, in the file's order.
        facts: What the file says of the network: any of arch, family, classes, mean, std, size.
        notes: What was unwrapped, for people.
    """

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]
    notes: tuple[str, ...]


def read_weight_file(path: Path) -> WeightFile:
    """Read a .pth or .safetensors checkpoint.

    Raises:
        InputError: It is no checkpoint, is truncated, holds no tensors, or wants to run code.
    """
    require_file(path, "a checkpoint")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    facts = _facts(content) if isinstance(content, dict) else {}
    notes = []
    tensors, wrapper = _unwrap(content)
    if wrapper:
        notes.append(f"weights taken from '{wrapper}'")
    if not tensors:
        raise InputError(
            f"{path}: expected a dictionary of tensors, or one under {', '.join(WRAPPERS)}, "
            f"got {_describe(content)}."
        )
    tensors, prefix = _without_prefix(tensors)
    if prefix:
        notes.append(f"prefix '{prefix}' removed from every name")
    return WeightFile(tensors=tensors, facts=facts, notes=tuple(notes))


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # eight bytes of header length, then JSON
    return len(head) == 9 and head[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a whole safetensors file, got {error}.") from error


def _read_torch(path: Path) -> Any:
    _refuse_torchscript(path)
    try:
        with torch.serialization.safe_globals(list(HARMLESS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise InputError(
                f"{path}: expected a PyTorch checkpoint, got another content."
            ) from error
        raise InputError(
            f"{path}: refused, because loading it would call {wanted[1]}; nothing was run. "
            "Save the state_dict alone and use that file."
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a whole PyTorch checkpoint, got {reason}") from error


def _refuse_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(
                f"{path}: expected weights, got a TorchScript program. Save the state_dict() of the "
                "loaded module and use that file."
            )


def _facts(content: dict[Any, Any]) -> dict[str, Any]:
    kinds = {"arch": str, "family": str, "classes": int, "mean": (list, tuple),
             "std": (list, tuple), "size": int}  # fmt: skip
    return {key: content[key] for key, kind in kinds.items() if isinstance(content.get(key), kind)}


def _unwrap(content: Any) -> tuple[dict[str, torch.Tensor], str]:
    wrapper = ""
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content, wrapper = content[name], name
            break
    if not isinstance(content, dict):
        return {}, wrapper
    return {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}, wrapper


def _without_prefix(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    removed = ""
    for _ in range(4):  # prefixes nest, as in module._orig_mod.
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        removed += prefix
    return tensors, removed


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dictionary with {', '.join(str(key) for key in list(content)[:5]) or 'no keys'}"
    return f"a {type(content).__name__}"
