"""Images become a network's input as timm makes them, to the pixel, whatever the network's size."""

import math
import re
import tarfile
import typing
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from recal import evaluate
from recal.cli.options import model_options
from recal.data.arrays import ArraySource
from recal.data.images import FileSource
from recal.data.normalise import normalise_array
from recal.data.sampling import keyed_draws
from recal.errors import InputError, UsageError
from recal.networks.completion import complete_spec, usual_preprocessing
from recal.networks.spec import ModelOverrides, ModelSpec
from recal.policies.families import load_family
from recal.policies.ops import Prepare, RandAugment
from recal.policies.policy import load_policy, policy_names
from recal.policies.preparation import CropMode, Interpolation, Preparation
from recal.policies.prepared import PreparedImages
from tests.saved_runs import MODEL

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample-500.tar.gz"

# sizes 160 to 300, crop shares 0.875 to 1, bilinear and bicubic, ImageNet's and Inception's mean
MODELS = (
    "tf_efficientnet_b1.ap_in1k",
    "tf_efficientnet_b2.ap_in1k",
    "inception_v3.tf_in1k",
    "test_efficientnet.r160_in1k",
    "resnet50.tv_in1k",
    "test_resnet.r160_in1k",
    "tf_efficientnetv2_s.in1k",
    "tf_efficientnetv2_b3.in21k_ft_in1k",
    "eca_halonext26ts.c1_in1k",
)
SHAPES = ((375, 500), (500, 333), (256, 341), (90, 120), (240, 240), (299, 300), (31, 200))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def spec_of(name, **given):
    overrides = ModelOverrides(arch=f"timm:{name}", classes=1000, **given)
    return complete_spec(overrides, ModelOverrides(), {})


def timms_input(name, pictures, args=None, **options):
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.models.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config(args or {}, config, **options))
    return [transform(Image.fromarray(picture)) for picture in pictures]


def recals_input(spec, pictures, tmp_path):
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number:03d}.png")
    files = tuple(tmp_path / f"{number:03d}.png" for number in range(len(pictures)))
    source = FileSource(tmp_path, files, None)
    images = PreparedImages(source, spec.clean_policy, 0, spec.preparation)
    batch = images.batch(range(len(pictures)))
    return torch.from_numpy(normalise_array(batch, spec.normalisation))


def assert_same(spec, name, pictures, tmp_path, args=None, **options):
    found = recals_input(spec, pictures, tmp_path)
    for mine, theirs in zip(found, timms_input(name, pictures, args, **options), strict=True):
        assert mine.shape == theirs.shape
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_those_of_timms_transform(name, tmp_path):
    pictures = [noise(*shape, seed) for seed, shape in enumerate(SHAPES)]
    assert_same(spec_of(name), name, pictures, tmp_path)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.875, 0.9, 1.0])
def test_every_crop_mode_is_timms(mode, share, tmp_path):
    name = "tf_efficientnet_b1.ap_in1k"
    pictures = [noise(*shape, seed) for seed, shape in enumerate(SHAPES)]
    args = {"crop_mode": mode, "crop_pct": share, "interpolation": "bilinear"}
    spec = spec_of(name, crop_mode=mode, crop_share=share, interpolation="bilinear")
    assert_same(spec, name, pictures, tmp_path, args)


def test_the_size_of_timms_tests_has_their_crop_share(tmp_path):
    name = "resnet50.b1k_in1k"
    assert (spec_of(name).size, spec_of(name).crop_share) == (224, 0.95)
    spec = spec_of(name, size=288)
    assert (spec.size, spec.crop_share) == (288, 1.0)
    pictures = [noise(375, 500), noise(300, 288)]
    assert_same(spec, name, pictures, tmp_path, use_test_size=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_b1.ap_in1k", "tf_efficientnetv2_s.in1k"])
def test_real_photographs_are_prepared_as_by_timm(name, tmp_path):
    if not PHOTOGRAPHS.is_file():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    with tarfile.open(PHOTOGRAPHS) as tar:
        some = [member for member in tar if member.isfile()][::50]
        pictures = [np.asarray(Image.open(tar.extractfile(m)).convert("RGB")) for m in some]
    assert_same(spec_of(name), name, pictures, tmp_path)


@pytest.mark.parametrize("size", [160, 240])
@pytest.mark.parametrize(
    "name", [n for n in policy_names("imagenet") if load_policy("imagenet", n).attack is None]
)
def test_every_policy_of_photographs_gives_the_networks_size(name, size):
    network = replace(load_family("imagenet").preparation, size=size)
    images = PreparedImages(
        ArraySource(Path(), noise(1, 300)[None].repeat(280, axis=1), None),
        load_policy("imagenet", name), 0, network,
    )  # fmt: skip
    assert images.read(0).shape == (size, size, 3)


@pytest.mark.parametrize(("size", "shift", "side"), [(224, 100, 112), (240, 108, 120)])
def test_shifts_and_squares_grow_with_the_network(size, shift, side):
    """timm's `create_transform` shifts by int(0.45 * size); 100 pixels at 224."""
    from timm.data.auto_augment import rand_augment_transform

    network = replace(load_family("imagenet").preparation, size=size)
    (augment,) = (o for o in load_policy("imagenet", "strong").ops if isinstance(o, RandAugment))
    uncovered = {"translate_const": shift, "img_mean": augment.fill}
    theirs = rand_augment_transform("rand-m9-n2-mstd0.5", uncovered)
    mine, picture = augment.transform(network), Image.fromarray(noise(size, size))
    for key in range(40):
        with keyed_draws(key):
            found = np.asarray(mine(picture))
        with keyed_draws(key):
            assert np.array_equal(found, np.asarray(theirs(picture)))
    (cut,) = (o for o in load_policy("imagenet", "cutout").ops if type(o).__name__ == "Cutout")
    white = Image.new("RGB", (size, size), "white")
    torch.manual_seed(0)
    assert (np.asarray(cut.transform(network)(white)) == 0).sum() == side * side * 3


def test_torchvisions_names_have_the_preparation_of_all_their_weights():
    from torchvision import models

    for name in ("inception_v3", "efficientnet_b1", "densenet121", "resnet50", "mnasnet1_3"):
        presets = [weights.transforms() for weights in models.get_model_weights(name)]
        found = usual_preprocessing(f"torchvision:{name}")
        assert all(preset.crop_size == [found.size] for preset in presets)
        if found.crop_share is not None:
            resized = math.floor(found.size / found.crop_share)
            assert all(preset.resize_size == [resized] for preset in presets)
        if found.interpolation is not None:
            assert all(p.interpolation.value == found.interpolation for p in presets)
    assert usual_preprocessing("torchvision:inception_v3").size == 299
    # its two sets of weights are resized differently
    assert usual_preprocessing("torchvision:resnet50").crop_share is None


def test_an_unknown_tag_of_timm_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match=r"no weights 'resnet50\.b9k'.*resnet50\.b1k_in1k"):
        spec_of("resnet50.b9k")


def photo_spec(size, **given):
    return replace(
        MODEL, family="imagenet", size=size, crop_share=0.875, crop_mode="center", **given
    )


@pytest.mark.parametrize(("size", "side"), [(224, 224), (240, 240), (240, 224), (160, 224)])
def test_a_set_that_was_prepared_before_is_used_whole(size, side):
    """Published corrupted images are 224x224: cropping them again would lose their border."""
    pixels = np.stack([noise(side, side, seed) for seed in range(3)])
    spec = photo_spec(size, interpolation="bilinear")
    images = PreparedImages(
        ArraySource(Path(), pixels, None), spec.clean_policy, 0, spec.preparation
    )
    assert images.whole
    for index in range(3):
        resized = Image.fromarray(pixels[index]).resize((size, size), Image.Resampling.BILINEAR)
        assert np.array_equal(images.read(index), np.asarray(resized))


def test_a_set_of_photographs_is_cropped_though_one_has_the_networks_size(tmp_path):
    pictures = [noise(224, 224), noise(300, 400)]
    spec = photo_spec(224)
    name = "tf_efficientnet_b0.in1k"
    for mine, theirs in zip(
        recals_input(spec, pictures, tmp_path),
        timms_input(name, pictures, {"mean": spec.mean, "std": spec.std}),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_options_are_those_of_the_records():
    @click.command()
    @model_options
    def command(overrides):
        pass

    kinds = {parameter.name: parameter.type for parameter in command.params}
    assert tuple(kinds["interpolation"].choices) == typing.get_args(Interpolation)
    assert tuple(kinds["crop_mode"].choices) == typing.get_args(CropMode)
    assert set(Preparation.__struct_fields__) - {"fill", "published"} <= set(
        ModelSpec.__struct_fields__
    )


def test_none_accepts_no_other_size():
    transform = Prepare().transform(Preparation(size=32))
    same = Image.new("RGB", (32, 32))
    assert transform(same) is same
    with pytest.raises(ValueError, match="32x32 and no other size"):
        transform(Image.new("RGB", (33, 32)))


def test_a_recorded_policy_draws_nothing():
    text = "summary = 'a'\n[[op]]\nname = 'random_horizontal_flip'\n"
    with pytest.raises(InputError, match="policy: expected one that prepares test images"):
        MODEL.overridden(ModelOverrides(policy=text))


@pytest.fixture
def photographs(tmp_path):
    """Two classes of ImageNet, two smooth pictures of 260x310 pixels each."""
    rng = np.random.default_rng(0)
    for wnid in ("n01440764", "n02123045"):
        (tmp_path / "imagenet" / wnid).mkdir(parents=True)
        for letter in "ab":
            small = rng.integers(0, 256, (5, 6, 3), np.uint8)
            picture = Image.fromarray(small).resize((310, 260), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "imagenet" / wnid / f"{letter}.JPEG", quality=95)
    return tmp_path / "imagenet"


@pytest.mark.parametrize("size", [160, 240])
def test_corrupted_images_are_those_of_224_pixels_resized(photographs, tmp_path, size):
    """Published or made on the fly: the same pixels, whatever the network's size."""
    from recal.datasets.generate import generate
    from recal.suites.locate import open_suite_images
    from recal.suites.suite import load_suite

    out = tmp_path / "ImageNet-C"
    generate("imagenetc", photographs, out, lambda *_: None, corruptions=["contrast"])
    suite, spec = load_suite("imagenetc"), photo_spec(size)
    cells = suite.cells(["contrast"], [3])
    written, here = (open_suite_images(suite, data, spec, cells) for data in (out, photographs))
    assert written.published is not None
    assert here.published is None
    files = sorted((out / "contrast" / "3").rglob("*.JPEG"))
    expected = []
    for path in files:
        with Image.open(path) as picture:
            assert picture.size == (224, 224)
            expected.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)))
    for images in (written, here):
        assert np.array_equal(images.read(cells[0], np.arange(4)), np.stack(expected))
        assert any(f"resized to the networks' {size}x{size}" in w for w in images.resizings(cells))
    # calibration on that folder sees the same images
    source = FileSource(out, tuple(files), None)
    prepared = PreparedImages(source, spec.clean_policy, 0, spec.preparation)
    assert prepared.whole
    assert np.array_equal(prepared.batch(range(4)), np.stack(expected))


@pytest.fixture
def small_network(tmp_path):
    """timm's test network of 160 pixels, with random weights."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet.r160_in1k", pretrained=False)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.slow
def test_a_network_of_its_own_size_goes_from_calibration_to_prediction(
    recal, small_network, photographs, tmp_path
):
    import onnxruntime

    from recal.runs.store import read_target_cell
    from recal.variant.variant import load_variant

    arch = ["--arch", "timm:test_efficientnet.r160_in1k"]
    for mode in ("clean", "weak", "strong"):
        status, out, err = recal(
            "calibrate", small_network, *arch, "--mode", mode, "--data", photographs,
            "--min-samples", 1, "--workers", 0, "-o", f"{mode}.safetensors",
        )  # fmt: skip
        assert status == 0, err
        assert re.search(r"Input: mean .*, 160 pixels, center crop of 0\.95, bicubic", out)
    spec = load_variant(tmp_path / "clean.safetensors").spec
    assert (spec.size, spec.crop_share, spec.crop_mode) == (160, 0.95, "center")
    run = evaluate(
        [tmp_path / "clean.safetensors"], checkpoint=small_network, suite="imagenetc",
        corruptions=["contrast"], severities=[1], data=photographs, output=tmp_path / "run",
    )  # fmt: skip
    assert len(run.summary.cells) == 2
    status, _, err = recal(
        "export", small_network, *arch, "--variant", "clean.safetensors", "-o", "net.onnx",
        "--samples", 8,
    )  # fmt: skip
    assert status == 0, err
    files = sorted(photographs.rglob("*.JPEG"))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    inputs = torch.stack(timms_input("test_efficientnet.r160_in1k", pictures)).numpy()
    (logits,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"input": inputs})
    expected = logits.argmax(1).tolist()
    cell = read_target_cell(run.folder, str(tmp_path / "clean.safetensors"), "clean")
    assert cell["prediction"].tolist() == expected
    status, out, err = recal("predict", "net.onnx", *files, "--top", 1, "--format", "csv")
    assert status == 0, err
    assert [int(line.split(",")[2]) for line in out.splitlines()[1:]] == expected
