"""Reading a file of weights without running code from it."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open

from recal.checkpoint.folders import hub_facts, locate, merge, renamed
from recal.checkpoint.inert import RECORDS, plain
from recal.checkpoint.safety import vet_file
from recal.data.normalise import ChannelOrder
from recal.errors import InputError, UsageError, listed, reason
from recal.networks.spec import ModelOverrides
from recal.networks.wrappers import strip_front
from recal.policies.preparation import CropMode, Interpolation
from recal.schema import convert

# keys under which training scripts store the weights and their moving average
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "model_state", "params")
AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "params_ema")
# counters of weight averaging, losses and metrics, which are not part of the network
STRAY = ("n_averaged",)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
STRAY_PARTS = ("criterion.", "loss.", "loss_fn.", "metrics.", "train_metrics.", "val_metrics.")

FACTS: dict[str, tuple[type, ...]] = {
    "arch": (str,), "family": (str,), "classes": (int,), "bn_act": (bool,), "mean": (list, tuple),
    "std": (list, tuple), "size": (int,), "channels": (int,), "crop_share": (float, int),
    "interpolation": (str,), "crop_mode": (str,), "channel_order": (str,),
}  # fmt: skip
WORDS = {
    "interpolation": get_args(Interpolation), "crop_mode": get_args(CropMode),
    "channel_order": get_args(ChannelOrder),
}  # fmt: skip
LARGEST = {"classes": 10**6, "size": 4096, "channels": 1024}
# names of the same facts among the arguments of training scripts
ARGUMENTS = {"arch": ("arch", "model"), "classes": ("num_classes",), "size": ("img_size",),
             "mean": ("mean",), "std": ("std",), "crop_share": ("crop_pct",),
             "interpolation": ("interpolation",), "crop_mode": ("crop_mode",)}  # fmt: skip
ARGUMENT_TABLES = ("args", "hparams", "hyper_parameters", "config")


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """The weights in the content of a file.

    Attributes:
        tensors: The tensors by name.
        notes: Notes for people on what was used and left out.
        statistics_of: Name of the other weights in the file that the statistics belong to, if
            these weights have none of their own.
    """

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    statistics_of: str | None = None


def _unwrap(content: Any, *, ema: bool, where: str) -> Unwrapped:
    """Take the weights out of the content of a file."""
    tables = _tables(content)
    plain = [name for name in WRAPPERS if name in tables]
    tables |= _averaged_lists(content, tables[plain[0]] if plain else {})
    averages = [name for name in AVERAGES if name in tables]
    if ema and not averages:
        raise UsageError(
            f"{where}: expected averaged weights under {', '.join(AVERAGES)}, got none. Leave out "
            "--ema."
        )
    own = _tensors(content)
    if own and not plain and not ema:
        return Unwrapped(tensors=own, notes=_strays(content))
    named = averages if ema else plain or averages
    if not named and len(tables) != 1:
        raise InputError(
            f"{where}: expected a dictionary of tensors, or one under {', '.join(WRAPPERS)}, "
            f"got {_describe(content)}."
        )
    taken = next(iter(named or tables))
    kind = "averaged weights (EMA)" if taken in averages else "weights"
    notes = [f"{kind} taken from '{taken}'", *_strays(content.get(taken))]
    if averages and taken not in averages:
        notes.append(f"averaged weights under '{averages[0]}' left; take them with --ema")
    left = (name for name, value in content.items() if _tensors(value) and name not in AVERAGES)
    notes += [f"weights under '{name}' left" for name in left if name != taken]
    weights = tables[taken]
    for name, others in tables.items():
        completed = None if name == taken else _with_buffers(weights, others)
        if completed is not None:
            notes.append(f"statistics, which these weights lack, taken from '{name}'")
            return Unwrapped(tensors=completed, notes=tuple(notes), statistics_of=name)
    return Unwrapped(tensors=weights, notes=tuple(notes))


def _strays(content: Any) -> tuple[str, ...]:
    """Return a note on the tensors of losses and metrics among weights, which are left out."""
    names = [str(name) for name in content] if isinstance(content, dict) else []
    strays = [name for name in names if name.startswith(STRAY_PARTS)]
    return (f"losses and metrics left: {listed(strays)}",) if strays else ()


def _averaged_lists(
    content: Any, weights: dict[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return averages that are kept as lists, in the order of the parameters of other weights."""
    found = {}
    names = [name for name in weights if not name.endswith(BUFFERS)]
    for name, value in content.items() if isinstance(content, dict) and names else ():
        averages = value.get("shadow_params") if isinstance(value, dict) else None
        if (
            name in AVERAGES
            and isinstance(averages, list)
            and all(isinstance(tensor, torch.Tensor) for tensor in averages)
            and [tensor.shape for tensor in averages] == [weights[n].shape for n in names]
        ):
            found[name] = dict(zip(names, averages, strict=True))
    return found


def _with_buffers(
    weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor] | None:
    """Complete weights without buffers by those of other weights of the same network.

    Returns:
        None if they have statistics, or the others are of another network.
    """
    if any(name.endswith(BUFFERS) for name in weights):
        return None
    front, other = strip_front(weights), strip_front(others)
    lacking = other.tensors.keys() - front.tensors.keys()
    if (
        front.tensors.keys() - other.tensors.keys()
        or any(name.endswith(("weight", "bias")) for name in lacking)
        or not any(name.endswith(BUFFERS) for name in lacking)
    ):
        return None
    own = {other.prefix + name: tensor for name, tensor in front.tensors.items()}
    return {name: own.get(name, tensor) for name, tensor in others.items()}


def _tables(content: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Return the dictionaries with weights in the content, at most two levels down, by name."""
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        tensors = _tensors(value)
        if isinstance(value, dict) and not tensors:  # such as {"ema": {"state_dict": ...}}
            keys = (*WRAPPERS, *AVERAGES, "shadow", "module")
            tensors = _tensors(next((value[key] for key in keys if key in value), None))
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


def _find_facts(content: Any) -> ModelOverrides:
    """Return what the content of a file says about its network."""
    if not isinstance(content, dict):
        return ModelOverrides()
    facts: dict[str, object] = {}
    for name in ARGUMENT_TABLES:
        arguments = plain(content.get(name))
        if isinstance(arguments, dict):
            facts |= {
                fact: arguments[key]
                for fact, names in ARGUMENTS.items()
                for key in reversed(names)  # the first one is stored last
                if _is_fact(fact, arguments.get(key))
            }
    facts |= {key: content[key] for key in FACTS if _is_fact(key, content.get(key))}
    return convert(facts, ModelOverrides, "checkpoint")


def _is_fact(name: str, value: Any) -> bool:
    if not isinstance(value, FACTS[name]) or isinstance(value, bool):
        return FACTS[name] == (bool,) and isinstance(value, bool)
    if isinstance(value, (list, tuple)):
        numbers = all(isinstance(v, int | float) and -1e6 < v < 1e6 for v in value)
        return 1 <= len(value) <= LARGEST["channels"] and numbers
    if name in WORDS:
        return value in WORDS[name]
    if name == "crop_share":
        return isinstance(value, int | float) and 0.05 <= value <= 1
    if isinstance(value, str):
        return len(value) < 200 and value.isprintable()
    return isinstance(value, int) and 0 < value <= LARGEST[name]


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(str(key)[:40] for key in list(content)[:5])
        return f"a dictionary with {names or 'no keys'}"
    return f"a {type(content).__name__}"


METADATA_KEY = "recal.checkpoint"
LONGEST_NAME = 500
# tied weights share storage, but a network is not many times as large as its file
MOST_TIMES_STORED = 16


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The content of a checkpoint.

    Attributes:
        tensors: The tensors by name, in the order of the file.
        facts: What the file says about the network.
        notes: Notes for people on what was unwrapped.
        unused: Names of settings of the network that recal cannot apply.
        files: The files that hold it.
        statistics_of: Name of the other weights in the file that the statistics belong to, if the
            tensors have none of their own.
    """

    tensors: dict[str, torch.Tensor]
    facts: ModelOverrides
    notes: tuple[str, ...]
    unused: tuple[str, ...] = ()
    files: tuple[Path, ...]
    statistics_of: str | None = None


def read_weight_file(path: Path, *, ema: bool = False) -> WeightFile:
    """Read a .pth or .safetensors checkpoint, or with `ema` the moving average of its weights.

    The format is detected from the content. A folder of the Hugging Face hub's form, and an index
    of shards, are checkpoints, too.
    """
    stored = locate(path)
    facts, contents = ModelOverrides(), {}
    try:
        for file in stored.files:
            with file.open("rb") as opened:
                head = opened.read(9)
            if head[8:] == b"{":  # safetensors: eight bytes of header length, then JSON
                contents[file], found = _read_safetensors(file)
            else:
                contents[file] = _read_torch(file)
                found = _find_facts(contents[file])
            facts = facts.over(found)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    unused: tuple[str, ...] = ()
    unwrapped = _unwrap(merge(stored.files, contents), ema=ema, where=str(path))
    tensors, notes = unwrapped.tensors, list(unwrapped.notes)
    if stored.config is not None:
        told, unused = hub_facts(stored)
        tensors = renamed(tensors, stored.config)
        known = {key: value for key, value in told.items() if _is_fact(key, value)}
        facts = facts.over(convert(known, ModelOverrides, str(path)))
        notes.append(f"network and preprocessing taken from {path / 'config.json'}")
    if len(stored.files) > 1:
        notes.append(f"weights taken from {len(stored.files)} parts")
    _check_tensors(path, tensors, sum(file.stat().st_size for file in stored.files))
    _check_byte_order(path, tensors)
    return WeightFile(
        tensors=tensors, facts=facts, notes=tuple(notes), unused=unused, files=tuple(stored.files),
        statistics_of=unwrapped.statistics_of,
    )  # fmt: skip


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], ModelOverrides]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # the reader raises several kinds of error for a damaged file
        raise InputError(f"{path}: expected a whole safetensors file, got {error}.") from error
    if "recal.part" in metadata:
        raise InputError(
            f"{path}: expected a checkpoint, got a part of a calibration. `recal merge` makes a "
            "variant of all parts."
        )
    if "recal" in metadata:
        raise InputError(
            f"{path}: expected a checkpoint, got a variant (BatchNorm tensors alone). Name the "
            "checkpoint that it was made from."
        )
    try:
        record = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        record = {}
    return tensors, _find_facts(record)


def _read_torch(path: Path) -> Any:
    vet_file(path)
    records: list[Any] = [(kind, name) for name, kind in RECORDS.items()]
    try:
        with torch.serialization.safe_globals(records), warnings.catch_warnings():
            # warnings about old formats and protocols, which do not affect weights
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any error in the reader
        raise InputError(
            f"{path}: expected a whole PyTorch checkpoint, got one that torch.load refuses "
            f"({reason(error)}). Save the state_dict() again with torch.save's defaults."
        ) from error


def _check_tensors(path: Path, tensors: dict[str, torch.Tensor], stored: int) -> None:
    """Refuse tensors that are not dense, or larger than the bytes that the files have."""
    total = 0
    for name, tensor in tensors.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"{path}: '{name[:40]}' ({len(name):,} characters): expected the name of a layer's "
                f"tensor, at most {LONGEST_NAME} printable characters."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(
                f"{path}: {name}: expected a dense tensor with its values, got a "
                f"{'quantised' if tensor.is_quantized else tensor.layout} one on {tensor.device}. "
                "Save the floating-point weights."
            )
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes() or total > MOST_TIMES_STORED * stored:
            raise InputError(
                f"{path}: {name}: shape {tuple(tensor.shape)} is larger than what the file stores. "
                "The file is damaged or forged."
            )


def _check_byte_order(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse tensors whose running variances are plausible only with their bytes reversed."""
    found = [t for k, t in tensors.items() if k.endswith("running_var") and t.is_floating_point()]
    if not found:
        return
    values = torch.cat([t.reshape(-1)[:1000] for t in found if t.dtype == found[0].dtype])
    # NaN and infinity of float16 are small numbers in the other byte order
    values = values[values.isfinite()]
    swapped = values.contiguous().view(torch.uint8).reshape(-1, values.element_size()).flip(1)
    reversed_values = swapped.contiguous().view(values.dtype).reshape(-1)
    if _plausible(values) < 0.2 and _plausible(reversed_values) > 0.9:
        raise InputError(
            f"{path}: its numbers make sense only in the other byte order. It was copied from a "
            "big-endian machine without its 'byteorder' record; save it there again with "
            "torch.save."
        )


def _plausible(values: torch.Tensor) -> float:
    """Return the share of values that a variance can have."""
    size = values.double()
    return float(((size == 0) | ((size > 1e-20) & (size < 1e12))).double().mean())
