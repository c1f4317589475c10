"""`recal predict`, as people call it."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from recal import build, load_checkpoint
from recal.data.normalise import normalise_array


@pytest.fixture
def model(exported, class_names, tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported("--class-names", class_names))
    return tmp_path / "m.onnx"


@pytest.fixture(scope="session")
def class_names(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text("\n".join("abcdefghij"), encoding="utf-8")
    return str(path)


def test_predictions_are_those_of_the_network(recal, model, split_checkpoint, class_folders):
    folder = class_folders / "test" / "class3"
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])
    checkpoint = load_checkpoint(split_checkpoint)
    spec = checkpoint.spec
    with torch.no_grad():
        images = torch.from_numpy(normalise_array(pixels, spec.normalisation))
        expected = build(checkpoint)(images).softmax(1).numpy()
    status, out, err = recal("predict", model, folder, "--json", "--top", "3")
    assert status == 0, err
    rows = json.loads(out)["predictions"]
    assert [row["image"] for row in rows] == [str(p) for p in sorted(folder.iterdir())]
    for row, own in zip(rows, expected, strict=True):
        order = np.argsort(-own)[:3]
        assert [c["index"] for c in row["classes"]] == order.tolist()
        assert [c["name"] for c in row["classes"]] == ["abcdefghij"[i] for i in order]
        found = [c["probability"] for c in row["classes"]]
        np.testing.assert_allclose(found, own[order], atol=1e-5)
    _, out, _ = recal("predict", model, folder, "--format", "csv", "--top", "2")
    table = list(csv.DictReader(io.StringIO(out)))
    assert len(table) == 2 * len(rows)
    assert table[0]["name"] == rows[0]["classes"][0]["name"]
    _, out, _ = recal("predict", model, folder / "0.png")
    assert "0.png: " in out
    assert " %" in out


@pytest.mark.parametrize("form", [[], ["--format", "csv"], ["--json"]])
def test_the_others_are_classified_where_an_image_is_broken(
    recal, model, class_folders, tmp_path, form
):
    folder = class_folders / "test" / "class1"
    _, expected, _ = recal("predict", model, folder, *form)
    (tmp_path / "odd.png").write_bytes(b"no picture")
    status, out, err = recal("predict", model, "odd.png", folder, *form)
    assert (status, out) == (3, expected)
    assert "failed: odd.png: expected an image" in err
    assert "1 of 5 images cannot be decoded" in err


def test_bad_images_are_named(recal, model, class_folders, tmp_path):
    (tmp_path / "odd.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("odd.png", "expected an image"),
        ("large.png", "got 40x30 pixels: the network takes 32x32"),
        ("none.png", "but it does not exist"),
        ("empty", "expected images, got none"),
    ):
        status, _, err = recal("predict", model, path)
        assert status == 3, err
        assert message in err
