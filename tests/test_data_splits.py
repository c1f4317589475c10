"""Splits are found at any depth, or a folder is refused: calibration never sees test images."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from recal.data.folders import find_images, open_images
from recal.data.splits import split_word
from recal.errors import InputError


def write(folder, *names):
    """Write one grey picture for each name; its level is its number."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(path)


def levels(source):
    return sorted(int(source[i][0, 0, 0]) for i in range(len(source)))


def packed(folder, path):
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=".")
    return path


CIFAR = [f"{split}/{name}/1.png" for split in ("train", "test") for name in ("cat", "dog")]


@pytest.mark.parametrize("above", ["", "mycifar/", "a/b/mycifar/"])
@pytest.mark.parametrize("tar", [False, True])
def test_splits_are_found_at_any_depth(tmp_path, above, tar):
    write(tmp_path / "sets", *(above + name for name in CIFAR))
    place = packed(tmp_path / "sets", tmp_path / "s.tar") if tar else tmp_path / "sets"
    train, test = (open_images(place, split) for split in ("train", "test"))
    assert (levels(train), levels(test)) == ([0, 1], [2, 3])
    assert train.classes == test.classes == ("cat", "dog")


@pytest.mark.parametrize("tar", [False, True])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mine/train/a/1.png", "other/train/a/1.png"], "one data set, got the splits"),
        (["mine/train/a/1.png", "mine/test/a/1.png", "new/1.png"], "beside new/1.png"),
        (["a/1.png", "a/test/2.png"], "the splits 'a/test' beside a/1.png"),
        (["a/1.png", "b/valid/2.png"], "Name the folder of one data set"),
        (["mine/test/a/1.png"], "only mine/test|expected images for 'train', got none"),
        (["a/1.png", "test/2.png"], "only test|expected images for 'train', got none"),
        (["a/1.png", "Valid/2.png"], "only Valid|expected images for 'train', got none"),
    ],
)
def test_test_images_are_never_taken_for_training_images(tmp_path, names, message, tar):
    write(tmp_path / "sets", *names)
    place = packed(tmp_path / "sets", tmp_path / "s.tar") if tar else tmp_path / "sets"
    with pytest.raises(InputError, match=message):
        open_images(place, "train")


def test_kaggles_imagenet_is_read_from_above(tmp_path):
    """Its test images have no labels, and its annotations are no images."""
    write(
        tmp_path, "ILSVRC/Data/CLS-LOC/train/n0/1.JPEG", "ILSVRC/Data/CLS-LOC/val/n0/1.JPEG",
        "ILSVRC/Data/CLS-LOC/test/1.JPEG",
    )  # fmt: skip
    for split in ("train", "val"):
        path = tmp_path / "ILSVRC" / "Annotations" / "CLS-LOC" / split / "n0" / "1.xml"
        path.parent.mkdir(parents=True)
        path.write_text("<x/>", encoding="utf-8")
    for place in (tmp_path, tmp_path / "ILSVRC", tmp_path / "ILSVRC" / "Data" / "CLS-LOC"):
        assert open_images(place, "train").where.name == "train"
        assert open_images(place, "test").where.name == "val"


def test_one_split_can_be_named(tmp_path):
    write(tmp_path, *CIFAR)
    assert levels(open_images(tmp_path / "test", "train")) == [2, 3]


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "far", "cat/1.png", "dog/1.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "again").symlink_to(tmp_path / "set")
    assert levels(open_images(tmp_path / "set", "train")) == [0, 1]


def test_a_place_for_data_sets_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "other/train/cat/1.png")
    with pytest.raises(InputError, match="expected images, got none"):
        find_images(None, ["imagenet"], "train", what="images")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train", "train"), ("Val", "val"), ("test_images", "test"), ("training-set", "training"),
        ("ILSVRC2012_img_val", "val"), ("validation", "validation"), ("test_tube", None),
        ("valley", None), ("trains", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_splits(name, word):
    assert split_word(name) == word
