"""One network in a file of more: its prefix, its neighbours, and statistics that the file lacks."""

import json
import pathlib

import numpy as np
import pytest
import torch
from torch import nn

from recal.calibration.calibrate import calibrate
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.inspection.findings import examine
from recal.networks.names import create_network
from recal.variant.build import build
from recal.variant.variant import initial_variant, load_variant
from tests import dual_networks
from tests.dual_networks import NORMS, Network, Normalised, randomise

PLAIN = f"python:{pathlib.Path(dual_networks.__file__)}:plain"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
IMAGES = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def write(content, path):
    torch.save(content, path)
    return path


def below(prefix, state):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def outputs(checkpoint, arch=PLAIN, images=IMAGES):
    with torch.no_grad():
        return build(checkpoint.overridden(arch=arch))(images)


@pytest.fixture
def network():
    return randomise(Network(nn.BatchNorm2d))


@pytest.mark.parametrize(
    "prefix",
    ["net.", "encoder.", "student.", "encoder_q.", "0.", "module.encoder.", "a.b.c."],
)
@pytest.mark.parametrize("layout", ["plain", "mixbn", "dubn", "dubin"])
def test_prefix_is_found_by_comparison_with_the_network(prefix, layout, tmp_path):
    network = randomise(Network(NORMS.get(layout, nn.BatchNorm2d)))
    state = below(prefix, network.state_dict()) | {"class_weights": torch.ones(5)}
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth")).overridden(arch=PLAIN)
    assert checkpoint.layout.name == layout
    with torch.no_grad():
        expected = network(IMAGES)
    torch.testing.assert_close(outputs(checkpoint), expected, rtol=1e-6, atol=1e-6)
    assert any(f"prefix '{prefix}' found" in note for note in checkpoint.notes)
    assert any("left, outside of the prefix: class_weights" in n for n in checkpoint.notes)


@pytest.mark.parametrize("wrapped", [False, True])
def test_losses_and_metrics_beside_weights_are_named(wrapped, tmp_path):
    state = randomise(Network(nn.BatchNorm2d)).state_dict() | {"criterion.weight": torch.ones(5)}
    checkpoint = load_checkpoint(write({"model": state} if wrapped else state, tmp_path / "f.pth"))
    assert "losses and metrics left: criterion.weight" in checkpoint.notes


def test_prefix_is_found_without_a_given_architecture(tmp_path):
    network = randomise(create_network("wrn10_1", 7))
    state = below("online.", network.state_dict()) | {"acc.total": torch.tensor(1.0)}
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth"))
    assert (checkpoint.spec.arch, checkpoint.spec.classes) == ("wrn10_1", 7)
    assert checkpoint.layers[0] == "block1.layer.0.bn1"


def test_weights_outside_of_a_prefix_are_a_doubt(tmp_path):
    """A projection head inside the network, and the classifier beside it."""
    state = below("encoder.", randomise(create_network("wrn10_1", 128)).state_dict())
    state["classifier.weight"] = torch.ones(10, 128)
    (doubt,) = load_checkpoint(write(state, tmp_path / "f.pth")).doubts
    assert "outside of the prefix 'encoder.' are left out: classifier.weight" in doubt.sentence


@pytest.mark.parametrize("names", [("encoder_q", "encoder_k"), ("student", "teacher")])
def test_several_networks_ask_for_a_prefix(names, network, tmp_path):
    networks = {name: randomise(Network(nn.BatchNorm2d), i) for i, name in enumerate(names)}
    state = {"queue": torch.ones(8, 4)}
    for name, one in networks.items():
        state |= below(f"module.{name}.", one.state_dict())
    path = write({"state_dict": state}, tmp_path / "f.pth")
    with pytest.raises(
        UsageError, match=f"{names[0]}., module.{names[1]}.. Say which with --prefix"
    ):
        load_checkpoint(path).overridden(arch=PLAIN)
    for name, one in networks.items():
        for spelling in (name, f"{name}.", f"module.{name}"):
            checkpoint = load_checkpoint(path, prefix=spelling)
            with torch.no_grad():
                torch.testing.assert_close(outputs(checkpoint), one(IMAGES), rtol=1e-6, atol=1e-6)
    with pytest.raises(UsageError, match=r"out of .*, got 'other'"):
        load_checkpoint(path, prefix="other")


def test_networks_of_other_sizes_beside_the_one_that_fits_do_not_matter(tmp_path):
    """As in distillation, where a student lies beside a larger teacher."""
    student, teacher = (randomise(create_network(name, 5)) for name in ("wrn10_1", "wrn10_2"))
    state = below("teacher.", teacher.state_dict()) | below("student.", student.state_dict())
    path = write(state, tmp_path / "f.pth")
    images = torch.randn(2, 3, 32, 32)
    for name, network in (("wrn10_1", student), ("wrn10_2", teacher)):
        checkpoint = load_checkpoint(path, arch=name)
        with torch.no_grad():
            torch.testing.assert_close(
                outputs(checkpoint, name, images), network(images), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("front", ["around", "beside", "inside"])
def test_normalisation_in_front_is_found_with_the_prefix(front, tmp_path):
    whole = Normalised(randomise(Network(nn.BatchNorm2d)))
    state = whole.state_dict()
    if front == "beside":
        state = below("model.", whole.model.state_dict())
        state |= below("normalize.", {"mean": whole.mean, "std": whole.std})
    elif front == "inside":
        state = below("student.", state)
    state["class_weights"] = torch.ones(5)
    checkpoint = load_checkpoint(write(state, tmp_path / "f.pth")).overridden(arch=PLAIN)
    assert checkpoint.spec.mean == pytest.approx((0.4, 0.5, 0.6))
    outside = (IMAGES - whole.mean) / whole.std
    with torch.no_grad():
        torch.testing.assert_close(outputs(checkpoint, images=outside), whole.eval()(IMAGES))


def test_compiled_parts_inside_are_read(network, tmp_path):
    network.body = torch.compile(network.body)
    path = write({f"net.{k}": v for k, v in network.state_dict().items()}, tmp_path / "f.pth")
    checkpoint = load_checkpoint(path)
    assert "'_orig_mod' removed from names" in checkpoint.notes
    network.body = network.body._orig_mod
    with torch.no_grad():
        torch.testing.assert_close(outputs(checkpoint), network(IMAGES), rtol=1e-6, atol=1e-6)


def test_prefix_that_no_tensor_has_is_refused(network, tmp_path):
    path = write(below("student.", network.state_dict()), tmp_path / "f.pth")
    with pytest.raises(UsageError, match=r"out of student, got 'studnt'\. Did you mean 'student'"):
        load_checkpoint(path, prefix="studnt")


def test_tensors_that_are_a_part_of_the_network_are_never_left_out(network, tmp_path):
    """A head outside of the prefix belongs to the network; so do layers that it lacks."""
    state = below("backbone.", network.state_dict())
    state["fc.weight"] = state.pop("backbone.fc.weight")
    with pytest.raises(InputError, match="weights and architecture do not fit"):
        outputs(load_checkpoint(write(state, tmp_path / "f.pth")))
    state = below("net.", network.state_dict()) | {"net.body.3.weight": torch.ones(6, 6, 1, 1)}
    state["class_weights"] = torch.ones(5)
    with pytest.raises(InputError, match="weights and architecture do not fit"):
        outputs(load_checkpoint(write(state, tmp_path / "g.pth")))


def without_statistics(state):
    return {key: tensor for key, tensor in state.items() if not key.endswith(STATISTICS)}


# of the others, only statistics are stored in the branches
@pytest.mark.parametrize(
    "layout", ["plain", *sorted(NORMS.keys() - {"subbn", "shared-affine", "sandwich"})]
)
def test_statistics_that_a_file_lacks_are_named_in_any_layout(layout, tmp_path):
    network = randomise(Network(NORMS.get(layout, nn.BatchNorm2d)))
    path = write(without_statistics(network.state_dict()), tmp_path / "f.pth")
    checkpoint = load_checkpoint(path, arch=PLAIN)
    whole = load_checkpoint(write(network.state_dict(), tmp_path / "g.pth"))
    assert (checkpoint.layout.name, checkpoint.layers) == (layout, whole.layers)
    assert checkpoint.weights_sha256 == whole.weights_sha256
    assert checkpoint.missing == tuple(whole.layers)
    for name, tensors in whole.branches.items():
        for key, tensor in tensors.items():
            if key.endswith(("weight", "bias")):
                assert torch.equal(checkpoint.branch(name)[key], tensor)
            elif not key.endswith("tracked"):
                assert checkpoint.branch(name)[key].isnan().all()
    (finding,) = (found for found in examine(checkpoint) if found.kind == "no-statistics")
    assert "statistics: none stored for 2 of 2 layers" in finding.sentence
    with pytest.raises(UsageError, match=r"statistics: none stored.*calibrate first"):
        build(checkpoint)


class Mixed(nn.Module):
    """BatchNorm with and without affine beside layer, group and instance norm."""

    def __init__(self, tracked=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8, track_running_stats=tracked)
        self.bn2 = nn.BatchNorm2d(8, affine=False, track_running_stats=tracked)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.instance(self.group(self.conv(x)))))
        x = torch.relu(self.bn2(x))
        return self.fc(self.norm(x.mean((2, 3))))


def mixed():
    return Mixed()


def untracked():
    return Mixed(tracked=False)


@pytest.mark.parametrize("maker", ["mixed", "untracked"])
def test_norm_layers_of_other_kinds_keep_their_weights(maker, tmp_path):
    """The architecture tells which layers are BatchNorm; the names alone do not."""
    network = randomise(untracked())
    arch = f"python:{pathlib.Path(__file__)}:{maker}"
    path = write(network.state_dict(), tmp_path / "f.pth")
    with pytest.raises(InputError, match=r"no running_mean among them.*--arch, and calibrate it"):
        load_checkpoint(path)
    checkpoint = load_checkpoint(path, arch=arch)
    assert checkpoint.missing == ("bn1", "bn2")
    assert {"group.weight", "instance.bias", "norm.weight"} <= checkpoint.weights.keys()
    variant = initial_variant(checkpoint, "main")
    built = build(checkpoint, variant)
    with torch.no_grad():
        expected = mixed()
        expected.load_state_dict(network.state_dict(), strict=False)
        torch.testing.assert_close(built(IMAGES), expected.eval()(IMAGES))


@pytest.mark.slow
def test_file_of_a_network_that_keeps_no_statistics_ends_as_an_onnx_file(
    recal, class_folders, tmp_path
):
    """Calibrated, its output for an image no longer depends on the images beside it."""
    torch.manual_seed(0)
    path = write(untracked().state_dict(), tmp_path / "f.pth")
    arch = ["--arch", f"python:{pathlib.Path(__file__)}:untracked"]
    status, _, err = recal("calibrate", path, *arch, "--mode", "clean", "--data", class_folders,
                           "--workers", 0, "-o", "v.safetensors")  # fmt: skip
    assert status == 0, err
    for command, name in (("export", "f.onnx"), ("convert", "g.pth")):
        status, _, err = recal(command, path, "--variant", "v.safetensors", *arch, "-o", name)
        assert (status, "calibrate first" in err) == (0, False), err
    network = mixed()
    network.load_state_dict(torch.load("g.pth", weights_only=True), strict=True)


@pytest.fixture(scope="module")
def stripped(split_checkpoint, tmp_path_factory):
    """The checkpoint of two branches without its statistics."""
    content = torch.load(split_checkpoint, weights_only=True)
    content["state_dict"] = without_statistics(content["state_dict"])
    return write(content, tmp_path_factory.mktemp("stripped") / "stripped.pth")


def test_commands_say_what_is_missing_and_calibrate_gives_it(
    recal, split_checkpoint, stripped, class_folders, tmp_path
):
    """The statistics are those of the whole file, which they do not depend on."""
    missing = "statistics: none stored for 7 of 7 layers"
    status, _, err = recal("inspect", stripped)
    assert status == 0
    assert f"{missing} (block1.layer.0.bn1, " in " ".join(err.split())
    assert "If they are group or layer norm" in err
    for command in (
        ["eval", stripped, "--suite", "cifar10", "--data", class_folders],
        ["export", stripped, "-o", "f.onnx"],
        ["convert", stripped, "-o", "f.safetensors"],
    ):
        status, _, err = recal(*command)
        assert status == 2
        assert "branch 'main': statistics: none stored for block1" in err
        assert "calibrate first" in err
    assert not list(tmp_path.glob("f.*"))
    options = ["--mode", "clean", "--data", class_folders, "--samples", 40, "--workers", 0]
    for affine in ("main", "aux0"):
        for path, name in ((stripped, "own"), (split_checkpoint, "whole")):
            status, _, _ = recal("calibrate", path, "--affine", affine, *options,
                                   "-o", f"{name}.safetensors")  # fmt: skip
            assert status == 0
        own, whole = (load_variant(tmp_path / f"{name}.safetensors") for name in ("own", "whole"))
        assert own.tensors.keys() == whole.tensors.keys()
        for key, tensor in own.tensors.items():
            np.testing.assert_array_equal(tensor, whole.tensors[key])
    status, _, err = recal("export", stripped, "--variant", "own.safetensors", "-o", "own.onnx")
    assert status == 0, err
    cells = []
    for path, name in ((stripped, "own"), (split_checkpoint, "whole")):
        status, out, err = recal("eval", "--checkpoint", path, f"{name}.safetensors", "--suite",
                                 "cifar10", "--data", class_folders, "--json")  # fmt: skip
        assert status == 0, err
        (cell,) = json.loads(out)["cells"]
        cells.append({key: value for key, value in cell.items() if key != "target"})
    assert cells[0] == cells[1]


def parameters(network):
    return {name: tensor.detach() for name, tensor in network.named_parameters()}


@pytest.mark.parametrize("form", ["dictionary", "list", "module.", "alone"])
def test_averaged_parameters_get_the_statistics_beside_them(form, network, tmp_path):
    """The reference is the averaged network of torch itself, with the buffers of the other one."""
    average = randomise(Network(nn.BatchNorm2d), seed=1)
    own = parameters(average)
    averages = {"list": {"shadow_params": list(own.values()), "decay": 0.999},
                "module.": below("module.", own)}.get(form, own)  # fmt: skip
    content = {"model_ema": averages}
    if form != "alone":
        content["state_dict"] = network.state_dict()
    path = write(content, tmp_path / "f.pth")
    checkpoint = load_checkpoint(path, ema=True, arch=PLAIN)
    if form == "alone":
        assert checkpoint.missing == ("norm1", "body.1")
        return
    average.load_state_dict({**network.state_dict(), **own})
    with torch.no_grad():
        torch.testing.assert_close(outputs(checkpoint), average(IMAGES), rtol=1e-6, atol=1e-6)
    assert "statistics, which these weights lack, taken from 'state_dict'" in checkpoint.notes
    (doubt,) = checkpoint.doubts
    assert "the statistics belong to the weights under 'state_dict'" in doubt.sentence


def test_weights_beside_the_network_are_named(network, tmp_path):
    """As in AdvCL's fine-tuned files."""
    content = {"model": network.state_dict(), "classifier": {"weight": torch.ones(10, 5)}}
    content["optimizer"] = torch.optim.SGD(network.parameters(), 0.1).state_dict()
    notes = load_checkpoint(write(content, tmp_path / "f.pth")).notes
    assert notes == ("weights taken from 'model'", "weights under 'classifier' left")


def test_module_that_keeps_no_statistics_is_given_them():
    """They are those of its twin with statistics, and outputs no longer depend on the batch."""
    network = randomise(untracked())
    twin = mixed()
    twin.load_state_dict(network.state_dict(), strict=False)
    found, expected = (calibrate(one, [IMAGES]) for one in (network, twin))
    assert network.bn1.running_mean is None
    assert found.state_dict().keys() == expected.state_dict().keys()
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[key]), key
    with torch.no_grad():
        alone, together = found(IMAGES[:1]), found(IMAGES)[:1]
        assert not torch.allclose(network(IMAGES[:1]), network(IMAGES)[:1], atol=1e-3)
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
