"""What prepares the test images, a policy or a suite, does so in every command alike."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from recal import build, load_checkpoint
from recal.data.normalise import normalise_array
from recal.errors import InputError
from recal.evaluation.evaluate import evaluate
from recal.policies.policy import read_policy
from recal.runs.store import read_target_cell
from recal.variant.variant import branch_variant, load_variant, save_variant

PHOTO = """
summary = "Short side to 40 pixels, then the middle."

[[op]]
name = "resize"
size = 40
interpolation = "bilinear"

[[op]]
name = "center_crop"
"""
FLIP = "summary = 'Flipped.'\n[[op]]\nname = 'random_horizontal_flip'\n"


@pytest.fixture
def camera(tmp_path):
    """Twenty labelled pictures of 60x80 pixels, and the policies photo.toml and flip.toml."""
    rng = np.random.default_rng(0)
    for number in range(20):
        folder = tmp_path / "camera" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        picture.save(folder / f"{number:02d}.png")
    (tmp_path / "photo.toml").write_text(PHOTO, encoding="utf-8")
    (tmp_path / "flip.toml").write_text(FLIP, encoding="utf-8")
    return tmp_path / "camera"


def expected_classes(checkpoint, camera):
    """Resize with Pillow and cut by hand, and run the main branch in PyTorch."""
    loaded = load_checkpoint(checkpoint)
    pixels = []
    for path in sorted(camera.rglob("*.png")):
        with Image.open(path) as picture:
            small = picture.resize((53, 40), Image.Resampling.BILINEAR)
            # a surplus of 21 pixels is halved to even, as torchvision does
            pixels.append(np.asarray(small)[4:36, 10:42])
    inputs = normalise_array(np.stack(pixels), loaded.spec.normalisation)
    with torch.inference_mode():
        return build(loaded)(torch.from_numpy(inputs)).argmax(1).tolist()


@pytest.mark.slow
def test_a_policy_prepares_the_images_of_every_command(recal, split_checkpoint, camera, tmp_path):
    expected = expected_classes(split_checkpoint, camera)
    common = ["--data", camera, "--policy", "photo.toml"]
    status, _, err = recal("eval", split_checkpoint, *common, "-o", "run")
    assert status == 0, err
    cell = read_target_cell(tmp_path / "run", str(split_checkpoint), "clean")
    assert cell["prediction"].tolist() == expected
    status, out, err = recal("inspect", split_checkpoint, *common, "--json")
    assert status == 0, err
    assert '"accuracy"' in out
    status, _, err = recal("export", split_checkpoint, *common, "-o", "net.onnx")
    assert status == 0, err
    files = sorted(camera.rglob("*.png"))
    for options in ([], ["--policy", "photo.toml"]):  # as the file records, and as given
        status, out, err = recal("predict", "net.onnx", *files, *options, "--top", 1, "--format",
                                 "csv")  # fmt: skip
        assert status == 0, err
        assert [int(line.split(",")[2]) for line in out.splitlines()[1:]] == expected
    status, _, err = recal("eval", "net.onnx", "--data", camera, "-o", "run2")
    assert status == 0, err
    cell = read_target_cell(tmp_path / "run2", "net.onnx", "clean")
    assert cell["prediction"].tolist() == expected


@pytest.mark.parametrize("command", ["eval", "inspect", "export"])
def test_without_one_the_error_names_the_options(recal, split_checkpoint, camera, command):
    status, _, err = recal(command, split_checkpoint, "--data", camera)
    assert status == 3
    assert "the network takes 32x32 and no other size" in err
    assert "--crop-mode center" in err
    assert "--policy" in err


@pytest.mark.parametrize("command", ["eval", "inspect", "export"])
def test_random_policies_do_not_prepare_test_images(recal, split_checkpoint, camera, command):
    status, _, err = recal(command, split_checkpoint, "--data", camera, "--policy", "flip.toml")
    assert status == 2
    assert "--policy: expected a policy without random ops" in err


def suite_file(tmp_path, policy):
    path = tmp_path / "mine.toml"
    path.write_text(
        "title = 'Camera'\nfamily = 'cifar'\nclasses = 10\n"
        f"[clean]\nfolders = ['camera']\npolicy = '{policy}'\n",
        encoding="utf-8",
    )
    return path


def test_a_suite_names_the_policy_of_its_clean_images(split_checkpoint, camera, tmp_path):
    suite = suite_file(tmp_path, "photo.toml")
    run = evaluate(split_checkpoint, suite=str(suite), data=camera.parent, output=tmp_path / "run")
    cell = read_target_cell(run.folder, str(split_checkpoint), "clean")
    assert cell["prediction"].tolist() == expected_classes(split_checkpoint, camera)
    # what is given now overrides what the suite declares
    text = read_policy(tmp_path / "photo.toml").text.replace("40", "33")
    other = evaluate(
        split_checkpoint, suite=str(suite), data=camera.parent, output=tmp_path / "other",
        policy=text,
    )  # fmt: skip
    found = read_target_cell(other.folder, str(split_checkpoint), "clean")["nll"]
    assert not np.array_equal(found, cell["nll"])
    with pytest.raises(InputError, match="clean: policy: expected a policy without random ops"):
        evaluate(split_checkpoint, suite=str(suite_file(tmp_path, "flip.toml")), data=camera)


def saved(split_checkpoint, path, **given):
    checkpoint = load_checkpoint(split_checkpoint)
    variant = branch_variant(checkpoint, "aux0", spec=replace(checkpoint.spec, **given))
    save_variant(variant, path)
    return str(path)


def test_targets_that_are_prepared_in_two_ways_are_refused(split_checkpoint, camera, tmp_path):
    squash = saved(split_checkpoint, tmp_path / "squash.safetensors", crop_mode="squash")
    center = saved(split_checkpoint, tmp_path / "center.safetensors", crop_mode="center")
    for first, second in ((center, squash), (squash, center)):
        with pytest.raises(InputError, match="expected the preparation of the other targets"):
            evaluate([first, second], checkpoint=split_checkpoint, data=camera)
    photo = saved(split_checkpoint, tmp_path / "photo.safetensors", policy=PHOTO)
    other = saved(
        split_checkpoint, tmp_path / "other.safetensors", policy=PHOTO.replace("40", "36")
    )
    with pytest.raises(InputError, match="expected the policy that another target records"):
        evaluate([photo, other], checkpoint=split_checkpoint, data=camera)
    # a branch, which records nothing, takes what the variant records
    run = evaluate(
        ["main", photo], checkpoint=split_checkpoint, data=camera, output=tmp_path / "run"
    )
    (told,) = (w for w in run.summary.warnings if "as the other targets record" in w)
    assert told.startswith("main: ")
    assert "Short side to 40 pixels" in told
    cell = read_target_cell(run.folder, "main", "clean")
    assert cell["prediction"].tolist() == expected_classes(split_checkpoint, camera)


def test_calibration_on_a_published_set_says_that_it_is_used_whole(recal, tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet.r160_in1k", pretrained=False)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "net.pth")
    folder = tmp_path / "ImageNet-C" / "fog" / "3" / "n01440764"
    folder.mkdir(parents=True)
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.JPEG")
    for mode, whole in (("clean", True), ("weak", False)):
        status, _, err = recal(
            "calibrate", "net.pth", "--arch", "timm:test_efficientnet.r160_in1k", "--mode", mode,
            "--data", folder.parent, "--workers", 0, "-o", f"{mode}.safetensors",
        )  # fmt: skip
        assert status == 0, err
        assert ("all images have the size of prepared ones" in err) == whole
        assert load_variant(tmp_path / f"{mode}.safetensors").statistics.whole == whole
