"""What a checkpoint may hold beside dense tensors, read as inert objects whose code is never run.

Each name that a pickle may import is in one of the lists here. Those of tensors are left to
PyTorch; every other one is replaced by a class of this module.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

ITEM_SIZES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
    "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}  # fmt: skip


class Record:
    """Replacement for an object of a harmless type, whose own code is never run.

    Attributes:
        state: The stored attributes, if they are a dictionary.
    """

    state: dict[str, Any]

    def __new__(cls, *_: Any, **__: Any) -> Record:
        """Return a record without attributes, whatever the object was made of."""
        record = super().__new__(cls)
        record.state = {}
        return record

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = {key: value for key, value in state.items() if isinstance(key, str)}


class AsDictionary:
    """Replacement for dictionaries of other classes: whatever is made of it is an OrderedDict."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return an empty dictionary, which the pickle then fills."""
        return OrderedDict()


class AsList:
    """Replacement for lists of other classes: whatever is made of it is a list."""

    def __new__(cls, *_: Any) -> list[Any]:  # type: ignore[misc]
        """Return an empty list, which the pickle then fills."""
        return []


def plain(value: Any) -> Any:
    """Return the dictionary that a record of a namespace or an OmegaConf container stands for."""
    if not isinstance(value, Record):
        return value
    content = value.state.get("_content")
    if isinstance(content, dict):
        return {key: plain(node) for key, node in content.items()}
    return plain(value.state["_val"]) if "_val" in value.state else value.state


# functions that build tensors out of storages that the file has
REBUILD = frozenset(
    f"torch._utils.{name}"
    for name in (
        "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
        "_rebuild_parameter_with_state", "_rebuild_sparse_tensor",
        "_rebuild_meta_tensor_no_storage", "_rebuild_qtensor",
    )
)  # fmt: skip
DTYPES = (name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
# names of tensors and of what goes with them; none of them allocates memory or runs code from the
# file
TENSOR_GLOBALS = REBUILD | {
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex",
    "_codecs.encode", "torch.Size", "torch.device", "torch.nn.parameter.Parameter", "torch.Tensor",
    "torch._tensor._rebuild_from_type_v2", "torch.storage.UntypedStorage",
    "torch.serialization._get_layout", "torch.per_tensor_affine", "torch.per_tensor_symmetric",
    "torch.per_channel_affine", "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
    *(f"torch.{name}" for name in ITEM_SIZES if name != "UntypedStorage"),
    *(f"torch.{name}" for name in DTYPES),
}  # fmt: skip
# names that are harmless only in the calls that the walk lets pass
CONDITIONAL = ("builtins.getattr", "builtins.bytearray")


def _named(module: str, names: str) -> list[str]:
    return [f"{module}.{name}" for name in names.split()]


_DICTIONARIES = (
    "collections.defaultdict", "addict.addict.Dict", "easydict.EasyDict", "munch.Munch",
    "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
    "mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)  # fmt: skip
_LISTS = ("collections.deque",)
_OBJECTS = (
    "argparse.Namespace", "types.SimpleNamespace", "functools.partial", "uuid.UUID",
    "decimal.Decimal", "fractions.Fraction", "builtins.getattr",
    *_named("builtins", "list dict tuple int float str bool bytes slice range"),
    *_named("typing", "Any Union Optional Dict List Tuple"),
    *_named("datetime", "datetime date time timedelta timezone"),
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath",
                     "PureWindowsPath")
    ),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *_named("numpy", "dtype ndarray bool_ str_ float16 float32 float64 int8 int16 int32 int64 "
            "uint8 uint16 uint32 uint64"),
    "torch.torch_version.TorchVersion", "torch.layout", "torch.dtype",
    "torch.cuda.amp.grad_scaler._refresh_per_optimizer_state",
    "torch.amp.grad_scaler._refresh_per_optimizer_state",
    "torchvision.transforms.functional.InterpolationMode",
    "torchvision.transforms._functional_pil.InterpolationMode",
    *_named("PIL.Image", "Resampling Transpose"),
    "mmengine.logging.history_buffer.HistoryBuffer", "mmengine.config.config.Config",
    "mmcv.utils.config.Config", "ml_collections.config_dict.config_dict.ConfigDict",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    *_named("omegaconf.base", "ContainerMetadata Metadata SCMode"),
    *_named("omegaconf.nodes", "AnyNode StringNode IntegerNode FloatNode BooleanNode EnumNode "
            "BytesNode PathNode InterpolationResultNode"),
    *_named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    *_named("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
)  # fmt: skip
# what each other name is read as
RECORDS: dict[str, type] = (
    dict.fromkeys(_DICTIONARIES, AsDictionary)
    | dict.fromkeys(_LISTS, AsList)
    | dict.fromkeys(_OBJECTS, Record)
)
