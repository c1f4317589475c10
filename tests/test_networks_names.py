"""Networks by name, by their tensors, and out of the user's own code."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F

from recal.errors import UsageError
from recal.networks.detect import architecture_of, fits, plain_shapes
from recal.networks.names import ORIGINS, OWN, create_network, is_known

# parameters in millions as the papers and the usual implementations count them, for 10 classes
PARAMETERS = {
    "wrn40_2": 2.24, "wrn28_10": 36.48, "wrn16_8": 10.96, "cifar_resnet18": 11.17,
    "cifar_resnet34": 21.28, "cifar_resnet50": 23.52, "cifar_resnet20": 0.27,
    "cifar_resnet56": 0.85, "cifar_resnet110": 1.73, "preactresnet18": 11.17,
    "preactresnet50": 23.50, "preactresnet18_bn": 11.17, "resnext29_4x32": 6.81,
    "resnext29_2x64": 9.13, "resnext29_32x4": 4.77, "allconv": 1.41, "densenet40_12": 1.06,
    "acl_resnet18": 11.17, "acl_resnet50": 23.52,
}  # fmt: skip


def shapes(network):
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("name", "millions"), PARAMETERS.items())
def test_own_network_has_the_published_size_and_maps_images_to_logits(name, millions):
    with torch.device("meta"):
        network = create_network(f"recal:{name}", 10).eval()
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize("name", PARAMETERS)
def test_own_network_is_told_from_its_tensors(name):
    with torch.device("meta"):
        assert architecture_of(None, shapes(create_network(name, 7))) == name


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2",
     "resnext50_32x4d", "mobilenet_v2", "vgg16_bn", "densenet121"],
)  # fmt: skip
def test_torchvision_network_is_told_from_its_tensors(name):
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    assert architecture_of(None, shapes(network)) == f"torchvision:{name}"


def test_tensors_that_fit_networks_of_different_computation_ask(tmp_path):
    with torch.device("meta"):
        network = timm.create_model("tf_efficientnet_b0")
    message = r"fit timm:efficientnet_b0 and timm:tf_efficientnet_b0.*--arch"
    with pytest.raises(UsageError, match=message):
        architecture_of(None, shapes(network))
    assert architecture_of("tf_efficientnet_b0", shapes(network)) == "timm:tf_efficientnet_b0"


def test_name_that_timm_and_torchvision_share_is_told_by_the_tensors():
    with torch.device("meta"):
        theirs = shapes(torchvision.models.get_model("densenet121", weights=None))
        mobile = shapes(torchvision.models.get_model("mobilenet_v3_large", weights=None))
    assert timm.is_model("densenet121")
    assert architecture_of("densenet121", theirs) in ("timm:densenet121", "torchvision:densenet121")
    assert architecture_of("mobilenet_v3_large", mobile) == "torchvision:mobilenet_v3_large"


@pytest.mark.parametrize(
    "named",
    ["python:os:getcwd", "python:evil.py:run", "hf-hub:someone/model", "timm:hf-hub:a/b",
     "timm:local-dir:/tmp/x", "robustbench:cifar10/Linf/Standard", "timm:../../x", "nothing"],
)  # fmt: skip
def test_name_found_in_a_file_never_selects_code_or_a_hub(named):
    assert not is_known(named)
    with pytest.raises(UsageError, match=r"may not use|names no architecture"):
        architecture_of(named, {"a.weight": (3,)})
    with pytest.raises(UsageError):
        create_network(named, 3)


def test_python_name_needs_a_person(tmp_path):
    (tmp_path / "net.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"was found in a file.*--arch python"):
        create_network(f"python:{tmp_path}/net.py:make", 3)


def test_every_origin_and_own_pattern_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    for origin in ORIGINS:
        assert f"`{origin}:" in text or not origin
    for pattern in OWN:
        assert pattern.partition("(")[0] in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn17_1", "6 n \\+ 4"),
        ("cifar_resnet21", "6 n \\+ 2"),
        ("preactresnet20", "18, 34, 50"),
        ("resnext29_99x4", "1 to 64 groups"),
        ("timm:resnet5o", "Did you mean 'resnet50'"),
        ("torchvision:resnet5", "Did you mean 'resnet"),
        ("tim:resnet50", "Did you mean 'timm'"),
        ("resnet", "expected wrn<depth>"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, message):
    with pytest.raises(UsageError, match=message):
        create_network(name, 10, trusted=True)


def test_timm_name_with_a_tag_is_built_without_download():
    network = create_network("timm:tf_efficientnet_b0.ap_in1k", 10)
    assert network.num_classes == 10


def test_instance_batch_norm_counts_as_one_batch_norm():
    mixed = {"bn1.IN.weight": (4,), "bn1.IN.bias": (4,), "bn1.BN.weight": (6,), "fc.weight": (2, 3)}
    assert plain_shapes(mixed) == {"bn1.weight": (10,), "fc.weight": (2, 3)}
    assert not fits("wrn16_1", mixed)


class TestPythonCode:
    def code(self, tmp_path, text):
        (tmp_path / "net.py").write_text(f"from torch import nn\n{text}\n", encoding="utf-8")
        return lambda name, classes=3: create_network(
            f"python:{tmp_path}/net.py:{name}", classes, trusted=True
        )

    def test_file_and_callable_get_the_number_of_classes(self, tmp_path):
        make = self.code(tmp_path, "def make(n_classes): return nn.Linear(2, n_classes)")
        assert make("make", 7).out_features == 7

    def test_callable_without_arguments_and_dotted_names_work(self, tmp_path):
        make = self.code(
            tmp_path, "class A:\n  @staticmethod\n  def make(): return nn.Linear(2, 4)"
        )
        assert make("A.make").out_features == 4

    def test_file_may_import_the_files_beside_it(self, tmp_path):
        (tmp_path / "beside_it.py").write_text("WIDTH = 5", encoding="utf-8")
        make = self.code(
            tmp_path, "from beside_it import WIDTH\ndef make(): return nn.Linear(1, WIDTH)"
        )
        assert make("make").out_features == 5
        assert str(tmp_path) not in sys.path

    def test_file_of_a_repository_imports_from_its_root(self, tmp_path, monkeypatch):
        """Its scripts run in the root, where `utils` is another one than beside the file."""
        (tmp_path / "models" / "cifar").mkdir(parents=True)
        for name, text in {
            "utils.py": "WIDTH = 6",
            "models/utils.py": "OTHER = 1",
            "models/cifar/dual.py": "from torch import nn\nclass Dual(nn.Linear): pass",
            "models/cifar/net.py": "from models.cifar.dual import Dual\n"
            "def make():\n  from models.late import BIAS\n  return Dual(1, 2, bias=BIAS)",
            "models/late.py": "BIAS = False",
            "models/wide.py": "from torch import nn\nfrom utils import WIDTH\n"
            "def make(): return nn.Linear(1, WIDTH)",
        }.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        before = list(sys.path)
        network = create_network("python:models/cifar/net.py:make", 3, trusted=True)
        assert network.bias is None
        assert create_network("python:models/wide.py:make", 3, trusted=True).out_features == 6
        assert create_network("python:models.wide:make", 3, trusted=True).out_features == 6
        assert sys.path == before

    def test_neighbours_of_equal_name_are_each_files_own(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for width in (4, 5):
            folder = tmp_path / str(width)
            folder.mkdir()
            (folder / "sizes_beside.py").write_text(f"WIDTH = {width}", encoding="utf-8")
            text = (
                "from torch import nn\nfrom sizes_beside import WIDTH\n"
                "def make(): return nn.Linear(1, WIDTH)"
            )
            (folder / "net.py").write_text(text, encoding="utf-8")
        for width in (4, 5, 4):
            network = create_network(f"python:{width}/net.py:make", 3, trusted=True)
            assert network.out_features == width

    def test_module_of_an_installed_package_works(self):
        network = create_network("python:torchvision.models:resnet18", 6, trusted=True)
        assert network.fc.out_features == 6

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("mak", "Did you mean 'make'"),
            ("number", "expected a callable"),
            ("fails", "raised ValueError: no"),
            ("wrong", "expected a torch.nn.Module, got a int"),
        ],
    )
    def test_slips_end_in_a_clear_error(self, name, message, tmp_path):
        text = (
            "number = 3\ndef make(): pass\ndef wrong(): return 3\n"
            "def fails(): raise ValueError('no')"
        )
        with pytest.raises(UsageError, match=message):
            self.code(tmp_path, text)(name)

    @pytest.mark.parametrize(
        ("target", "message"),
        [("none.py:make", "nothing at"), ("no_such_module:make", "ModuleNotFoundError"),
         ("net.py", "expected python:FILE")],
    )  # fmt: skip
    def test_missing_code_ends_in_a_clear_error(self, target, message):
        with pytest.raises(UsageError, match=message):
            create_network(f"python:{target}", 3, trusted=True)


def reference_resnext_block(block, x):
    """Aggregate the groups one by one, as figure 3a of arXiv 1611.05431 draws them."""
    groups = block.conv_conv.groups
    inner = F.relu(block.bn_reduce(block.conv_reduce(x)))
    weight = block.conv_conv.weight.chunk(groups)
    parts = [
        F.conv2d(part, w, stride=block.conv_conv.stride, padding=1)
        for part, w in zip(inner.chunk(groups, 1), weight, strict=True)
    ]
    out = block.bn_expand(block.conv_expand(F.relu(block.bn(torch.cat(parts, 1)))))
    return F.relu(out + (block.downsample(x) if block.downsample is not None else x))


def test_resnext_block_aggregates_its_groups():
    block = create_network("resnext29_4x8", 10).eval().stage_2[0]
    x = torch.randn(2, 256, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            block(x), reference_resnext_block(block, x), rtol=1e-4, atol=1e-5
        )


def test_basic_resnet_computes_what_timms_block_does():
    """timm's blocks under other names are an independent implementation."""
    from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv

    for name, theirs, inner in (
        ("cifar_resnet18", BasicBlock, 128),
        ("cifar_resnet50", Bottleneck, 128),
    ):
        ours = create_network(name, 10).eval().layer2[0]
        width_in = ours.conv1.in_channels
        down = downsample_conv(width_in, inner * theirs.expansion, kernel_size=1, stride=2)
        other = theirs(width_in, inner, stride=2, downsample=down).eval()
        state = {k.replace("shortcut", "downsample"): v for k, v in ours.state_dict().items()}
        other.load_state_dict(state, strict=True)
        x = torch.randn(2, width_in, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), other(x), rtol=1e-4, atol=1e-5)


def test_shortcut_without_weights_takes_every_second_pixel_and_pads_channels():
    from recal.networks.cifar import PadShortcut

    x = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    out = PadShortcut(2, 4)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0, 2], [8, 10]]
    assert not out[0, 0].any()
    assert not out[0, 3].any()


HAS_ROBUSTBENCH = importlib.util.find_spec("robustbench") is not None


@pytest.mark.skipif(HAS_ROBUSTBENCH, reason="robustbench is installed, so nothing is missing")
def test_robustbench_absent_says_how_to_install_it():
    with pytest.raises(UsageError, match=r"robustbench is not installed. Install it: pip"):
        create_network("robustbench:cifar10/Linf/Standard", 10, trusted=True)


def test_importing_the_names_does_not_import_torch():
    code = "import sys, recal.networks.names; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
