"""`recal policies`, policies of one's own, and mixes of policies."""

import numpy as np
import pytest
from PIL import Image

from recal.data.folders import open_images
from recal.data.sampling import keyed_draws, seeded_batches
from recal.errors import InputError, UsageError
from recal.policies.families import load_family
from recal.policies.policy import (
    Policy,
    load_policy,
    policy_names,
    policy_schema,
    read_policy,
    resolve_policy,
)
from recal.policies.prepared import PreparedImages
from recal.variant.variant import load_variant

SMALL = "summary = 'The middle.'\n[[op]]\nname = 'center_crop'\nsize = 16\n"
FLIPPED = "summary = 'Mirrored.'\n[[op]]\nname = 'random_horizontal_flip'\np = 1.0\n"
SAME = "summary = 'As it is.'\n"
MIX = (
    "summary = 'A quarter cropped.'\n"
    "[[part]]\npolicy = 'small'\nshare = 0.25\n[[part]]\npolicy = 'same'\nshare = 0.75\n"
)


CIFAR = load_family("cifar").preparation


@pytest.fixture
def mix_file(tmp_path):
    for name, text in (("small", SMALL), ("same", SAME), ("mix", MIX)):
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    return tmp_path / "mix.toml"


def test_list_names_every_policy(recal):
    status, out, _ = recal("policies")
    assert status == 0
    for name in ("trivialaugment", "augmix", "strong_noise", "half_strong", "randaugment"):
        assert name in out


def test_a_mix_gives_each_part_its_share_of_the_images(mix_file):
    policy = read_policy(mix_file)
    transform = policy.transform(CIFAR)
    white = np.full((32, 32, 3), 255, np.uint8)
    small = 0
    for image in range(800):
        with keyed_draws(0, image):
            small += transform(white).shape == (16, 16, 3)
    # binomial(800, 1/4): standard deviation 12
    assert 150 < small < 250
    assert SMALL in policy.text, "the record says what the parts do"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MIX.replace("0.75", "0.5"), "shares >= 0 of sum 1"),
        (MIX.replace("'small'", "'../small'"), "name of another policy beside this one"),
        (MIX.replace("'small'", "'mix'"), "name of another policy beside this one"),
        (MIX.replace("'small'", "'none'"), "cannot be read"),
        (MIX + "[[op]]\nname = 'pad'\nsize = 3\n", "got both"),
        (MIX.replace("share = 0.25", "shar = 0.25"), "Did you mean 'share'?"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix_file, text, message):
    mix_file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_policy(mix_file)
    assert message in str(caught.value)


def test_a_policy_is_read_again_from_its_recorded_text(mix_file):
    for policy in (
        read_policy(mix_file),
        *(load_policy("cifar", n) for n in policy_names("cifar")),
    ):
        assert Policy.from_text(policy.name, policy.text) == policy
    with pytest.raises(InputError, match="policy 'mix': expected the texts of 2 parts, got 1"):
        Policy.from_text("mix", MIX + "\n" + SAME)
    with pytest.raises(InputError, match="policy 'a': op 1: name: expected one of"):
        Policy.from_text("a", SAME + "[[op]]\nname = 'crop'\n")


def test_a_mix_of_mixes_is_refused(mix_file):
    (mix_file.parent / "small.toml").write_text(MIX.replace("small", "mix"), encoding="utf-8")
    with pytest.raises(InputError, match="part 1: expected a policy of ops alone, got 'small'"):
        read_policy(mix_file)


def test_a_policy_is_meant_by_name_file_or_itself(mix_file):
    mix = read_policy(mix_file)
    assert resolve_policy(mix, "cifar") is mix
    assert resolve_policy(mix_file, "cifar") == resolve_policy(str(mix_file), "cifar") == mix
    assert resolve_policy("weak", "tiny") == load_policy("tiny", "weak")
    with pytest.raises(UsageError, match="Did you mean 'weak'"):
        resolve_policy("week", "tiny")


def test_policy_files_have_a_json_schema():
    schema = policy_schema()
    assert schema["$defs"]["RandomCrop"]["properties"]["size"]["maximum"] == 16384


def test_calibrate_takes_a_policy_file(recal, split_checkpoint, class_folders, mix_file, tmp_path):
    mix_file.write_text(MIX.replace("'small'", "'flipped'"), encoding="utf-8")
    (tmp_path / "flipped.toml").write_text(FLIPPED, encoding="utf-8")
    status, out, _ = recal(
        "calibrate", split_checkpoint, "--policy", mix_file, "--data", class_folders,
        "--workers", 0, "-o", "v.safetensors",
    )  # fmt: skip
    assert status == 0
    assert "statistics of 'mix' images" in out
    assert FLIPPED in load_variant(tmp_path / "v.safetensors").statistics.policy_text


def cells_of(path, rows, side, scale):
    """Take the sheet apart: (rows, columns, side, side, 3)."""
    sheet = np.asarray(Image.open(path))
    width = side * scale
    columns = (sheet.shape[1] - 6) // (width + 6)
    return np.stack(
        [
            [
                sheet[top : top + width : scale, left : left + width : scale]
                for left in range(6, sheet.shape[1] - 6, width + 6)
            ]
            for top in (48 + 18 + row * (width + 24) for row in range(rows))
        ]
    ).reshape(rows, columns, side, side, 3)


def test_show_draws_the_clean_image_and_what_calibration_sees(recal, class_folders, tmp_path):
    status, out, _ = recal(
        "policies", "show", "strong", "--data", class_folders, "--samples", 3, "-o", "sheet.png",
        "--seed", 5,
    )  # fmt: skip
    assert status == 0
    assert "sheet.png: 924x408 pixels" in out  # 9 x 3 cells of 32, three times as large
    cells = cells_of(tmp_path / "sheet.png", 3, 32, 3)
    source = open_images(class_folders, "train")
    seen = seeded_batches(len(source), 3, 3, 5)[0]
    for row, index in zip(cells, seen, strict=True):
        assert np.array_equal(row[0], source[int(index)])
        for draw in range(8):
            images = PreparedImages(source, load_policy("cifar", "strong"), 5 + draw, CIFAR)
            assert np.array_equal(row[1 + draw], images.read(int(index)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strong"], "RandAugment rand-m9-n3-mstd0.5, then Gaussian noise"),
        (["weak", "--data", "large", "--samples", 1], "Random resized crop to the network's size"),
        (["weak", "--data", "small", "--samples", 1], "4-pixel reflected"),
        (["weak", "--data", "small", "--samples", 1, "--family", "imagenet"], "Random resized"),
    ],
)
def test_show_takes_the_family_that_suits_the_images(recal, tmp_path, arguments, said):
    (tmp_path / "large").mkdir()
    Image.new("RGB", (260, 230)).save(tmp_path / "large" / "1.png")
    (tmp_path / "small").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "small" / "1.png")
    status, out, _ = recal("policies", "show", *arguments, "-o", "sheet.jpg")
    assert (status, said in out) == (0, True)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_show_refuses_images_that_do_not_suit_the_policy(recal, tmp_path):
    for i, side in enumerate((20, 30)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    status, _, err = recal("policies", "show", "clean", "--data", ".")
    assert status == 3
    assert "png: expected an image that the policy 'clean' can be applied to, got " in err
    assert "the network takes 32x32 and no other size" in err
    assert not (tmp_path / "policy.png").exists()


def test_cutout_as_large_as_the_image_is_refused():
    from recal.policies.ops import Cutout

    picture = Image.new("RGB", (32, 32), "white")
    cut = np.asarray(Cutout(size=16).transform(CIFAR)(picture))
    assert (cut == 0).sum() == 16 * 16 * 3
    with pytest.raises(InputError, match="more than 32 pixels"):
        Cutout(size=32).transform(CIFAR)(picture)


@pytest.mark.slow
def test_an_onnx_file_is_recalibrated_under_a_policy_file(
    recal, split_checkpoint, class_folders, tmp_path
):
    (tmp_path / "flipped.toml").write_text(FLIPPED, encoding="utf-8")
    recal("export", split_checkpoint, "--patchable", "-o", "base.onnx")
    status, _, err = recal(
        "calibrate", "base.onnx", "--policy", "flipped.toml", "--data", class_folders
    )
    assert (status, err) == (0, "")
    found = load_variant(tmp_path / "base-flipped.safetensors")
    assert FLIPPED in found.statistics.policy_text


@pytest.mark.slow
def test_an_onnx_file_under_a_mix_of_policies_gives_the_same_bytes_each_time(
    recal, split_checkpoint, class_folders, tmp_path
):
    recal("export", split_checkpoint, "--patchable", "-o", "base.onnx")
    for name in ("a", "b"):
        status, _, err = recal(
            "calibrate", "base.onnx", "--mode", "half_strong", "--data", class_folders,
            "-o", f"{name}.safetensors",
        )  # fmt: skip
        assert (status, err) == (0, "")
    first, again = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("a", "b"))
    assert first == again
