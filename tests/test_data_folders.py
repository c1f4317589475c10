"""Every layout is read as the same images; malformed and hostile files are refused."""

import gzip
import pickle

import numpy as np
import pytest
from PIL import Image

from recal.data.folders import open_images
from recal.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write_cifar10(folder):
    flat = IMAGES.transpose(0, 3, 1, 2).reshape(6, -1)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        content = {b"data": flat, b"labels": LABELS.tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_cifar100(folder):
    flat = IMAGES.transpose(0, 3, 1, 2).reshape(6, -1)
    for name in ("train", "test"):
        content = {b"data": flat, b"fine_labels": LABELS.tolist(), b"coarse_labels": [9] * 6}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_npy(folder):
    np.save(folder / "test_images.npy", IMAGES)
    np.save(folder / "test_labels.npy", LABELS)


def write_npz(folder):
    np.savez(folder / "test.npz", images=IMAGES, labels=LABELS)


def write_class_folders(folder):
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        base = folder / "val" / f"n{label}"
        base.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(base / f"{i}.png")


@pytest.mark.parametrize(
    "write", [write_cifar10, write_cifar100, write_npy, write_npz, write_class_folders]
)
def test_layout_is_read_as_the_same_images_and_labels(tmp_path, write):
    write(tmp_path)
    source = open_images(tmp_path, "test")
    order = np.argsort(LABELS, kind="stable") if write is write_class_folders else np.arange(6)
    assert np.array_equal(np.stack([source[i] for i in range(6)]), IMAGES[order])
    assert np.array_equal(source.labels, LABELS[order])
    assert source.fingerprint([0, 1]) == open_images(tmp_path, "test").fingerprint([0, 1])
    assert source.fingerprint([0, 1]) != source.fingerprint([0, 2])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_give_grey_images_as_rgb(tmp_path, suffix):
    grey = IMAGES[:, :28, :28, 0]
    head = b"\0\0\x08\x03" + np.array(grey.shape, ">u4").tobytes()
    contents = {
        "t10k-images-idx3-ubyte": head + grey.tobytes(),
        "t10k-labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x06" + bytes(LABELS.tolist()),
    }
    for name, content in contents.items():
        packed = gzip.compress(content) if suffix else content
        (tmp_path / f"{name}{suffix}").write_bytes(packed)
    source = open_images(tmp_path, "test")
    assert np.array_equal(source[3], np.repeat(grey[3][:, :, None], 3, 2))
    assert np.array_equal(source.labels, LABELS)


@pytest.mark.parametrize("packed", [False, True])
def test_labels_in_one_column_are_read_as_labels(tmp_path, packed):
    if packed:
        np.savez(tmp_path / "test.npz", images=IMAGES, labels=LABELS[:, None])
    else:
        np.save(tmp_path / "images.npy", IMAGES)
        np.save(tmp_path / "labels.npy", LABELS[:, None])
    assert np.array_equal(open_images(tmp_path, "test").labels, LABELS)


def test_plain_images_have_no_labels(tmp_path):
    Image.fromarray(IMAGES[0]).convert("L").save(tmp_path / "b.png")
    Image.fromarray(IMAGES[1]).save(tmp_path / "a.png")
    source = open_images(tmp_path, "train")
    assert source.labels is None
    assert np.array_equal(source[0], IMAGES[1])
    assert source[1].shape == (32, 32, 3)


def test_training_and_test_images_are_kept_apart(class_folders):
    assert len(open_images(class_folders, "train")) == 60
    assert len(open_images(class_folders, "test")) == 40


class Runs:
    """A pickle that would write a file if it were loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_cifar_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Runs(tmp_path / "ran")}))
    with pytest.raises(InputError, match=r"test_batch.*open"):
        open_images(tmp_path, "test")
    assert not (tmp_path / "ran").exists()


def bad_shape(folder):
    np.save(folder / "images.npy", np.zeros((3, 4, 8, 8), np.uint8))


def bad_dtype(folder):
    np.save(folder / "images.npy", np.zeros((3, 8, 8, 3), np.float32))


def truncated(folder):
    np.save(folder / "images.npy", IMAGES)
    content = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(content[: len(content) // 2])


def objects(folder):
    np.save(folder / "images.npy", np.array([{}]), allow_pickle=True)


def short_labels(folder):
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "labels.npy", LABELS[:4])


def float_labels(folder):
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "labels.npy", LABELS / 2)


def one_hot_labels(folder):
    np.save(folder / "images.npy", IMAGES)
    np.save(folder / "labels.npy", np.eye(3, dtype=np.int64)[LABELS])


def no_npz(folder):
    (folder / "test.npz").write_bytes(b"no zip")


def npz_without_images(folder):
    np.savez(folder / "test.npz", pictures=IMAGES)


def truncated_gzip(folder):
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"0" * 999)[:20])


def other_idx(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + b"\0" * 40)


def idx_bomb(folder):
    shape = np.array([2**31, 2**31, 2**31], ">u4").tobytes()
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + b"\0" * 40)


def wrong_cifar(folder):
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": [1], b"labels": [1]}, protocol=2))


def empty(folder):
    (folder / "notes.txt").write_text("nothing to see", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (bad_shape, r"images of uint8 .*got uint8 \(3, 4, 8, 8\).*Put the channels last"),
        (bad_dtype, r"got float32 \(3, 8, 8, 3\)"),
        (truncated, "expected a whole NumPy file"),
        (objects, "without pickled objects"),
        (short_labels, r"expected integer labels \(6,\)"),
        (float_labels, "got float64"),
        (one_hot_labels, r"got int64 \(6, 3\), one column per class \(one-hot\).*argmax"),
        (no_npz, "expected a whole NumPy file"),
        (npz_without_images, "images"),
        (truncated_gzip, "whole gzip file"),
        (other_idx, "expected a whole idx file"),
        (idx_bomb, "expected a whole idx file"),
        (wrong_cifar, "expected one of CIFAR's own files"),
        (empty, "expected images for 'test', got none"),
    ],
)
def test_malformed_data_are_refused_by_name(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        open_images(tmp_path, "test")


def test_missing_folder_and_archive_are_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match="but it does not exist"):
        open_images(tmp_path / "none", "test")
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="Unpack it"):
        open_images(tmp_path / "cifar.tar.gz", "test")


def test_corrupt_image_is_refused_by_name(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(InputError, match=r"broken\.jpg: expected an image"):
        open_images(tmp_path, "test")[0]
