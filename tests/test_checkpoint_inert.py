"""What training scripts keep beside weights is read as inert objects, and its code never runs."""

import argparse
import collections
import datetime
import decimal
import functools
import pathlib
import pickle
import sys
import types
import uuid
import warnings

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode

from recal.checkpoint.checkpoint import load_checkpoint
from recal.checkpoint.inert import RECORDS
from recal.errors import InputError
from recal.networks.spec import ModelOverrides
from tests.dual_networks import NORMS, Network, randomise


@pytest.fixture
def state():
    return randomise(Network(NORMS["mixbn"])).state_dict()


def read(content, path):
    torch.save(content, path)
    return load_checkpoint(path)


def tagged():
    """A tensor with an attribute, as optimisers are told what not to decay."""
    tensor = torch.arange(3.0)
    tensor.no_weight_decay = True
    return tensor


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still in files
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


HARMLESS = {
    "TorchVersion": torch.torch_version.TorchVersion("2.1.0"),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "nested defaultdict": collections.defaultdict(dict, a=collections.defaultdict(int, b=1)),
    "deque": collections.deque([1, 2, 3], maxlen=5),
    "OrderedDict": collections.OrderedDict(a=1),
    "Counter": collections.Counter("abca"),
    "datetime": datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC),
    "date": datetime.date(2024, 5, 1),
    "time": datetime.time(1, 2),
    "timedelta": datetime.timedelta(hours=3),
    "SimpleNamespace": types.SimpleNamespace(lr=0.1, steps=[1, 2]),
    "Namespace": argparse.Namespace(lr=0.1),
    "path": pathlib.Path("/tmp"),
    "windows path": pathlib.PureWindowsPath("C:/x"),
    "InterpolationMode": InterpolationMode.BICUBIC,
    "numpy scalar": np.float64(0.5),
    "numpy array": np.arange(6.0).reshape(2, 3),
    "numpy structure": np.zeros(2, [("a", "f4"), ("b", "i8")]),
    "numpy state": np.random.get_state(),
    "numpy type": np.float32,
    "partial": functools.partial(int, base=2),
    "uuid": uuid.UUID(int=3),
    "decimal": decimal.Decimal("0.1"),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"\x00\xff"),
    "set": {1, 2},
    "complex": 1j,
    "types": [int, dict, str, torch.float16, torch.strided, torch.Size([2])],
    "range": range(3),
    "tagged tensor": tagged(),
    "sparse tensor": torch.eye(3).to_sparse(),
    "quantised tensor": quantised(),
    "meta tensor": torch.empty(10**6, device="meta"),
    "small floats": torch.ones(3).to(torch.float8_e4m3fnuz),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*deprecated")
def test_harmless_things_beside_weights_are_read(name, state, tmp_path):
    content = {"state_dict": state, "extra": HARMLESS[name], "list": [HARMLESS[name]]}
    checkpoint = read(content, tmp_path / "f.pth")
    assert torch.equal(checkpoint.branch("aux0")["norm1.weight"], state["norm1.aux_bn.weight"])


def pretend(monkeypatch, module, name, *bases, **attributes):
    """Make a class of a package that is not installed, and take it away before reading."""
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or types.ModuleType(part))
    kind = type(name, bases, {"__module__": module, "__qualname__": name, **attributes})
    monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
    return kind


def test_containers_of_omegaconf_are_read_and_give_facts(state, tmp_path, monkeypatch):
    with monkeypatch.context() as installed:
        make = functools.partial(pretend, installed)
        node = make("omegaconf.nodes", "AnyNode")
        config = make("omegaconf.dictconfig", "DictConfig")
        metadata = make("omegaconf.base", "ContainerMetadata")
        told, mean = config(), make("omegaconf.listconfig", "ListConfig")()
        name, classes = node(), node()
        name.__dict__.update(_val="wrn16_1", _parent=told, _metadata=metadata())
        classes.__dict__.update(_val=7, _parent=told)
        mean.__dict__.update(_content=[name], _parent=told)
        told.__dict__.update(_content={"arch": name, "num_classes": classes, "mean": mean},
                             _metadata=metadata())  # fmt: skip
        torch.save({"state_dict": state, "hyper_parameters": told}, tmp_path / "f.pth")
    facts = load_checkpoint(tmp_path / "f.pth").facts
    assert facts == ModelOverrides(arch="wrn16_1", classes=7)


def test_history_of_mmengine_is_read_though_it_names_getattr(state, tmp_path, monkeypatch):
    """Its buffers pickle their methods as calls of getattr, which is not called either."""
    with monkeypatch.context() as installed:
        module = "mmengine.logging.history_buffer"
        kind = pretend(installed, module, "HistoryBuffer", mean=lambda self: 0)
        kind.mean.__module__, kind.mean.__qualname__ = module, "HistoryBuffer.mean"
        buffer = kind()
        buffer.__dict__.update(_max_length=9, _log_history=np.ones(3),
                               statistics_methods={"mean": kind.mean})  # fmt: skip
        content = {"state_dict": state, "message_hub": {"log_scalars": {"loss": buffer}}}
        torch.save(content, tmp_path / "f.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "f.pth", weights_only=True)
    assert load_checkpoint(tmp_path / "f.pth").layout.name == "mixbn"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("easydict", "EasyDict"),
        ("addict.addict", "Dict"),
        ("yacs.config", "CfgNode"),
        ("mmengine.config.config", "ConfigDict"),
        ("lightning.fabric.utilities.data", "AttributeDict"),
    ],
)
def test_dictionaries_of_other_classes_are_read_as_dictionaries(
    module, name, state, tmp_path, monkeypatch
):
    with monkeypatch.context() as installed:
        config = pretend(installed, module, name, dict)(arch="wrn16_1")
        config.__dict__["frozen"] = True
        torch.save({"state_dict": state, "config": config}, tmp_path / "f.pth")
    assert load_checkpoint(tmp_path / "f.pth").facts.arch == "wrn16_1"


class Reaches:
    """Pickles as a call of getattr for an attribute of something real."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    "arguments",
    [("text", "upper"), (torch.Size, "numel"), (torch.Tensor, "__class__"), ({}, "get")],
)
def test_attributes_of_real_objects_are_refused(arguments, state, tmp_path):
    with pytest.raises(InputError, match=r"would call builtins\.getattr"):
        read({"state_dict": state, "extra": Reaches(*arguments)}, tmp_path / "f.pth")


class Allocates:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (bytearray, (10**12,), r"would call builtins\.bytearray"),
        (torch.Tensor, (10**12,), "a tensor made out of nothing"),
        (torch._utils._rebuild_qtensor,
         (torch.zeros(1).untyped_storage(), 0, (10**12,), (0,), (torch.per_tensor_affine, 1.0, 0),
          False, {}), "larger than its storage"),
        (torch._tensor._rebuild_from_type_v2, (bytearray, torch.Tensor, (10**12,), {}),
         "a tensor made by something"),
    ],
)  # fmt: skip
def test_calls_that_would_allocate_are_refused(function, arguments, message, tmp_path, state):
    with pytest.raises(InputError, match=message):
        read({"state_dict": state, "extra": Allocates(function, *arguments)}, tmp_path / "f.pth")


def test_no_name_of_an_inert_object_is_that_of_a_tensor_or_runs_as_itself():
    """PyTorch prefers its own list, so a name there would be built as what it names."""
    own = torch._weights_only_unpickler._get_allowed_globals()
    assert not RECORDS.keys() & own.keys()
