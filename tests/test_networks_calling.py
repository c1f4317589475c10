"""Networks that return more than logits, need more than images, or are bound to float32."""

import warnings

import numpy as np
import pytest
import torch

from recal import build, calibrate, evaluate, export_onnx, load_checkpoint
from recal.data.normalise import Normalisation
from recal.errors import InputError, RecalError, RecalWarning
from recal.export.forms import Patchable
from recal.inspection.scores import score_branches
from recal.networks.calling import logits_place
from recal.networks.names import create_network
from recal.onnx_file.session import OnnxNetwork
from recal.variant.build import build_classifier, convert
from tests.dual_networks import randomise

CODE = """
from collections import namedtuple
from dataclasses import dataclass
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc, self.head = nn.Linear(8, num_classes), nn.Linear(8, 16)
    def features(self, x):
        return torch.relu(self.bn(self.conv(x))).mean((2, 3))
    def forward(self, x):
        return self.fc(self.features(x))

class Tuple(Base):
    def forward(self, x):
        f = self.features(x)
        return f, self.fc(f), self.conv(x)

class Named(Base):
    def forward(self, x):
        f = self.features(x)
        return {"probabilities": self.fc(f).softmax(1), "logits": self.fc(f), "proj": self.head(f)}

Pair = namedtuple("Pair", "hidden out")
class NamedTuple(Base):
    def forward(self, x):
        return Pair(self.head(self.features(x)), self.fc(self.features(x)))

@dataclass
class Output:
    output: torch.Tensor
    hidden: torch.Tensor
class Object(Base):
    def forward(self, x):
        f = self.features(x)
        return Output(self.fc(f), self.head(f))

class Frozen(nn.BatchNorm2d):
    "Replaced by recal, so that both networks are wrapped."
class Replaced(Object):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.bn = nn.SyncBatchNorm(8)

class Twice(Base):
    def forward(self, x):
        return super().forward(x), 2 * super().forward(x)
class OnceForAll(Base):
    def forward(self, x, _lambda):
        return self.fc(_lambda * self.features(x))
class Contrastive(Base):
    def forward(self, x, *, bn_name):
        return super().forward(x)
class Images(OnceForAll):
    def forward(self, x):
        return super().forward(x, _lambda=0.5)
class Full(Base):
    def forward(self, x):
        return self.fc(self.features(x)) + self.fc(torch.full((x.shape[0], 8), 0.5))
def assigned():
    network = Base()
    network.forward = lambda x: Base.forward(network, x)
    return network
class FixedBatch(Base):
    def forward(self, x):
        return self.fc(self.features(x) + torch.full((len(x), 8), 0.5))
class Broken(Base):
    def forward(self, x):
        return self.fc(self.features(x).view(3, 3))
"""
PLAINLY = {"Tuple": "[1]", "Named": "logits", "NamedTuple": "out", "Object": "output"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(CODE, encoding="utf-8")
    torch.manual_seed(0)
    network = create_network(f"python:{folder}/nets.py:Base", 10, trusted=True)
    torch.save(randomise(network).state_dict(), folder / "f.pth")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "d.npz", images=images, labels=np.arange(24) % 10)
    return folder


def checkpoint_of(name, folder, **given):
    arch = f"python:{folder}/nets.py:{name}"
    options = {"classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3, **given}
    return load_checkpoint(folder / "f.pth").overridden(arch=arch, **options)


def expected_logits(folder, pixels):
    """Return the logits of the plain network, whose weights all others have."""
    network = create_network(f"python:{folder}/nets.py:Base", 10, trusted=True).eval()
    network.load_state_dict(torch.load(folder / "f.pth", weights_only=True))
    x = torch.tensor((pixels / 255.0 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(x).numpy()


@pytest.mark.parametrize("name", [*PLAINLY, "Replaced"])
def test_what_is_plainly_the_logits_is_taken_and_named(name, folder, tmp_path):
    checkpoint = checkpoint_of(name, folder)
    pixels = np.load(folder / "d.npz")["images"]
    part = PLAINLY.get(name, "output").replace("[", r"\[")
    with pytest.warns(RecalWarning, match=rf"its part '{part}.* is taken as the logits"):
        export_onnx(checkpoint, "main", tmp_path / "m.onnx", pixels, form=Patchable())
    expected = expected_logits(folder, pixels)
    found = OnnxNetwork(tmp_path / "m.onnx").classify(
        pixels, Normalisation((0.5,) * 3, (0.25,) * 3)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    right = (expected.argmax(1) == np.arange(24) % 10).mean()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecalWarning)
        (score,) = score_branches(checkpoint, folder / "d.npz")
        assert score.accuracy == pytest.approx(right)
        for backend in ("torch", "onnxruntime"):
            run = evaluate(
                checkpoint, suite="cifar10", data=folder / "d.npz", backend=backend,
                output=tmp_path / backend,
            )  # fmt: skip
            assert run.summary.targets[0].clean_accuracy == pytest.approx(right)
        assert "computes what" in convert(checkpoint, "main", tmp_path / "c.pth")[0]


def test_the_users_own_module_is_wrapped_too(folder):
    with pytest.warns(RecalWarning, match="output"):
        pair = build_classifier(checkpoint_of("Replaced", folder))
    assert type(pair.own.bn).__name__ == "SyncBatchNorm"
    assert pair.own is not pair.network
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(pair.own(x), pair.network(x))
    assert type(build(checkpoint_of("Replaced", folder))(x)).__name__ == "Output"


@pytest.mark.parametrize("act", ["export", "calibrate", "eval", "inspect"])
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("OnceForAll", r"OnceForAll.forward, which also needs _lambda.*class Images\(OnceForAll\): "
         r"forward = lambda self, x: super\(Images, self\).forward\(x, _lambda=VALUE\)"),
        ("Contrastive", r"which also needs bn_name"),
        ("assigned", r"expected Base with the forward of a class, got one assigned to the object"),
        ("Broken", r"expected Broken to run on images \(2, 3, 32, 32\) alone, got RuntimeError"),
        ("Twice", r"expected logits \(N, 10\), got tuple of \[0\] \(2, 10\), \[1\] \(2, 10\)"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_called_are_one_error(name, match, act, folder, tmp_path):
    checkpoint, data = checkpoint_of(name, folder), folder / "d.npz"
    if (name, act) == ("Twice", "calibrate"):
        calibrate(checkpoint, mode="clean", data=data)  # needs no logits
        return
    acts = {
        "export": lambda: export_onnx(checkpoint, "main", tmp_path / "m.onnx"),
        "calibrate": lambda: calibrate(checkpoint, mode="clean", data=data),
        "inspect": lambda: score_branches(checkpoint, data),
        "eval": lambda: evaluate(checkpoint, suite="cifar10", data=data, output=tmp_path / "run"),
    }
    with pytest.raises(RecalError, match=match) as error:
        acts[act]()
    assert "\n" not in str(error.value)


def test_the_wrapper_that_the_error_shows_works(folder):
    x = torch.randn(2, 3, 16, 16)
    network = build_classifier(checkpoint_of("Images", folder)).network
    torch.testing.assert_close(network(x), network.fc(0.5 * network.features(x)))


def test_code_bound_to_float32_is_proven_in_float32_and_the_record_says_so(folder, tmp_path):
    evidence = export_onnx(checkpoint_of("Full", folder), "main", tmp_path / "m.onnx")
    assert evidence.proof.reference == "float32"
    assert OnnxNetwork(tmp_path / "m.onnx").record.parity["main"].reference == "float32"
    evidence = export_onnx(checkpoint_of("Base", folder), "main", tmp_path / "m.onnx")
    assert evidence.proof.reference == "float64"


def test_a_graph_of_one_batch_size_is_refused_with_advice(folder, tmp_path):
    checkpoint, path = checkpoint_of("FixedBatch", folder), tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="makes a constant of the number of images"):
            export_onnx(checkpoint, "main", path)
        export_onnx(checkpoint, "main", path, batch=4)


def test_a_module_that_returns_more_than_logits_is_evaluated(folder):
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    found = []
    for name in ("Base", *PLAINLY):
        network = create_network(f"python:{folder}/nets.py:{name}", 10, trusted=True)
        network.load_state_dict(torch.load(folder / "f.pth", weights_only=True))
        if name == "Tuple":  # nothing tells its 8 features from logits
            with pytest.raises(InputError, match=r"expected logits \(N, K\)"):
                evaluate(network, [(images, labels)])
        else:
            found.append(evaluate(network, [(images, labels)]).nll)
    assert len(set(found)) == 1


def test_logits_are_the_only_part_of_their_shape():
    a, b = torch.zeros(2, 10), torch.zeros(2, 16)
    assert logits_place(a, 10, "x") is None
    take, name = logits_place((b, {"a": 1}, a), 10, "x")
    assert take((b, 1, a)) is a
    assert name == "[2]"
    for odd in ((a, b), (), None, (a.long(),), {"out": torch.zeros(2, 10, 4, 4)}):
        with pytest.raises(InputError, match="expected logits"):
            logits_place(odd, None, "x")


CONTRASTIVE = """
from torch import nn
class DualBN(nn.Module):
    def __init__(self, channels, names):
        super().__init__()
        self.bn_list = nn.ModuleList(nn.BatchNorm2d(channels) for _ in names)
        self.names = names
    def forward(self, x, name):
        return self.bn_list[self.names.index(name)](x)
class Net(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), DualBN(8, names)
        self.fc = nn.Linear(8, 10)
    def forward(self, x, bn_name):
        return self.fc(self.bn(self.conv(x), bn_name).relu().mean((2, 3)))
def net():
    return Net(["normal", "pgd"])
class Normal(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = net()
    def forward(self, images):
        return self.network(images, "normal")
"""


def test_one_wrapper_serves_both_branches_of_contrastive_learning(tmp_path):
    (tmp_path / "acl.py").write_text(CONTRASTIVE, encoding="utf-8")
    torch.manual_seed(0)
    arch = f"python:{tmp_path}/acl.py"
    network = randomise(create_network(f"{arch}:net", 10, trusted=True)).eval()
    torch.save(network.state_dict(), tmp_path / "acl.pth")
    checkpoint = load_checkpoint(tmp_path / "acl.pth").overridden(arch=f"{arch}:Normal", classes=10)
    x = torch.randn(4, 3, 16, 16)
    for branch, name in (("main", "normal"), ("aux0", "pgd")):
        built = build_classifier(checkpoint, branch).network
        torch.testing.assert_close(built(x), network(x, name))
        export_onnx(checkpoint, branch, tmp_path / f"{branch}.onnx")


ONCE_FOR_ALL = """
import torch
from torch import nn

class DualBN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.BN_c, self.BN_a = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    def forward(self, x, _lambda):
        return torch.where(_lambda.view(-1, 1, 1, 1) > 0, self.BN_a(x), self.BN_c(x))

class FiLM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.MLP = nn.Sequential(nn.Linear(1, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2 * channels))
    def forward(self, _lambda):
        return self.MLP(_lambda)[:, :, None, None].chunk(2, 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.film1 = nn.Conv2d(3, 8, 3), DualBN(8), FiLM(8)
        self.fc = nn.Linear(8, 10)
    def forward(self, x, _lambda):
        weight, bias = self.film1(_lambda)
        return self.fc(torch.relu(weight * self.bn(self.conv(x), _lambda) + bias).mean((2, 3)))

class Clean(Net):
    def forward(self, x):
        return super().forward(x, x.new_zeros(x.shape[0], 1))
class Robust(Net):
    def forward(self, x):
        return super().forward(x, x.new_full((x.shape[0], 1), 0.2))
"""


def test_once_for_all_branches_are_right_with_a_wrapper_each(tmp_path, recal):
    (tmp_path / "oat.py").write_text(ONCE_FOR_ALL, encoding="utf-8")
    torch.manual_seed(0)
    arch = f"python:{tmp_path}/oat.py"
    network = randomise(create_network(f"{arch}:Net", 10, trusted=True)).eval()
    torch.save(network.state_dict(), tmp_path / "oat.pth")
    checkpoint = load_checkpoint(tmp_path / "oat.pth")
    (doubt,) = checkpoint.doubts
    assert doubt.kind == "branch-input"
    assert "film1.MLP.0.weight" in doubt.sentence
    x, outputs = torch.randn(4, 3, 16, 16), {}
    for branch, name, value in (("main", "Clean", 0.0), ("aux0", "Robust", 0.2)):
        given = checkpoint.overridden(arch=f"{arch}:{name}", classes=10)
        expected = network(x, torch.full((4, 1), value))
        torch.testing.assert_close(build_classifier(given, branch).network(x), expected)
        evidence = export_onnx(given, branch, tmp_path / f"{branch}.onnx")
        assert evidence.proof.reference == "float64"
        outputs[branch] = expected
    with_one = build(checkpoint.overridden(arch=f"{arch}:Clean", classes=10), "aux0")(x)
    assert (with_one - outputs["aux0"]).abs().max() > 0.01  # which is why a warning names it
    arguments = ("oat.pth:aux0", "--arch", f"{arch}:Clean", "--classes", "10")
    np.savez("d.npz", images=np.zeros((20, 32, 32, 3), np.uint8), labels=np.arange(20) % 10)
    for command in (
        ("eval", *arguments, "--suite", "cifar10", "--data", "d.npz"),
        ("calibrate", "oat.pth", *arguments[1:], "--data", "d.npz", "--mode", "weak"),
        ("inspect", "oat.pth"),
    ):
        status, _, messages = recal(*command)
        assert "film1.MLP.0.weight, film1.MLP.0.bias" in messages, (status, messages)
