"""Files that prepare images themselves: `recal export --preprocess`."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from recal import build, calibrate, evaluate, export_onnx, load_checkpoint, save_variant
from recal.data.normalise import normalise_array
from recal.errors import InputError, UsageError, VerificationError
from recal.export.forms import FLOAT_FORMS
from recal.export.preparation import prepared_by_pillow
from recal.onnx_file import preparing
from recal.onnx_file.engines import verify_alone
from recal.onnx_file.predict import network_spec
from recal.onnx_file.record import read_record
from recal.onnx_file.session import OnnxNetwork
from recal.runs.store import read_target_cell
from recal.variant.variant import branch_variant
from tests.test_onnx_file_preparing import smooth

PICTURES = [smooth(*sides, seed=seed) for seed, sides in enumerate([(60, 80), (81, 50), (40, 33)])]


@pytest.fixture(scope="module")
def checkpoint(split_checkpoint):
    return load_checkpoint(split_checkpoint).overridden(crop_mode="center", crop_share=0.8)


@pytest.fixture
def photographs(tmp_path):
    """Twenty pictures of different sizes in class folders."""
    for number in range(20):
        folder = tmp_path / "photographs" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = smooth(50 + 7 * number, 70 + 3 * number, seed=number)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return tmp_path / "photographs"


def prepared(picture):
    """Resize the short side to 40 pixels and cut 32 by hand, as the preparation says."""
    height, width = picture.shape[:2]
    sides = (40 * width // min(height, width), 40 * height // min(height, width))
    left, top = (round((side - 32) / 2) for side in sides)
    image = Image.fromarray(picture).resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + 32, top + 32)))


def expected_logits(checkpoint, branch="main"):
    pixels = np.stack([prepared(picture) for picture in PICTURES])
    inputs = normalise_array(pixels, checkpoint.spec.normalisation)
    with torch.inference_mode():
        return build(checkpoint, branch)(torch.from_numpy(inputs)).numpy()


@pytest.mark.parametrize("form", ["float32", "float16", "patchable", "switchable"])
def test_a_file_of_every_form_takes_pictures_of_any_size(checkpoint, tmp_path, form):
    names = ("main", "aux0") if form == "switchable" else ("aux0",)
    variants = {name: branch_variant(checkpoint, name) for name in names}
    path = tmp_path / "m.onnx"
    evidence = export_onnx(
        checkpoint, variants, path, form=FLOAT_FORMS[form], preprocess=True, pictures=PICTURES
    )
    proof = evidence.preparation
    assert (proof.images, proof.shapes, proof.changed) == (3, 3, 0)
    assert proof.largest <= 1
    assert proof.differing < 0.01
    record = read_record(onnx.load(path), str(path))
    assert record.options.preprocess
    assert record.preparation.images == 3
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    more = {"variant": np.array(1)} if form == "switchable" else {}
    found = [session.run(None, {"input": p[None], **more})[0][0] for p in PICTURES]
    wanted = expected_logits(checkpoint, "aux0")
    tolerance = 0.02 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance)
    assert np.abs(wanted - expected_logits(checkpoint)).max() > 5 * tolerance
    pair = np.stack([PICTURES[0], PICTURES[0][::-1]])
    (together,) = session.run(None, {"input": pair, **more})
    np.testing.assert_allclose(together[0], found[0], atol=tolerance)
    assert verify_alone(path).probe_difference < 5e-2


def test_commands_understand_such_a_file(recal, split_checkpoint, photographs, tmp_path):
    centre = ["--crop-mode", "center", "--crop-share", "0.8"]
    data = ["--data", photographs]
    for name, option in (("any.onnx", "--preprocess"), ("own.onnx", "--uint8")):
        status, out, err = recal(
            "export", split_checkpoint, *centre, *data, option, "--softmax", "-o", name
        )
        assert status == 0, err
        assert ("Prepared in the file, on 20 images" in out) == (option == "--preprocess")
    status, out, err = recal("verify", "any.onnx", "--checkpoint", split_checkpoint, *data)
    assert status == 0, err
    assert "same bytes" in out
    assert "0.00% of the predictions change" in out
    found = []
    for name in ("any.onnx", "own.onnx"):
        status, out, err = recal("predict", name, photographs, "--json", "--top", "10")
        assert status == 0, err
        rows = json.loads(out)["predictions"]
        pairs = [sorted((c["index"], c["probability"]) for c in row["classes"]) for row in rows]
        found.append(np.array(pairs))
    np.testing.assert_allclose(*found, atol=0.002)
    assert np.ptp(found[0][..., 1]) > 0.05
    status, _, err = recal("predict", "any.onnx", photographs, "--crop-share", "0.9")
    assert status == 2
    assert "--crop-share: expected 0.8, which is part of the graph, got 0.9" in err
    status, _, err = recal("predict", "own.onnx", photographs, "--mean", "0.5,0.5,0.5")
    assert status == 2
    assert "--mean: expected" in err
    status, out, err = recal("bench", "any.onnx", "own.onnx", "--batch-size", "2", "--runs", "2")
    assert status == 0, err


def test_evaluation_gives_the_numbers_of_the_same_network(checkpoint, class_folders, tmp_path):
    """Test images are prepared before, and the file takes them as they are."""
    found = []
    for name, given in (("any.onnx", {"preprocess": True}), ("own.onnx", {"uint8": True})):
        export_onnx(checkpoint, "main", tmp_path / name, pictures=PICTURES, **given)
        run = evaluate(
            [tmp_path / name], suite="cifar10c", data=class_folders,
            output=tmp_path / f"{name}.run", corruptions=["contrast"], severities=[3],
        )  # fmt: skip
        cell = read_target_cell(run.folder, str(tmp_path / name), "contrast-3")
        found.append(np.array(cell["nll"]))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_patchable_file_takes_other_variants(checkpoint, class_folders, tmp_path):
    from recal.onnx_file.patch import patch_file

    base, fresh = tmp_path / "base.onnx", tmp_path / "fresh.onnx"
    patchable = {"form": FLOAT_FORMS["patchable"], "preprocess": True, "pictures": PICTURES}
    export_onnx(checkpoint, "main", base, **patchable)
    variant = calibrate(checkpoint, mode="clean", data=class_folders)
    save_variant(variant, tmp_path / "clean.safetensors")
    export_onnx(checkpoint, variant, fresh, **patchable)
    patch_file(base, tmp_path / "clean.safetensors", tmp_path / "patched.onnx")
    verify_alone(tmp_path / "patched.onnx")
    patched, exported = (OnnxNetwork(tmp_path / name) for name in ("patched.onnx", "fresh.onnx"))
    np.testing.assert_array_equal(
        patched.outputs(PICTURES[0][None]), exported.outputs(PICTURES[0][None])
    )
    other = checkpoint.overridden(crop_share=0.9)
    save_variant(branch_variant(other, "aux0"), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"crop_share 0\.8, which is part of the graph"):
        patch_file(base, tmp_path / "other.safetensors", tmp_path / "no.onnx")


def test_a_file_that_prepares_otherwise_is_refused(checkpoint, tmp_path, monkeypatch):
    """The cubic filter of OpenCV and of old ONNX files, which is not Pillow's."""
    path = tmp_path / "m.onnx"
    monkeypatch.setitem(preparing.FILTERS, "bicubic", {"mode": "cubic", "cubic_coeff_a": -0.75})
    with pytest.raises(VerificationError, match="of the levels more than one from Pillow's"):
        export_onnx(checkpoint, "main", path, preprocess=True, pictures=[sharp(90, 120)])
    assert not path.exists()


def sharp(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_what_no_graph_repeats_is_refused_by_name(checkpoint, tmp_path):
    policy = "summary = 'Middle.'\n[[op]]\nname = 'center_crop'\n"
    for given, options, message in (
        ({}, {"any_size": True}, "--preprocess does not go with --any-size"),
        ({}, {"opset": 17}, "expected --opset 18 or later"),
        ({"interpolation": "lanczos"}, {}, "expected interpolation bicubic or bilinear"),
        ({"policy": policy}, {}, "got a policy of your own"),
    ):
        with pytest.raises(UsageError, match=message):
            export_onnx(
                checkpoint.overridden(**given), "main", tmp_path / "m.onnx", preprocess=True,
                **options,
            )  # fmt: skip
    for pictures, message in (([], "got none"), ([np.zeros((4, 4, 1), np.uint8)], "expected pict")):
        with pytest.raises(InputError, match=message):
            export_onnx(checkpoint, "main", tmp_path / "m.onnx", preprocess=True, pictures=pictures)
    assert not (tmp_path / "m.onnx").exists()


def test_a_network_that_resizes_nothing_takes_its_own_size_alone(
    recal, split_checkpoint, class_folders, photographs
):
    status, out, err = recal("export", split_checkpoint, "--preprocess", "-o", "m.onnx")
    assert status == 0, err
    assert "takes 32 x 32 pixels and refuses others" in err
    assert "Prepared in the file" not in out
    status, out, err = recal("predict", "m.onnx", class_folders / "test" / "class1")
    assert status == 0, err
    status, out, err = recal("predict", "m.onnx", photographs)
    assert status == 3
    assert "the network takes 32x32 and no other size" in err


def test_int8_files_prepare_images_too(recal, split_checkpoint, class_folders, tmp_path):
    status, out, err = recal(
        "export", split_checkpoint, "--crop-mode", "center", "--int8", "--preprocess", "--data",
        class_folders, "--max-drop", "1", "-o", "m.onnx",
    )  # fmt: skip
    assert status == 0, err
    assert "Prepared in the file" in out
    network = OnnxNetwork(tmp_path / "m.onnx")
    assert network.prepares
    assert network_spec(network, load_checkpoint(split_checkpoint).overrides, "m").size == 32
    assert network.outputs(PICTURES[1][None]).shape == (1, 10)


def test_padding_and_channels_in_reverse_order_are_those_of_the_uint8_file(
    split_checkpoint, tmp_path
):
    loaded = load_checkpoint(split_checkpoint).overridden(
        crop_mode="border", channel_order="bgr", mean=(0.2, 0.5, 0.8)
    )
    for name, given in (("any.onnx", {"preprocess": True}), ("own.onnx", {"uint8": True})):
        export_onnx(loaded, "main", tmp_path / name, pictures=PICTURES, **given)
    spec, own = loaded.spec, OnnxNetwork(tmp_path / "own.onnx")
    assert spec.preparation.fill == (51, 128, 204)
    found = OnnxNetwork(tmp_path / "any.onnx").outputs(PICTURES[1][None])
    wanted = own.outputs(prepared_by_pillow(spec, PICTURES[1])[None])
    flipped = own.outputs(prepared_by_pillow(spec, PICTURES[1])[None, ..., ::-1].copy())
    assert np.abs(found - wanted).max() < 0.05 * np.abs(flipped - wanted).max()
