"""Published sets: folders, arrays and tar files give the same images; faults are named."""

import shutil
import tarfile

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from recal import evaluate
from recal.data.arrays import tarred_arrays
from recal.errors import InputError
from recal.suites.locate import check_pixels, open_suite_images
from recal.suites.suite import Cell, load_suite, read_suite
from tests.published_sets import SUITE, add_member, pack, pictures, write_folders, write_suite
from tests.saved_runs import MODEL

EVERY = np.arange(20)
PHOTOS = replace(MODEL, family="imagenet", size=224, crop_mode="center", crop_share=0.875)


@pytest.fixture
def small(tmp_path):
    """A suite of two corruptions at two severities, in ImageNet-C's layout: 20 images a cell."""
    return read_suite(write_suite(tmp_path)), write_folders(tmp_path / "data" / "Small-C")


def opened(suite, data, **options):
    cells = suite.cells()
    images = open_suite_images(suite, data, MODEL, cells, **options)
    check_pixels(images, cells)
    return images


def test_folders_are_read_as_their_files_say(small, tmp_path):
    suite, folder = small
    images = opened(suite, folder.parent)
    assert images.clean is None
    cell = Cell("snow", 2)
    assert images.chosen(cell).labels.tolist() == np.repeat(range(10), 2).tolist()
    paths = sorted((folder / "snow" / "2").rglob("*.JPEG"))
    expected = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert np.array_equal(images.read(cell, EVERY), expected)
    assert np.array_equal(images.read(cell, np.array([7, 3])), expected[[7, 3]])


@pytest.mark.parametrize("form", ["beside", "inside", "several", "named", "deeper"])
def test_tar_files_are_read_in_place_as_their_folders_are(small, tmp_path, form):
    """Wherever the archive is and whatever lies above the corruptions in it."""
    suite, folder = small
    plain = opened(suite, folder)
    data = tmp_path / "packed"
    if form == "deeper":
        for name in ("fog", "snow"):
            shutil.copytree(folder / name, data / "Small-C" / "weather" / name)
        where = data
    else:
        (data / "Small-C").mkdir(parents=True)
        where = data
        if form == "beside":
            (data / "Small-C").rmdir()
            pack(folder, data / "Small-C.tar", "Small-C/")
        elif form == "inside":
            pack(folder, data / "Small-C" / "weather.tar", "./")
        elif form == "several":
            for name in ("fog", "snow"):
                pack(folder / name, data / "Small-C" / f"{name}.tar", f"{name}/")
        else:
            where = pack(folder, data / "any.tar", "a/b/")
    images = opened(suite, where)
    for cell in suite.cells():
        assert np.array_equal(images.read(cell, EVERY), plain.read(cell, EVERY))
        assert images.fingerprint(cell) == plain.fingerprint(cell)
        assert images.size_in_bytes(cell) == plain.size_in_bytes(cell)


def test_arrays_inside_a_tar_file_are_mapped_where_they_stand(tmp_path, split_checkpoint):
    text = SUITE.replace('"folders"', '"arrays"').replace("rows = 20", "rows = 4")
    suite = read_suite(write_suite(tmp_path, text))
    folder = tmp_path / "data" / "Small-C"
    folder.mkdir(parents=True)
    for seed, name in enumerate(suite.corrupted.corruptions):
        np.save(folder / f"{name}.npy", pictures(8, seed))
    np.save(folder / "labels.npy", np.array([3, 1, 4, 1] * 2, np.uint8))
    archive = pack(folder, tmp_path / "Small-C.tar", "Small-C/")
    plain, packed = opened(suite, folder), opened(suite, archive)
    for cell in suite.cells():
        assert isinstance(packed.source(cell).images.base, np.memmap)
        assert np.array_equal(packed.read(cell, np.arange(4)), plain.read(cell, np.arange(4)))
        assert packed.fingerprint(cell) == plain.fingerprint(cell)
    one = evaluate([str(split_checkpoint)], suite=suite, data=folder, output=tmp_path / "a")
    two = evaluate([str(split_checkpoint)], suite=suite, data=archive, output=tmp_path / "b")
    assert one.summary.cells == two.summary.cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "snow"), "got one without snow"),
        (lambda f: (f / "snow").rename(f / "snwo"), "without snow. Is it 'snwo'"),
        (lambda f: shutil.rmtree(f / "fog" / "2"),
         "fog: expected the severities 1, 2 as folders, got 1"),
        (lambda f: (f / "fog" / "0").mkdir(), "got 0, 1, 2"),
        (lambda f: (f / "fog" / "1" / "class3" / "007.JPEG").unlink(),
         "fog-1: expected 20 images, got 19"),
        (lambda f: (f / "fog" / "1" / "class3" / "007.JPEG").rename(f / "fog/1/class3/070.JPEG"),
         r"the same images in every cell, got 'class3/007\.JPEG' in fog-2 and not in fog-1"),
        (lambda f: (f / "snow" / "2" / "class0").rename(f / "snow" / "2" / "class00"),
         "in snow-2 and not in fog-1|in fog-1 and not in snow-2"),
        (lambda f: Image.new("RGB", (40, 32)).save(f / "snow" / "1" / "class0" / "000.JPEG"),
         "snow-1, image 0: expected 32x32 pixels, which the networks take, got 40x32"),
        (lambda f: (f / "snow" / "1" / "class0" / "000.JPEG").write_bytes(b"\xff\xd8no"),
         r"000\.JPEG: expected an image, got a file that cannot be decoded"),
    ],
)  # fmt: skip
def test_structural_faults_are_refused_before_any_work(
    small, tmp_path, split_checkpoint, change, message
):
    suite, folder = small
    change(folder)
    with pytest.raises(InputError, match=message):
        evaluate([str(split_checkpoint)], suite=suite, data=folder, output=tmp_path / "run")
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_part_of_a_set_is_enough_for_a_part_of_the_cells(small, tmp_path):
    suite, folder = small
    shutil.rmtree(folder / "snow")
    cells = suite.cells(["fog"], [2])
    assert open_suite_images(suite, folder, MODEL, cells).provenance == "published files"


def test_rows_of_a_part_of_the_classes_are_enough(tmp_path):
    """A declared number of rows asks for no class that so few images may lack."""
    text = SUITE.replace("classes = 10", 'classes = 1000\norder = "numbers"')
    suite = read_suite(write_suite(tmp_path, text))
    folder = write_folders(tmp_path / "Small-C")
    for path in sorted(folder.glob("*/*/class*")):
        path.rename(path.with_name(path.name.replace("class", "70")))
    images = opened(suite, folder)
    assert sorted(set(images.of_corrupted.labels)) == [*range(700, 710)]


@pytest.mark.parametrize("kept", ["one severity", "one corruption"])
@pytest.mark.parametrize("place", ["inside", "beside"])
def test_what_a_half_unpacked_folder_lacks_is_read_from_its_tar_file(small, tmp_path, kept, place):
    suite, folder = small
    whole = opened(suite, folder)
    expected = {c: (whole.read(c, EVERY), whole.fingerprint(c)) for c in suite.cells()}
    archive = pack(folder, tmp_path / "x.tar", "./")
    archive.rename(folder / "x.tar" if place == "inside" else folder.with_name("Small-C.tar"))
    shutil.rmtree(folder / "snow")
    if kept == "one severity":
        shutil.rmtree(folder / "fog" / "2")
        (folder / "fog" / "1" / "class3" / "007.JPEG").unlink()  # it was being unpacked
    images = opened(suite, folder.parent)
    for cell, (pixels, fingerprint) in expected.items():
        assert np.array_equal(images.read(cell, EVERY), pixels)
        assert images.fingerprint(cell) == fingerprint


def write_arrays(tmp_path, split=False):
    text = SUITE.replace('"folders"', '"arrays"').replace("rows = 20", "rows = 4")
    folder = tmp_path / "data" / "Small-C"
    folder.mkdir(parents=True)
    suite = read_suite(write_suite(tmp_path, text))
    for seed, name in enumerate(suite.corrupted.corruptions):
        whole = pictures(8, seed)
        for number in (1, 2) if split else ():
            np.save(folder / f"{name}_{number}.npy", whole[4 * number - 4 : 4 * number])
        if not split:
            np.save(folder / f"{name}.npy", whole)
    np.save(folder / "labels.npy", np.array([3, 1, 4, 1], np.uint8))
    return suite, folder


def test_arrays_of_one_severity_each_are_read(tmp_path):
    suite, folder = write_arrays(tmp_path / "a")
    whole = opened(suite, folder)
    _, folder = write_arrays(tmp_path / "b", split=True)
    images = opened(suite, folder)
    for cell in suite.cells():
        assert np.array_equal(images.read(cell, np.arange(4)), whole.read(cell, np.arange(4)))
    (folder / "snow_2.npy").unlink()
    with pytest.raises(InputError, match=r"got one without snow\.npy"):
        opened(suite, folder)


def test_arrays_that_are_not_unpacked_are_read_from_the_tar_file(tmp_path):
    suite, folder = write_arrays(tmp_path)
    expected = {cell: opened(suite, folder).read(cell, np.arange(4)) for cell in suite.cells()}
    pack(folder, folder.with_name("Small-C.tar"), "Small-C/")
    (folder / "snow.npy").unlink()
    (folder / "labels.npy").unlink()
    images = opened(suite, folder.parent)
    for cell, pixels in expected.items():
        assert np.array_equal(images.read(cell, np.arange(4)), pixels)


@pytest.mark.parametrize("name", ["small-c", "SMALL_C", "smallC"])
def test_folders_of_mirrors_are_found_by_their_letters(small, name):
    suite, folder = small
    folder.rename(folder.with_name(name))
    assert opened(suite, folder.parent).provenance == "published files"


def test_compressed_archives_are_named_and_clean_images_are_not_corrupted_instead(tmp_path):
    text = SUITE.replace("size = 32", 'size = 32\nparameters = "cifar"')
    suite = read_suite(write_suite(tmp_path, text))
    write_folders(tmp_path / "data" / "x", corruptions=["fog"], severities=[1])
    (tmp_path / "data" / "x" / "fog" / "1").rename(tmp_path / "data" / "small")
    data = tmp_path / "data"
    assert opened(suite, data).published is None
    (data / "small-c.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"small-c\.tar\.gz: .* compressed archive. Unpack it"):
        opened(suite, data)
    (data / "Small-C").mkdir()
    (data / "Small-C" / "noise.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"such as fog/1/<class>/, got none .* Unpack noise\.zip"):
        opened(suite, data)


def test_a_class_too_few_is_refused(small):
    suite, folder = small
    for cell in suite.cells():
        base = folder / cell.corruption / str(cell.severity)
        for path in (base / "class9").iterdir():
            path.rename(base / "class8" / f"x{path.name}")
        (base / "class9").rmdir()
    with pytest.raises(InputError, match="expected 10 class folders, got 9"):
        opened(suite, folder)


def test_regenerated_sets_may_be_smaller_and_say_so(small):
    suite, folder = small
    for path in folder.rglob("00[13579].JPEG"):
        path.unlink()
    for path in folder.rglob("01[13579].JPEG"):
        path.unlink()
    with pytest.raises(InputError, match="expected 20 images, got 10"):
        opened(suite, folder)
    (folder / "PROVENANCE.json").write_text(
        '{"label": "regenerated: by somebody"}', encoding="utf-8"
    )
    assert opened(suite, folder).provenance == "regenerated: by somebody"


def test_a_corrupt_image_is_named_and_fails_its_cell_alone(small, tmp_path, split_checkpoint):
    suite, folder = small
    (folder / "snow" / "2" / "class7" / "015.JPEG").write_bytes(b"no image")
    targets = [str(split_checkpoint), f"{split_checkpoint}:aux0"]
    run = evaluate(targets, suite=suite, data=folder, output=tmp_path / "run", batch_size=8)
    (failure,) = run.failures
    assert failure.startswith("snow-2: ")
    assert "class7/015.JPEG" in failure
    assert len(run.summary.cells) == 3 * 2


ODD = [
    ({"name": "fog/1/class0/x.JPEG", "type": tarfile.SYMTYPE, "linkname": "/x"}, "no plain file"),
    ({"name": "fog/1/class0/x.JPEG", "type": tarfile.LNKTYPE, "linkname": "a"}, "no plain file"),
    ({"name": "fog/1/class0/x.JPEG", "type": tarfile.FIFOTYPE}, "no plain file"),
    ({"name": "../fog/1/class0/x.JPEG"}, "leads out of it"),
]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        *ODD,
        ({"name": "fog/1/class0/000.JPEG"}, r"holds the same name twice, 'fog/1/class0/000\.JPEG'"),
    ],
)
def test_odd_members_of_a_tar_file_of_images_are_refused(small, tmp_path, member, message):
    suite, folder = small
    archive = pack(folder, tmp_path / "x.tar")
    add_member(archive, **member)
    with pytest.raises(InputError, match=message):
        opened(suite, archive)


@pytest.mark.parametrize(("member", "message"), [*ODD, ({"name": "x/fog.npy"}, "twice|NumPy")])
def test_odd_members_of_a_tar_file_of_arrays_are_refused(tmp_path, member, message):
    np.save(tmp_path / "fog.npy", np.zeros(3))
    archive = pack(tmp_path, tmp_path / "x.tar")
    add_member(archive, **member)
    with pytest.raises(InputError, match=message):
        tarred_arrays(archive)


def test_arrays_of_objects_or_cut_off_are_refused(tmp_path):
    np.save(tmp_path / "fog.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "snow.npy", np.zeros(5))
    with pytest.raises(InputError, match=r"fog\.npy: expected a whole NumPy file without pickled"):
        tarred_arrays(pack(tmp_path, tmp_path / "objects.tar"))
    (tmp_path / "objects.tar").unlink()
    (tmp_path / "fog.npy").write_bytes((tmp_path / "snow.npy").read_bytes()[:-8])
    with pytest.raises(InputError, match=r"fog\.npy: expected a whole NumPy file"):
        tarred_arrays(pack(tmp_path, tmp_path / "short.tar"))


def test_a_set_of_fewer_classes_is_another_set(tmp_path):
    """CIFAR-10-C where CIFAR-100-C is asked for: its labels are in range."""
    text = SUITE.replace('"folders"', '"arrays"').replace("classes = 10", "classes = 5")
    suite = read_suite(write_suite(tmp_path, text.replace("rows = 20", "rows = 50")))
    for name in suite.corrupted.corruptions:
        np.save(tmp_path / f"{name}.npy", pictures(100))
    np.save(tmp_path / "labels.npy", np.tile(np.arange(50) % 4, 2))
    with pytest.raises(InputError, match="expected labels of 5 classes, got 4"):
        opened(suite, tmp_path)


def test_other_sets_in_a_usual_place_are_left_alone(tmp_path, monkeypatch):
    """Tiny-ImageNet-C has the corruptions of ImageNet-C, and is not it."""
    write_folders(tmp_path / "Tiny-ImageNet-C", corruptions=["fog"], severities=[1])
    monkeypatch.setenv("RECAL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    suite = load_suite("imagenetc")
    for data in (None, tmp_path):
        with pytest.raises(InputError, match="expected the published images"):
            open_suite_images(suite, data, PHOTOS, suite.cells(["fog"]))


def test_labels_that_differ_between_severities_are_refused(tmp_path):
    text = SUITE.replace('"folders"', '"arrays"').replace("rows = 20", "rows = 4")
    suite = read_suite(write_suite(tmp_path, text))
    for name in suite.corrupted.corruptions:
        np.save(tmp_path / f"{name}.npy", pictures(8))
    np.save(tmp_path / "labels.npy", np.array([3, 1, 4, 1, 5, 9, 2, 6]))
    with pytest.raises(InputError, match="expected the same 4 labels for each severity"):
        opened(suite, tmp_path)


def test_clean_images_in_another_order_keep_their_own_labels(tmp_path, split_checkpoint):
    """Class folders are sorted by class, the published rows are not: each cell has its labels."""
    text = SUITE.replace('"folders"', '"arrays"')
    suite = read_suite(write_suite(tmp_path, text))
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 2))
    shown = pictures(20)
    (tmp_path / "Small-C").mkdir()
    for name in suite.corrupted.corruptions:
        np.save(tmp_path / "Small-C" / f"{name}.npy", np.concatenate([shown, shown]))
    np.save(tmp_path / "Small-C" / "labels.npy", np.tile(labels, 2))
    for i, (image, label) in enumerate(zip(shown, labels, strict=True)):
        path = tmp_path / "small" / f"class{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    run = evaluate([str(split_checkpoint)], suite=suite, data=tmp_path, output=tmp_path / "run")
    accuracies = {cell.accuracy for cell in run.summary.cells}
    assert len(run.summary.cells) == 5
    assert len(accuracies) == 1, "all five are of the same pictures with the same labels"
    assert any("not paired" in warning for warning in run.summary.warnings)


def test_clean_images_of_the_same_names_are_paired(small, tmp_path):
    suite, folder = small
    shutil.copytree(folder / "fog" / "1", tmp_path / "data" / "small")
    images = open_suite_images(suite, tmp_path / "data", MODEL, suite.cells(), limit=10)
    assert images.of_clean.indices.tolist() == images.of_corrupted.indices.tolist()
    assert not images.warnings


def test_clean_images_are_hashed_once_for_all_cells_that_are_made_of_them(
    class_folders, monkeypatch
):
    from recal.data.images import FileSource

    real, calls = FileSource.fingerprint, []

    def counted(self, indices):
        calls.append(len(indices))
        return real(self, indices)

    monkeypatch.setattr(FileSource, "fingerprint", counted)
    suite = load_suite("cifar10c")
    images = open_suite_images(suite, class_folders, MODEL, suite.cells())
    found = {images.fingerprint(cell) for cell in [Cell(None, None), *suite.cells()]}
    assert len(found) == 76
    assert calls == [40]


def test_on_the_fly_images_are_those_that_generate_writes(tmp_path):
    """Of ImageNet-C's kind too: prepared as the generator does, and JPEG-coded."""
    from recal.datasets.generate import generate

    rng = np.random.default_rng(0)
    for wnid in ("n01440764", "n02123045"):
        (tmp_path / "imagenet" / wnid).mkdir(parents=True)
        small = rng.integers(0, 256, (5, 6, 3), np.uint8)
        picture = Image.fromarray(small).resize((310, 260), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "imagenet" / wnid / "a.JPEG", quality=95)
    out = tmp_path / "ImageNet-C"
    generate("imagenetc", tmp_path / "imagenet", out, lambda *_: None, corruptions=["contrast"])
    suite = load_suite("imagenetc")
    cells = suite.cells(["contrast"])
    written = open_suite_images(suite, tmp_path / "ImageNet-C", PHOTOS, cells)
    here = open_suite_images(suite, tmp_path / "imagenet", PHOTOS, cells)
    assert written.published is not None
    assert here.published is None
    for cell in cells:
        both = (images.read(cell, np.arange(2)) for images in (written, here))
        assert np.array_equal(*both)
        assert written.chosen(cell).labels.tolist() == here.chosen(cell).labels.tolist() == [0, 281]
