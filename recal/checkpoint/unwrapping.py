"""Taking a checkpoint's weights out of what training scripts put around them."""

from __future__ import annotations

from typing import Any

import torch

from recal.checkpoint.vetting import Record
from recal.errors import InputError, UsageError

# where training scripts put the weights, and where their moving average
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "params")
AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema")
# counters of weight averaging, losses and metrics, which are no part of the network
STRAY = ("n_averaged",)
STRAY_PARTS = ("criterion.", "loss.", "loss_fn.", "metrics.", "train_metrics.", "val_metrics.")

FACTS: dict[str, tuple[type, ...]] = {
    "arch": (str,), "family": (str,), "classes": (int,), "mean": (list, tuple),
    "std": (list, tuple), "size": (int,),
}  # fmt: skip
LARGEST = {"classes": 10**6, "size": 4096}
# how training scripts name the same among their arguments
ARGUMENTS = {"arch": ("arch", "model"), "classes": ("num_classes",), "size": ("img_size",),
             "mean": ("mean",), "std": ("std",)}  # fmt: skip
ARGUMENT_TABLES = ("args", "hparams", "hyper_parameters", "config")


def unwrap(content: Any, *, ema: bool, where: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Find the weights in what a file holds.

    Returns:
        The tensors by name, and notes on what was taken and left.

    Raises:
        InputError: There are none.
        UsageError: The moving average is asked for and absent.
    """
    tables = _tables(content)
    plain = [name for name in WRAPPERS if name in tables]
    averages = [name for name in AVERAGES if name in tables]
    if ema and not averages:
        raise UsageError(
            f"{where}: expected averaged weights under {', '.join(AVERAGES)}, got none. Leave out "
            "--ema."
        )
    own = _tensors(content)
    if ema or (averages and not plain and not own):
        taken = averages[0]
        notes = [f"averaged weights (EMA) taken from '{taken}'"]
    elif plain:
        taken = plain[0]
        notes = [f"weights taken from '{taken}'"]
    elif own:
        return own, []
    elif len(tables) == 1:
        taken = next(iter(tables))
        notes = [f"weights taken from '{taken}'"]
    else:
        raise InputError(
            f"{where}: expected a dictionary of tensors, or one under {', '.join(WRAPPERS)}, "
            f"got {_describe(content)}."
        )
    if averages and taken not in averages:
        notes.append(f"averaged weights under '{averages[0]}' left; take them with --ema")
    others = [name for name in plain if name != taken and taken not in averages]
    notes += [f"weights under '{name}' left" for name in others]
    return tables[taken], notes


def _tables(content: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Return the dictionaries that hold weights, one or two levels down, by name."""
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        inner = value
        if isinstance(value, dict) and not _tensors(value):
            # such as {"ema": {"state_dict": ...}}
            nested = (
                value[key] for key in (*WRAPPERS, *AVERAGES, "shadow", "module") if key in value
            )
            inner = next(nested, None)
        tensors = _tensors(inner)
        named = name in (*WRAPPERS, *AVERAGES) and tensors
        if isinstance(name, str) and (named or any(k.endswith("running_mean") for k in tensors)):
            found[name] = tensors
    return found


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        return {}
    return {
        str(key): value.detach()
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
        and key not in STRAY
        and not str(key).startswith(STRAY_PARTS)
    }


def find_facts(content: Any) -> dict[str, Any]:
    """Return what a file says of its network, as far as `FACTS` knows it."""
    if not isinstance(content, dict):
        return {}
    facts: dict[str, Any] = {}
    for name in ARGUMENT_TABLES:
        table = content.get(name)
        arguments = table.state if isinstance(table, Record) else table
        if not isinstance(arguments, dict):
            continue
        for fact, names in ARGUMENTS.items():
            found = [arguments[key] for key in names if _is_fact(fact, arguments.get(key))]
            if found:
                facts[fact] = found[0]
    return facts | {key: content[key] for key in FACTS if _is_fact(key, content.get(key))}


def _is_fact(name: str, value: Any) -> bool:
    if not isinstance(value, FACTS[name]) or isinstance(value, bool):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) == 3 and all(isinstance(v, int | float) and abs(v) < 1e6 for v in value)
    return (
        len(value) < 200
        if isinstance(value, str)
        else isinstance(value, int) and 0 < value <= LARGEST[name]
    )


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(str(key)[:40] for key in list(content)[:5])
        return f"a dictionary with {names or 'no keys'}"
    return f"a {type(content).__name__}"
