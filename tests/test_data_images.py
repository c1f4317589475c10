"""Odd images are decoded as evaluation practice does; broken ones are named and counted."""

import io

import numpy as np
import pytest
from PIL import Image

from recal.data.batches import Batches
from recal.data.folders import open_images
from recal.data.images import ArraySource, counting_broken, decode, without_broken
from recal.errors import BrokenImageError, InputError
from recal.policies.policy import Policy
from recal.policies.preparation import Preparation
from recal.policies.prepared import PreparedTogether

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
COLOUR = Image.fromarray(PIXELS)


def encoded(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_16_bit_grey_keeps_its_high_byte():
    grey = (PIXELS[:, :, 0].astype(np.uint16) << 8) + 77
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(grey), kind), "x")
        assert np.array_equal(found, np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_transparency_is_dropped():
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 9, np.uint8)])
    assert np.array_equal(decode(encoded(Image.fromarray(clear), "PNG"), "x"), PIXELS)
    palette = COLOUR.quantize(64)
    content = encoded(palette, "PNG", transparency=bytes(range(64)))
    assert np.array_equal(decode(content, "x"), np.asarray(palette.convert("RGB")))


def test_cmyk_and_grey_become_rgb():
    inverse = Image.fromarray(255 - PIXELS)
    cmyk = Image.merge("CMYK", (*inverse.split(), Image.new("L", inverse.size)))
    assert np.array_equal(decode(encoded(cmyk, "TIFF"), "x"), PIXELS)
    grey = COLOUR.convert("L")
    assert np.array_equal(decode(encoded(grey, "PNG"), "x")[:, :, 2], np.asarray(grey))
    bits = Image.fromarray(PIXELS[:, :, 0] > 127)
    assert np.array_equal(decode(encoded(bits, "PNG"), "x")[:, :, 1], np.asarray(bits) * 255)


def test_an_image_is_not_turned_as_its_exif_entry_asks():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode(encoded(COLOUR, "PNG", exif=exif), "x"), PIXELS)


def zero_bytes(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("a text that is named like an image", encoding="utf-8")


def truncated_jpeg(path):
    big = COLOUR.resize((120, 90))
    path.write_bytes(encoded(big, "JPEG")[:-600])


def real_numbers(path):
    path.write_bytes(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def bomb(path):
    content = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    content[18:26] = np.array([100_000, 100_000], "<i4").tobytes()
    path.write_bytes(content)


SPOILS = [zero_bytes, text, truncated_jpeg, real_numbers, bomb]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_file_that_is_no_whole_image_is_refused_by_name(tmp_path, spoil):
    spoil(tmp_path / "bad.jpg")
    with pytest.raises(BrokenImageError, match=r"bad\.jpg: expected an image") as caught:
        open_images(tmp_path, "train")[0]
    assert "0x" not in str(caught.value)


@pytest.fixture
def partly_broken(tmp_path):
    for i in range(12):
        COLOUR.save(tmp_path / f"good{i:02}.png")
    for i, spoil in enumerate(SPOILS):
        spoil(tmp_path / f"bad{i}.jpg")
    return open_images(tmp_path, "train")


def test_broken_images_are_left_out_and_named_in_the_order_given(partly_broken):
    order = np.random.default_rng(0).permutation(len(partly_broken))
    told = []
    kept, broken = without_broken(partly_broken, order, lambda *counts: told.append(counts))
    expected = [i for i in order if "good" in partly_broken.name(int(i))]
    assert kept.tolist() == expected
    assert sorted(name.rsplit("/")[-1] for name in broken) == [f"bad{i}.jpg" for i in range(5)]
    assert told[-1] == (17, 17)
    again, none = without_broken(partly_broken, kept)
    assert (again.tolist(), none) == (expected, [])


def test_the_error_names_the_first_few_and_counts_all(partly_broken):
    told = []
    with (
        pytest.raises(BrokenImageError) as caught,
        counting_broken(partly_broken, np.arange(17), lambda *counts: told.append(counts)),
    ):
        [partly_broken[i] for i in range(17)]
    assert told[-1] == (17, 17)
    message = str(caught.value)
    assert "got 5 out of 17 that cannot be decoded" in message
    assert "bad0.jpg" in message
    assert "bad2.jpg and 2 more. Replace" in message
    assert "bad3.jpg" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_meets_one_says_so_without_a_traceback(partly_broken, workers):
    policy = Policy(name="as_is", summary="", text="")
    images = PreparedTogether(partly_broken, [policy], 0, Preparation(size=9))
    order = np.array([4, 3, 2, 1, 0, 16, 15, 14, 13, 12])
    with pytest.raises(BrokenImageError) as caught:
        list(Batches(images, np.split(order, 5), workers=workers))
    assert "expected an image" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(InputError, match=r"got 12x9\. Set --size") as size:
        list(Batches(images, [np.array([16])], workers=workers))
    assert "Traceback" not in str(size.value)


def test_arrays_have_nothing_to_decode(tmp_path):
    source = ArraySource(tmp_path, PIXELS[None], None)
    assert without_broken(source, np.array([0])) == (np.array([0]), [])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 8, 8), np.uint8), r"got uint8 \(3, 4, 8, 8\)"),
        (np.zeros((3, 3, 8, 8), np.uint8), "channels last: images.transpose"),
        (np.zeros((8, 8, 3), np.uint8), r"If that is one image, add an axis"),
        (np.linspace(0, 1, 192).reshape(1, 8, 8, 3), r"float64 \(1, 8, 8, 3\) of 0 to 1\. Make"),
        (np.zeros((2, 8, 8, 3), np.int64), "got int64"),
    ],
)
def test_arrays_that_are_not_uint8_images_are_refused_with_advice(tmp_path, array, message):
    np.save(tmp_path / "photos.npy", array)
    with pytest.raises(InputError, match=message):
        open_images(tmp_path / "photos.npy", "train")


def test_values_that_are_not_finite_are_counted(tmp_path):
    images = np.zeros((4, 8, 8, 3), np.float32)
    images[1, 2, 3, 0], images[1, 0, 0, 0], images[3, 0, 0, 0] = np.nan, np.inf, np.nan
    np.save(tmp_path / "photos.npy", images)
    with pytest.raises(InputError, match="with 3 values NaN or infinite in 2 images"):
        open_images(tmp_path / "photos.npy", "train")


def test_array_files_may_be_named_directly(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(5)
    np.save(tmp_path / "photos.npy", images)
    np.save(tmp_path / "my_images.npy", images[..., :1])
    np.save(tmp_path / "my_labels.npy", labels)
    np.savez(tmp_path / "all.npz", images=images, labels=labels)
    np.savez(tmp_path / "splits.npz", train_images=images, test_images=images[:2],
             test_labels=labels[:2, None])  # fmt: skip
    np.savez(tmp_path / "only.npz", images)
    read = {p.name: open_images(p, "test") for p in tmp_path.iterdir() if "labels" not in p.name}
    assert {name: len(source) for name, source in read.items()} == {
        "photos.npy": 5, "my_images.npy": 5, "all.npz": 5, "splits.npz": 2, "only.npz": 5
    }  # fmt: skip
    assert read["photos.npy"].labels is None
    assert (
        read["my_images.npy"].labels.tolist() == read["all.npz"].labels.tolist() == [0, 1, 2, 3, 4]
    )
    assert read["splits.npz"].labels.tolist() == [0, 1]
    assert np.array_equal(read["my_images.npy"][3], np.repeat(images[3, ..., :1], 3, axis=2))
    assert np.array_equal(read["only.npz"][4], images[4])


def test_an_npz_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((40, 32, 32, 3), np.uint8))
    monkeypatch.setattr(
        "os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 25}[name]
    )
    with pytest.raises(InputError, match=r"fits into memory .* Save it as \.npy"):
        open_images(tmp_path / "bomb.npz", "train")


def test_the_other_split_is_never_taken(tmp_path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    COLOUR.save(tmp_path / "test" / "cat" / "1.png")
    with pytest.raises(InputError, match="expected images for 'train', got only test"):
        open_images(tmp_path, "train")
    assert len(open_images(tmp_path, "test")) == 1


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in (".thumbnails", "cat"):
        (tmp_path / name).mkdir()
        COLOUR.save(tmp_path / name / "1.png")
    (tmp_path / "cat" / "._1.png").write_bytes(b"left behind by a system")
    source = open_images(tmp_path, "train")
    assert (source.classes, len(source)) == (("cat",), 1)


def test_calibrate_with_broken_images_writes_nothing(recal, split_checkpoint, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    for i in range(10):
        COLOUR.resize((32, 32)).save(folder / f"good{i}.png")
    for i in range(5):
        zero_bytes(folder / f"bad{i}.jpg")
    status, _, err = recal("calibrate", split_checkpoint, "--data", folder, "-o", "v.safetensors")
    assert status == 3
    assert "got 5 out of 15 that cannot be decoded" in err
    assert "Traceback" not in err
    assert not (tmp_path / "v.safetensors").exists()


def test_every_command_reads_16_bit_grey_and_gif_alike(tmp_path):
    """Pillow alone would clip 16-bit samples to white."""
    from recal.corruptions import Corruption
    from recal.corruptions.show import read_image

    grey = (PIXELS[:, :, 0].astype(np.uint16) << 8) + 77
    Image.fromarray(grey).save(tmp_path / "a.png")
    COLOUR.save(tmp_path / "b.gif")
    source = open_images(tmp_path, "test")
    assert len(source) == 2
    for index, name in enumerate(("a.png", "b.gif")):
        assert np.array_equal(read_image(tmp_path / name), source[index])
    with Image.open(tmp_path / "a.png") as image:
        with pytest.raises(InputError, match=r"got I;16\. Keep the high byte .* >> 8") as caught:
            Corruption("fog", 1, "cifar")(image)
        advice = str(caught.value).split(" with ")[1].removesuffix(".")
        converted = eval(advice, {"Image": Image, "np": np, "image": image})
    assert np.array_equal(np.asarray(converted), source[0])
