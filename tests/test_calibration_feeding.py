"""How a network must be fed: told by the user, a file or a convention, and judged on images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from recal import UsageError, calibrate, evaluate, load_checkpoint, load_variant
from recal.calibration.feeding import look, options_for
from recal.data.normalise import Normalisation, normalise, normalise_array
from recal.networks.names import create_network
from recal.networks.spec import ModelOverrides, ModelSpec
from recal.onnx_file.session import OnnxNetwork

SHARED = Path(__file__).parents[2] / "shared"
IMAGENET = (0.485, 0.456, 0.406)
PLAIN = Normalisation((0.0,) * 3, (1.0,) * 3)
HALVES = Normalisation((0.5,) * 3, (0.5,) * 3)
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
BYTES = Normalisation((0.0,) * 3, (1 / 255,) * 3)
LESS_MEAN = Normalisation(IMAGENET, (1 / 255,) * 3)
USUAL = {
    "plain": PLAIN, "halves": HALVES, "cifar": CIFAR, "bytes": BYTES, "bytes less mean": LESS_MEAN,
}  # fmt: skip


def pictures(count, seed):
    """Smooth pictures, uint8 (N, 32, 32, 3), with less blue than red, as photographs have."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 4, 3)) * np.array([1.0, 0.93, 0.8])
    return np.stack(
        [np.asarray(Image.fromarray(x.astype(np.uint8)).resize((32, 32), 2)) for x in small]
    )


PIXELS = pictures(128, seed=1)


def trained(path, normalisation, *, branches=1, broken=None):
    """Write a WRN-10-1 of random weights, whose statistics are those of images fed so.

    A second branch has those of the images with noise, as timm's split BatchNorm names it.
    """
    torch.manual_seed(0)
    network = create_network("wrn10_1", 10)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # averages over all batches
    states = []
    for branch in range(branches):
        pixels = pictures(256, seed=0)
        noise = np.random.default_rng(0).normal(0, 40.0 * branch, pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
        images = torch.from_numpy(normalise_array(pixels, normalisation))
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        with torch.no_grad():
            network.train()(images)
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
    state = states[0]
    for aux in states[1:]:
        state |= {
            f"{key.rpartition('.')[0]}.aux_bn.0.{key.rpartition('.')[2]}": tensor
            for key, tensor in aux.items()
            if "bn" in key
        }
    if broken is not None:
        state["block1.layer.0.bn1.running_var"].fill_(broken)
        state["block1.layer.0.bn1.running_mean"].zero_()
    torch.save({"arch": "wrn10_1", "state_dict": state}, path)
    return path


@pytest.fixture
def images(tmp_path):
    """A folder of images for the command, with train and test images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        np.savez(folder / f"{split}.npz", images=pictures(128, seed), labels=np.arange(128) % 10)
    return folder


def judged(path, assumed):
    checkpoint = load_checkpoint(path)
    spec = checkpoint.overridden(
        mean=assumed.mean, std=assumed.std, channel_order=assumed.channel_order
    ).spec
    return look(checkpoint, spec, PIXELS), spec


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("true", USUAL)
def test_look_recognises_each_normalisation_whatever_is_assumed(tmp_path, true, branches):
    path = trained(tmp_path / "net.pth", USUAL[true], branches=branches)
    for assumed, normalisation in USUAL.items():
        feeding, _ = judged(path, normalisation)
        assert len(feeding.fits[0].distances) == branches
        if assumed == true:
            assert feeding.better is None, "a false alarm"
            assert "confirm" in feeding.verdict
            assert feeding.fits[0].distances["main"] < 0.005
        else:
            assert feeding.better is not None
            assert feeding.better.normalisation == USUAL[true]
            for branch, distance in feeding.better.distances.items():
                # ImageNet's numbers may be as near as CIFAR's
                assert distance < min(fit.distances[branch] for fit in feeding.fits) + 0.01


def test_look_tells_the_order_of_the_channels(tmp_path):
    path = trained(tmp_path / "net.pth", replace(PLAIN, channel_order="bgr"))
    feeding, spec = judged(path, PLAIN)
    assert options_for(feeding.better, spec) == "--channel-order bgr"
    feeding, spec = judged(path, CIFAR)
    assert options_for(feeding.better, spec) == "--mean 0 --std 1 --channel-order bgr"
    feeding, _ = judged(path, replace(PLAIN, channel_order="bgr"))
    assert feeding.better is None
    path = trained(tmp_path / "bytes.pth", replace(BYTES, channel_order="bgr"))
    feeding, spec = judged(path, CIFAR)
    assert options_for(feeding.better, spec) == "--mean 0 --std 1/255 --channel-order bgr"


@pytest.mark.parametrize("broken", [float("nan"), 1.0])
def test_look_uses_no_branch_that_is_broken_or_untrained(tmp_path, broken):
    path = trained(tmp_path / "net.pth", PLAIN, branches=2, broken=broken)
    feeding, _ = judged(path, CIFAR)
    assert list(feeding.better.distances) == ["aux0"]
    assert feeding.better.normalisation == PLAIN
    alone = trained(tmp_path / "alone.pth", PLAIN, broken=broken)
    feeding, _ = judged(alone, CIFAR)
    assert feeding.better is None
    assert "no branch has usable statistics" in feeding.verdict


def test_look_says_that_it_cannot_tell_behind_an_instance_norm(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n",
        encoding="utf-8",
    )
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.InstanceNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    with torch.no_grad():
        network(torch.from_numpy(normalise_array(pictures(128, 0), PLAIN)))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    checkpoint = load_checkpoint(tmp_path / "net.pth")
    checkpoint = checkpoint.overridden(arch=f"python:{tmp_path}/net.py:make")
    feeding = look(checkpoint, checkpoint.spec, PIXELS)
    assert feeding.better is None
    assert feeding.verdict.startswith("Images cannot tell")


COMMANDS = (
    ("inspect",),
    ("calibrate", "-o", "v.safetensors"),
    ("eval", "--suite", "cifar10", "-o", "run"),
    ("export", "-o", "net.onnx"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_commands_stop_on_a_network_that_would_be_fed_wrongly(recal, tmp_path, images, command):
    name, *rest = command
    path = trained(tmp_path / "net.pth", PLAIN, branches=2)
    words = (name, path, "--data", images, *rest)
    status, _, told = recal(*words)
    assert status == 2
    assert told.strip().endswith("Give --mean 0 --std 1, or --mean as-assumed to go on regardless.")
    assert "(the default of the family; the file names none)" in told
    assert not any((tmp_path / made).exists() for made in ("v.safetensors", "run", "net.onnx"))
    status, out, told = recal(*words, "--mean", "0", "--std", "1")
    assert status == 0, told
    assert "mean 0, std 1 (given)" in out
    status, out, told = recal(*words, "--mean", "as-assumed")
    assert status == 0, told
    assert "(assumed, and used as asked)" in out


@pytest.mark.filterwarnings("always::recal.RecalWarning")
def test_given_or_stored_numbers_that_do_not_fit_are_a_warning(recal, tmp_path, images):
    path = trained(tmp_path / "net.pth", PLAIN)
    words = ("calibrate", path, "--data", images, "-o", "v.safetensors")
    status, _, told = recal(*words, "--mean", "0.5", "--std", "0.5")
    assert status == 0
    assert "fit mean 0, std 1 clearly better" in told
    assert "Give --mean 0 --std 1 if that is how it was trained." in told
    # the variant keeps what was said, so that its evaluation does not stop
    assert load_variant(tmp_path / "v.safetensors").spec.input_from == "given"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "mean": [0.5] * 3, "std": [0.5] * 3}, path)
    status, out, told = recal(*words)
    assert status == 0
    assert "fit mean 0, std 1 clearly better" in told
    assert "mean 0.5, std 0.5 (in the file)" in out


@pytest.mark.filterwarnings("always::recal.RecalWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_commands_warn_of_a_network_that_no_usual_normalisation_fits(
    recal, tmp_path, images, command
):
    # less than the mean is subtracted, and nothing divided
    own = Normalisation((0.17,) * 3, (1.0,) * 3)
    path = trained(tmp_path / "net.pth", own)
    name, *rest = command
    words = (name, path, "--data", images, *rest)
    status, _, told = recal(*words)
    assert status == 0
    assert "under no usual normalisation" in told
    assert "Give the --mean and --std of the training code" in told
    status, _, told = recal(*words, "--mean", "0.17", "--std", "1")
    assert status == 0
    assert "normalisation (distance" not in told


def test_python_functions_stop_alike(tmp_path, images):
    checkpoint = load_checkpoint(trained(tmp_path / "net.pth", PLAIN))
    with pytest.raises(UsageError, match="Give --mean 0 --std 1, or --mean as-assumed"):
        calibrate(checkpoint, data=images, min_images=8)
    with pytest.raises(UsageError, match="Give --mean 0 --std 1, or --mean as-assumed"):
        evaluate(checkpoint, suite="cifar10", data=images, output=tmp_path / "run")
    forced = calibrate(checkpoint.overridden(mean="as-assumed"), data=images)
    assert forced.spec.input_from == "as-assumed"
    assert forced.spec.mean == CIFAR.mean
    run = evaluate(
        str(checkpoint.path), suite="cifar10", data=images, output=tmp_path / "run",
        mean="as-assumed",
    )  # fmt: skip
    assert run.summary.feeding["main"].endswith("(assumed, and used as asked)")


def test_who_said_it_changes_neither_identity_nor_equality(tmp_path):
    checkpoint = load_checkpoint(trained(tmp_path / "net.pth", CIFAR))
    given = checkpoint.overridden(mean=CIFAR.mean, std=CIFAR.std)
    assert (checkpoint.spec.input_from, given.spec.input_from) == ("family", "given")
    assert checkpoint.spec == given.spec
    assert checkpoint.overridden(mean=CIFAR.mean).spec.input_from == "family", "std is assumed"
    assert given.spec.overridden(ModelOverrides(mean="as-assumed")).input_from == "as-assumed"


@pytest.mark.parametrize(
    ("layout", "arch", "mean", "source"),
    [
        ("dubn", "wrn10_1", 0.0, "layout"),
        ("advcl", "wrn10_1", 0.0, "layout"),
        ("dubn", "torchvision:resnet18", IMAGENET[0], "family"),
        ("mixbn", "torchvision:resnet18", 0.5, "layout"),
        ("mixbn", "timm:tf_efficientnet_b0.aa_in1k", IMAGENET[0], "architecture"),
        ("timm-splitbn", "wrn10_1", CIFAR.mean[0], "family"),
    ],
)
def test_layouts_carry_the_convention_of_their_writers(tmp_path, layout, arch, mean, source):
    from recal.checkpoint.layouts import BY_NAME

    checkpoint = load_checkpoint(trained(tmp_path / "net.pth", CIFAR))
    # overriding the architecture reads the layout again
    spec = replace(checkpoint.overridden(arch=arch), layout=BY_NAME[layout]).spec
    assert spec.mean[0] == mean
    assert spec.input_from == source
    told = replace(checkpoint, facts=ModelOverrides(mean=(0.1,) * 3, std=(0.2,) * 3)).spec
    assert (told.mean[0], told.input_from) == (0.1, "file")


def test_normalise_reverses_the_channels_after_normalising():
    expected = (PIXELS / 255 - np.array(CIFAR.mean)) / np.array(CIFAR.std)
    expected = expected[..., ::-1].transpose(0, 3, 1, 2)
    reversed_ = replace(CIFAR, channel_order="bgr")
    np.testing.assert_allclose(normalise_array(PIXELS, reversed_), expected, atol=1e-5)
    found = normalise(torch.from_numpy(PIXELS), reversed_, torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("form", [(), ("--uint8",)], ids=["float", "uint8"])
def test_export_of_a_network_that_takes_bgr_keeps_the_order(recal, tmp_path, form):
    path = trained(tmp_path / "net.pth", replace(BYTES, channel_order="bgr"))
    words = ("--mean", "0", "--std", "1/255", "--channel-order", "bgr")
    assert recal("export", path, "-o", "net.onnx", *words, *form)[0] == 0
    network = create_network("wrn10_1", 10)
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    with torch.no_grad():
        images = PIXELS[:8, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        expected = network.eval()(torch.from_numpy(images)).numpy()
    exported = OnnxNetwork(tmp_path / "net.onnx")
    assert exported.record.model.channel_order == "bgr"
    found = exported.classify(PIXELS[:8], exported.record.model.normalisation)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_next_command_repeats_how_the_network_is_fed(recal, tmp_path, images):
    path = trained(tmp_path / "net.pth", replace(PLAIN, channel_order="bgr"))
    words = ("--mean", "0", "--std", "1", "--channel-order", "bgr")
    _, out, _ = recal("calibrate", path, "--data", images, "-o", "v.safetensors", *words)
    assert "--mean 0.0 --std 1.0 --channel-order bgr" in " ".join(out.split())


@pytest.mark.parametrize("value", ["half", "1/0", "as-assumed"])
def test_std_of_another_form_is_refused(recal, value):
    status, _, told = recal("inspect", "--std", value)
    assert status == 2
    assert "expected numbers such as" in told


def test_spec_describes_its_input_in_one_phrase():
    spec = ModelSpec(
        arch="wrn10_1", classes=10, family="cifar", mean=(0.0,) * 3, std=(1 / 255,) * 3, size=32,
        channel_order="bgr", input_from="layout",
    )  # fmt: skip
    assert spec.feeding == (
        "mean 0, std 1/255, channels in the order BGR (the convention of the layout's authors; "
        "the file names none)"
    )


def test_unlabelled_corrupted_suite_gives_no_false_alarm(tmp_path, images):
    path = trained(tmp_path / "net.pth", CIFAR)
    names = ["gaussian_noise", "contrast", "brightness", "pixelate"]
    run = evaluate(
        str(path), suite="cifar10c", data=images, corruptions=names, severities=[1, 5],
        output=tmp_path / "run",
    )  # fmt: skip
    assert not run.failures


def test_wide_resnet_with_the_spelling_of_augmix_is_recognised(tmp_path):
    state = torch.load(trained(tmp_path / "net.pth", CIFAR), weights_only=True)["state_dict"]
    renamed = {key.replace("convShortcut", "conv_shortcut"): t for key, t in state.items()}
    assert renamed.keys() != state.keys()
    torch.save({f"module.{key}": tensor for key, tensor in renamed.items()}, tmp_path / "a.pth")
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert checkpoint.spec.arch == "wrn10_1"
    from recal import build

    images = torch.from_numpy(normalise_array(PIXELS[:4], CIFAR))
    built = build(checkpoint)
    assert "block1.layer.0.conv_shortcut.weight" not in built.state_dict(), "equal widths"
    assert "block2.layer.0.conv_shortcut.weight" in built.state_dict()
    expected = build(load_checkpoint(tmp_path / "net.pth"))(images)
    torch.testing.assert_close(built(images), expected)


needs_shared = pytest.mark.skipif(
    not (SHARED / "checkpoints").is_dir(), reason="no ../shared next to the checkout"
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-10's test images in class folders."""
    import tarfile

    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(SHARED / "data" / "cifar10-jpeg.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@needs_shared
@pytest.mark.slow
@pytest.mark.filterwarnings("always::recal.RecalWarning")
def test_augmax_network_scores_what_its_authors_code_does(recal, cifar):
    path = SHARED / "checkpoints" / "wrn16_1_dubin_raw01_cifar10.pth"
    status, out, _ = recal("inspect", path, "--data", cifar, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["feeding"].startswith("mean 0, std 1 (the convention of the layout's authors")
    assert found["fits"]["fits"][0]["distances"]["main"] < 0.001
    for words in ((), ("--mean", "0", "--std", "1")):
        status, out, _ = recal(
            "eval", path, f"{path}:aux0", "--data", cifar, "-o", "run", "--json", *words
        )
        assert status == 0
        rows = json.loads(out)["summary"]
        assert [round(row["clean_accuracy"] * 10_000) for row in rows] == [7065, 6679]
    words = ("calibrate", path, "--data", cifar, "--samples", "512", "-o", "v.safetensors")
    assert "Input: mean 0, std 1 (the convention" in recal(*words)[1]
    status, _, told = recal(
        *words, "--mean", "0.4914,0.4822,0.4465", "--std", "0.247,0.2435,0.2616"
    )
    assert "fit mean 0, std 1 clearly better" in told


@needs_shared
@pytest.mark.slow
def test_augmax_network_without_a_known_layout_stops_with_the_options(recal, cifar, tmp_path):
    path = SHARED / "checkpoints" / "wrn16_1_dubin_raw01_cifar10.pth"
    assert recal("convert", path, "--variant", "main", "-o", "main.pth")[0] == 0
    for command in (("eval",), ("calibrate", "--mode", "clean"), ("inspect",)):
        status, _, told = recal(command[0], "main.pth", "--data", cifar, *command[1:])
        assert status == 2
        assert "Give --mean 0 --std 1, or" in told
    words = ("--data", cifar, "--mean", "0", "--std", "1", "-o", "run", "--json")
    rows = json.loads(recal("eval", "main.pth", *words)[1])["summary"]
    assert round(rows[0]["clean_accuracy"] * 10_000) == 7065


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn16_1_splitbn_cifar10", "wrn16_1_splitbn_noise_cifar10"])
def test_right_networks_give_no_alarm(recal, cifar, name):
    path = SHARED / "checkpoints" / f"{name}.pth"
    status, out, told = recal("inspect", path, "--data", cifar, "--samples", "200", "--json")
    assert status == 0, told
    assert json.loads(out)["fits"]["better"] is None
    for mode in ("clean", "weak", "strong"):
        made = f"{mode}.safetensors"
        words = ("--data", cifar, "--samples", "400", "--mode", mode, "-o", made)
        assert recal("calibrate", path, *words)[0] == 0
    variants = ("clean.safetensors", "weak.safetensors", "strong.safetensors")
    words = ("--checkpoint", path, "--data", cifar, "--limit", "300", "-o", "run")
    status, _, told = recal("eval", "main", "aux0", *variants, *words)
    assert status == 0, told
