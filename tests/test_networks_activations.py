"""Networks whose training code dropped the activations inside of timm's BatchNormAct2d."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recal import build, evaluate, load_checkpoint, load_variant, save_variant
from recal.errors import InputError
from recal.onnx_file.reading import read_model
from recal.onnx_file.record import read_record
from recal.variant.variant import branch_variant
from tests.dual_networks import NORMS, randomise

ARCH, LAYOUTS = "mobilenetv2_035", ("timm-splitbn", "mixbn", "dubn", "once-for-all")


def converted(module, norm):
    """Put a norm of several branches in the place of every BatchNorm, as such code did and does.

    timm's `convert_splitbn_model` before 1.0.31 added the activation as a child of the new layer,
    whose forward did not use it.
    """
    if isinstance(module, _BatchNorm):
        new = norm(module.num_features)
        for name, child in module.named_children():
            new.add_module(name, child)
        return new
    for name, child in module.named_children():
        setattr(module, name, converted(child, norm))
    return module


def without_activation(norm):
    class Dropped(norm):
        def forward(self, x):
            hidden = [self._modules.pop(name, None) for name in ("drop", "act")]
            try:
                return super().forward(x)
            finally:
                for name, child in zip(("drop", "act"), hidden, strict=True):
                    if child is not None:
                        self.add_module(name, child)

    return Dropped


def norms(network):
    return [layer for layer in network.modules() if hasattr(layer, "branch")]


def choose(network, branch):
    for layer in norms(network):
        layer.branch = branch
    return network


@pytest.fixture(scope="module", params=LAYOUTS)
def trained(request, tmp_path_factory):
    """A network trained without activations: every branch has statistics of images of its own."""
    torch.manual_seed(0)
    network = converted(
        timm.create_model(ARCH, num_classes=10), without_activation(NORMS[request.param])
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
    for branch in range(norms(network)[0].branches):
        network.eval()
        choose(network, branch)
        for layer in norms(network):  # timm's layer splits the batch in training mode
            for bn in layer.modules():
                if isinstance(bn, nn.BatchNorm2d) and request.param != "timm-splitbn":
                    bn.train()
        with torch.no_grad():
            network(torch.randn(8, 3, 32, 32) * (branch + 1))
    network.eval()
    path = tmp_path_factory.mktemp(request.param) / "trained.pth"
    content = {
        "arch": ARCH, "family": "cifar", "classes": 10, "size": 32,
        "mean": [0.4914, 0.4822, 0.4465], "std": [0.247, 0.2435, 0.2616],
    }  # fmt: skip
    torch.save({**content, "state_dict": network.state_dict()}, path)
    return path, network


@pytest.fixture(scope="module")
def images(trained, tmp_path_factory):
    """Images with the labels that the network, as it was trained, predicts."""
    path, network = trained
    pixels = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    spec = load_checkpoint(path).spec
    mean, std = np.array(spec.mean), np.array(spec.std)
    inputs = torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        labels = choose(network, 0)(inputs).argmax(1).numpy()
    folder = tmp_path_factory.mktemp("labelled")
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", pixels)
        np.save(folder / f"{split}_labels.npy", labels)
    return folder


def test_network_without_activations_has_the_logits_of_training(trained):
    path, network = trained
    checkpoint = load_checkpoint(path).overridden(bn_act=False)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    reference = copy.deepcopy(network).double()
    for position, name in enumerate(checkpoint.branches):
        expected = choose(reference, position)(images)
        found = build(checkpoint, name).double()(images)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        wrong = build(checkpoint.overridden(bn_act=True), name).double()(images)
        assert (wrong - expected).abs().max() > expected.std()


def test_activation_in_one_of_timms_present_layers_is_kept(tmp_path):
    """`convert_splitbn_model` of timm 1.0.31 and later applies them."""
    from timm.layers import convert_splitbn_model

    network = convert_splitbn_model(timm.create_model(ARCH, num_classes=10), 2).double().eval()
    torch.save({"arch": ARCH, "state_dict": network.state_dict()}, tmp_path / "f.pth")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found = build(load_checkpoint(tmp_path / "f.pth")).double()(images)
    torch.testing.assert_close(found, network(images))


@pytest.mark.parametrize("trained", ["timm-splitbn"], indirect=True)
def test_class_that_holds_an_activation_and_never_uses_it_is_understood(tmp_path, trained):
    """The user's own network is one trained so: its layers are compared with what replaces them."""
    path, network = trained
    (tmp_path / "own.py").write_text(
        "import tests.test_networks_activations as t, timm\n"
        "from tests.dual_networks import NORMS\n"
        "def make(num_classes):\n"
        "    model = timm.create_model(t.ARCH, num_classes=num_classes)\n"
        "    return t.converted(model, t.without_activation(NORMS['timm-splitbn']))\n",
        encoding="utf-8",
    )
    checkpoint = load_checkpoint(path).overridden(arch=f"python:{tmp_path}/own.py:make")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = choose(copy.deepcopy(network).double(), 0)(images)
    torch.testing.assert_close(build(checkpoint).double()(images), expected)


PRELU = """
import timm
from torch import nn
def make(num_classes):
    return timm.create_model("mobilenetv2_035", num_classes=num_classes, act_layer=nn.PReLU)
"""


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_activations_with_parameters_do_nothing_without_bn_act(stored, tmp_path, recal):
    """Training code that dropped PReLU may have kept its weights; either file is understood."""
    torch.manual_seed(0)
    made = timm.create_model(ARCH, num_classes=10, act_layer=nn.PReLU)
    trained = randomise(converted(made, without_activation(NORMS["mixbn"]))).eval()
    state = trained.state_dict()
    assert any(key.endswith("bn1.act.weight") for key in state)
    if not stored:
        state = {key: tensor for key, tensor in state.items() if ".act." not in key}
    path = tmp_path / "f.pth"
    torch.save(state, path)
    (tmp_path / "own.py").write_text(PRELU, encoding="utf-8")
    arch = f"python:{tmp_path}/own.py:make"
    checkpoint = load_checkpoint(path).overridden(arch=arch, bn_act=False)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for position, name in enumerate(checkpoint.branches):
        expected = choose(copy.deepcopy(trained).double(), position)(images)
        found = build(checkpoint, name).double()(images)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    named = ("--variant", "aux0", "--arch", arch, "--no-bn-act", "--classes", "10")
    status, out, err = recal("convert", path, *named, "-o", tmp_path / "c.pth")
    assert status == 0, err
    assert "loads it with strict=True and once the activations" in out
    if not stored:  # with activations, the weights of PReLU are missing
        with pytest.raises(InputError, match=r"missing .*act\.weight"):
            build(checkpoint.overridden(bn_act=True))


WARNING = "drops these activations"
one_layout = pytest.mark.parametrize("trained", ["mixbn"], indirect=True)


@one_layout
@pytest.mark.parametrize(
    "command",
    [
        "inspect C", "calibrate C --data D --samples 20 -o v.st", "convert C -o plain.safetensors",
        "convert C --variant aux0 -o plain.pth", "mix main aux0 --checkpoint C -o m.st",
        pytest.param("export C --variant aux0 --patchable -o m.onnx", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_command_warns_until_the_option_is_given(recal, trained, images, command):
    words = [{"C": trained[0], "D": images}.get(word, word) for word in command.split()]
    status, _, err = recal(*words)
    assert status == 0, err
    assert WARNING in err
    status, _, err = recal(*words, "--bn-act" if "aux0" in words else "--no-bn-act")
    assert status == 0, err
    assert WARNING not in err


@one_layout
def test_images_with_labels_tell_which_it_is(recal, trained, images):
    path, _ = trained
    _, out, err = recal("inspect", path, "--data", images, "--json")
    assert "It was trained without them: give --no-bn-act." in err
    assert "100.0% without" in err
    assert "lost-activations" in {finding["kind"] for finding in json.loads(out)["findings"]}
    status, _, err = recal("eval", path, "--data", images, "--suite", "cifar10", "-o", "run")
    assert status == 0
    assert "give --no-bn-act." in err
    assert "100.0% without" in err
    _, out, err = recal(
        "eval", path, "--data", images, "--suite", "cifar10", "-o", "run", "--no-bn-act", "--json"
    )
    assert "bn-act" not in err
    assert json.loads(out)["summary"][0]["clean_accuracy"] == 1
    run = evaluate([path], suite="cifar10", data=images, output="run", bn_act=False)
    assert [row.clean_accuracy for row in run.summary.targets] == [1]


@one_layout
def test_choice_is_recorded_in_variant_onnx_file_and_plain_checkpoint(
    recal, trained, images, tmp_path
):
    path, network = trained
    recal("calibrate", path, "--data", images, "--samples", 20, "--no-bn-act", "-o", "v.st")
    variant = load_variant(tmp_path / "v.st")
    assert variant.spec.bn_act is False
    # the record settles the question for everything that is made of the variant
    status, _, err = recal("export", path, "--variant", "v.st", "-o", "m.onnx")
    assert (status, err) == (0, "")
    assert read_record(read_model(tmp_path / "m.onnx"), "m").model.bn_act is False
    status, _, err = recal("verify", "m.onnx", "--checkpoint", path, "--variant", "v.st")
    assert (status, err) == (0, "")
    status, out, err = recal("convert", path, "--no-bn-act", "-o", "plain.safetensors")
    assert status == 0
    assert "once the activations of its BatchNorm layers are removed" in out
    plain = load_checkpoint(tmp_path / "plain.safetensors")
    assert plain.spec.bn_act is False
    assert not plain.doubts
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = choose(copy.deepcopy(network).double(), 0)(pictures)
    torch.testing.assert_close(build(plain).double()(pictures), expected, rtol=1e-9, atol=1e-9)
    (tmp_path / "recal.toml").write_text("[model]\nbn-act = false\n", encoding="utf-8")
    _, _, err = recal("inspect", path)
    assert WARNING not in err


def test_layers_that_branches_share_keep_their_activation(tmp_path):
    """A port that converts some layers alone leaves the others as they were."""
    norm = without_activation(NORMS["mixbn"])
    torch.manual_seed(0)
    network = timm.create_model(ARCH, num_classes=10)
    network.blocks = converted(network.blocks, norm)
    network = network.double().eval()
    torch.save({"arch": ARCH, "state_dict": network.state_dict()}, tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth").overridden(bn_act=False)
    assert "bn1" in checkpoint.shared
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(build(checkpoint).double()(images), network(images))


@one_layout
def test_variant_in_memory_keeps_the_choice(tmp_path, trained):
    checkpoint = load_checkpoint(trained[0]).overridden(bn_act=False)
    save_variant(branch_variant(checkpoint, "main"), tmp_path / "v.st")
    assert load_variant(tmp_path / "v.st").spec == checkpoint.spec
    assert checkpoint.spec != load_checkpoint(trained[0]).spec
