"""Tar files are read in place as the same images as unpacked; hostile ones are refused."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from recal.data.batches import Batches
from recal.data.folders import find_images, open_images
from recal.data.tars import open_tars
from recal.errors import InputError
from recal.policies.families import load_family
from recal.policies.policy import load_policy
from recal.policies.prepared import PreparedTogether

RNG = np.random.default_rng(0)


def png(value=None):
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) if value is None else value
    content = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), pixels, np.uint8)).save(content, "PNG")
    return content.getvalue()


def pack(path, contents):
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def tar_of(contents):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, part in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            tar.addfile(entry, io.BytesIO(part))
    return content.getvalue()


@pytest.mark.parametrize("top", [None, "photos"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tar_file_is_read_as_the_folder_that_it_packs(class_folders, tmp_path, top, split):
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(class_folders, arcname=top or ".")
    unpacked, packed = open_images(class_folders, split), open_images(path, split)
    assert packed.classes == unpacked.classes
    assert np.array_equal(packed.labels, unpacked.labels)
    for index in range(len(unpacked)):
        assert np.array_equal(packed[index], unpacked[index])
    assert len(packed) == len(unpacked)
    chosen = [3, 1, 7]
    assert packed.fingerprint(chosen) == unpacked.fingerprint(chosen)


def test_a_folder_of_tars_and_a_tar_of_tars_have_a_class_each(tmp_path):
    classes = {f"n{i}": {f"n{i}_{j}.png": png(40 * i + j) for j in range(3)} for i in range(2)}
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, contents in classes.items():
        pack(folder / f"{name}.tar", contents)
    outer = pack(tmp_path / "outer.tar", {f"{n}.tar": tar_of(c) for n, c in classes.items()})
    for source in (open_images(folder, "train"), open_images(outer, "train")):
        assert source.classes == ("n0", "n1")
        assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert [int(source[i][0, 0, 0]) for i in range(6)] == [0, 1, 2, 40, 41, 42]


def test_a_folder_inside_is_taken_by_its_path_and_its_folders_are_the_classes(tmp_path):
    names = [f"{kind}/{s}/n{c}/{i}.png" for kind in ("fog", "fogbow") for s in (1, 2)
             for c in (0, 1) for i in (0, 1)]  # fmt: skip
    path = pack(tmp_path / "weather.tar", {name: png(i) for i, name in enumerate(names)})
    everything = open_tars(path)
    assert everything.folders() == {"fog", "fogbow"}
    fog = everything.below("fog/2")
    assert fog.classes == ("n0", "n1")
    assert fog.labels.tolist() == [0, 0, 1, 1]
    assert [int(fog[i][0, 0, 0]) for i in range(4)] == [4, 5, 6, 7]
    assert len(everything.below("fog/3")) == 0


def test_other_splits_in_a_tar_file_are_named(tmp_path):
    packed = pack(tmp_path / "images.tar", {"top/val/a/1.png": png(1), "top/val/b/2.png": png(2)})
    assert len(open_images(packed, "test")) == 2
    for data in (packed, tmp_path):
        with pytest.raises(InputError, match="expected images for 'train', got only top/val"):
            open_images(data, "train")


def test_tars_named_for_splits_are_the_splits(tmp_path):
    pack(tmp_path / "train.tar", {"a/1.png": png(1), "b/1.png": png(2)})
    pack(tmp_path / "val.tar", {"a/2.png": png(3), "b/2.png": png(4)})
    assert [int(open_images(tmp_path, "test")[i][0, 0, 0]) for i in (0, 1)] == [3, 4]
    assert len(open_images(tmp_path, "train")) == 2


def test_a_packed_folder_of_plain_images_is_read_as_that_folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(i))
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(folder, arcname="trip/photos")
    packed, unpacked = (open_images(tmp_path / n, "train") for n in ("photos.tar", "photos"))
    assert packed.labels is None
    assert packed.fingerprint([0, 1, 2]) == unpacked.fingerprint([0, 1, 2])


def test_tars_in_a_place_for_data_sets_are_taken_by_name_only(tmp_path, monkeypatch):
    monkeypatch.setenv("RECAL_DATA", str(tmp_path))
    pack(tmp_path / "blur.tar", {"blur/1/n0/1.png": png(1)})
    with pytest.raises(InputError, match="expected images, got none"):
        find_images(None, ["imagenet"], "train", what="images")
    (tmp_path / "imagenet").mkdir()
    pack(tmp_path / "imagenet" / "n0.tar", {"1.png": png(7)})
    for data in (None, tmp_path):
        source = find_images(data, ["imagenet"], "train", what="images")
        assert int(source[0][0, 0, 0]) == 7


def test_images_without_folders_have_no_labels_and_other_files_are_passed_over(tmp_path):
    path = pack(
        tmp_path / "a.tar", {"2.png": png(2), "1.png": png(1), "._1.png": b"", "list.txt": b"1"}
    )
    source = open_images(path, "train")
    assert source.labels is None
    assert [int(source[i][0, 0, 0]) for i in range(len(source))] == [1, 2]


def test_workers_read_a_tar_as_this_process_does(class_folders, tmp_path):
    path = tmp_path / "all.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(class_folders, arcname="")
    cifar = load_family("cifar").preparation
    images = PreparedTogether(open_images(path, "train"), [load_policy("cifar", "weak")], 0, cifar)
    images.batch_all([0])
    batches = [np.arange(8), np.arange(8, 20), np.arange(20, 60)]
    here, there = (list(Batches(images, batches, workers=workers)) for workers in (0, 2))
    assert all(np.array_equal(a, b) for (a,), (b,) in zip(here, there, strict=True))


def linked(kind):
    def spoil(path):
        with tarfile.open(path, "w") as tar:
            entry = tarfile.TarInfo("a/1.png")
            entry.type, entry.linkname = kind, "/etc/hostname"
            tar.addfile(entry)

    return spoil


def negative(path):
    pack(path, {"1.png": png()})
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 12  # -1 in base 256
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)


def cut(length):
    def spoil(path):
        pack(path, {"1.png": png(), "2.png": png()})
        path.write_bytes(path.read_bytes()[:length])

    return spoil


def damaged_header(path):
    pack(path, {"1.png": png(1), "2.png": png(2)})
    content = bytearray(path.read_bytes())
    second = content.index(b"2.png")
    content[second + 100 : second + 200] = b"x" * 100
    path.write_bytes(content)


def compressed(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))


def damaged_inside(path):
    pack(path, {"n0.tar": b"no archive" * 100})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (linked(tarfile.SYMTYPE), "no plain file or folder"),
        (linked(tarfile.LNKTYPE), "no plain file or folder"),
        (linked(tarfile.CHRTYPE), "no plain file or folder"),
        (linked(tarfile.FIFOTYPE), "no plain file or folder"),
        (lambda path: pack(path, {"/1.png": png()}), "leads out of it"),
        (lambda path: pack(path, {"a/../../1.png": png()}), "leads out of it"),
        (lambda path: path.write_bytes(tar_of({"n.tar": tar_of({"../1.png": b""})})), "leads out"),
        (negative, "whole tar archive|no plain file"),
        (cut(700), "whole tar archive|ends in the middle"),
        (cut(100), "whole tar archive"),
        (damaged_header, "got damage at"),
        (damaged_inside, "whole tar archive"),
        (compressed, "without compression, got another file .* Unpack it"),
        (lambda path: path.write_bytes(b""), "whole tar archive"),
        (lambda path: pack(path, {}), "expected images for 'train', got none"),
        (lambda path: pack(path, {"list.txt": b"1"}), "expected images for 'train', got none"),
    ],
)
def test_a_hostile_or_damaged_tar_is_refused_by_name(tmp_path, spoil, message):
    path = tmp_path / "bad.tar"
    spoil(path)
    with pytest.raises(InputError, match=message) as caught:
        open_images(path, "train")
    assert "bad.tar" in str(caught.value)


def test_the_same_name_twice_is_refused(tmp_path):
    path = tmp_path / "twice.tar"
    with tarfile.open(path, "w") as tar:
        for value in (1, 2):
            entry, content = tarfile.TarInfo("1.png"), png(value)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(InputError, match=r"same name twice, '1\.png'"):
        open_images(path, "train")


def test_a_broken_image_inside_is_named_with_its_archive(tmp_path):
    path = pack(tmp_path / "a.tar", {"x/1.png": png()[:60]})
    with pytest.raises(InputError, match=r"a\.tar: x/1\.png: expected an image"):
        open_images(path, "train")[0]
