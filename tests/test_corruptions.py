"""`corrupt`: its contract for every corruption."""

import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recal.corruptions import Corruption, corrupt
from recal.corruptions.digital import pixelate
from recal.corruptions.frost import find_textures
from recal.corruptions.parameters import ALL_CORRUPTIONS, PARAMETER_SETS
from recal.errors import InputError, UsageError
from recal.kernels import compiled
from tests.corruption_images import photographs, write_textures


@pytest.fixture(scope="module", autouse=True)
def textures(tmp_path_factory):
    """The textures of frost, where `corrupt` looks for them first."""
    folder = tmp_path_factory.mktemp("data")
    write_textures(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAL_DATA", str(folder))
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_result_of_an_image_does_not_depend_on_its_batch(name):
    """The same bytes alone, in a batch, and in another order."""
    images = photographs()
    numbers = np.array([7, 3, 10_000, 2**40])
    whole = corrupt(images, name, 4, family="cifar", seed=5, indices=numbers)
    for order in ([0], [2], [3, 1], [2, 0, 3, 1]):
        part = corrupt(
            images[order], name, 4, family="cifar", seed=5, indices=numbers[order].tolist()
        )
        np.testing.assert_array_equal(part, whole[order])
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    assert not np.array_equal(whole, images)


def test_images_are_left_unchanged_and_any_strides_do():
    images = photographs()
    before = images.copy()
    turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    turned.setflags(write=False)
    for name in ALL_CORRUPTIONS:
        np.testing.assert_array_equal(
            corrupt(turned, name, 2, family="cifar"), corrupt(images, name, 2, family="cifar")
        )
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_no_images_give_no_images(name):
    assert corrupt(np.empty((0, 32, 32, 3), np.uint8), name, 1, family="cifar").shape[0] == 0


@pytest.mark.parametrize("family", PARAMETER_SETS)
def test_parameters_are_there_for_every_corruption_and_severity(family):
    assert sorted(PARAMETER_SETS[family].severities) == sorted(ALL_CORRUPTIONS)
    assert all(len(rows) == 5 for rows in PARAMETER_SETS[family].severities.values())


@pytest.mark.parametrize("severity", [0, 6, 2.5, True, "3", None])
def test_severity_outside_1_to_5_is_refused(severity):
    with pytest.raises(UsageError, match="severity: expected an integer from 1 to 5, got"):
        corrupt(photographs(), "contrast", severity, family="cifar")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'gaussian_noise'"):
        corrupt(photographs(), "gausian_noise", 1, family="cifar")
    with pytest.raises(UsageError, match="Did you mean 'imagenet'"):
        corrupt(photographs(), "contrast", 1, family="imagenet1k")
    with pytest.raises(UsageError, match="seed: expected an integer from 0 on"):
        corrupt(photographs(), "contrast", 1, family="cifar", seed=-1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3)), "got float64 .* Scale to 0..255"),
        (np.zeros((32, 32, 3), np.uint8), r"image\[None\]"),
        (np.zeros((2, 32, 32), np.uint8), "Repeat grey"),
        (np.zeros((2, 32, 32, 1), np.uint8), "Repeat grey"),
        (np.zeros((2, 32, 32, 4), np.uint8), "alpha"),
        (np.zeros((2, 3, 32, 32), np.uint8), "channels last"),
        (np.zeros((2, 0, 32, 3), np.uint8), "at least one pixel"),
        ([[1]], "expected a NumPy array, got list"),
    ],
)
def test_other_arrays_are_refused_with_what_to_do(images, message):
    with pytest.raises(InputError, match=message):
        corrupt(images, "contrast", 1, family="cifar")


@pytest.mark.parametrize("indices", [[0, 1], [0.5] * 4, [-1, 0, 1, 2], [[0, 1, 2, 3]]])
def test_indices_that_do_not_fit_are_refused(indices):
    with pytest.raises(InputError, match="indices: expected"):
        corrupt(photographs(), "contrast", 1, family="cifar", indices=indices)


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
@pytest.mark.parametrize("family", PARAMETER_SETS)
@settings(max_examples=4)
@given(severity=st.integers(1, 5), height=st.integers(40, 72), width=st.integers(40, 72))
def test_any_size_gives_an_image_that_batches_do_not_change(name, family, severity, height, width):
    """At any size, wide or tall, an image alone gives what it gives in a batch."""
    images = np.ascontiguousarray(photographs(2, 72)[:, :height, :width])
    whole = corrupt(images, name, severity, family=family, indices=[5, 6])
    alone = corrupt(images[1:], name, severity, family=family, indices=[6])
    assert whole.shape == images.shape
    np.testing.assert_array_equal(alone[0], whole[1])


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_tiny_images_work_or_are_refused(name):
    """Down to one pixel there is a result or an InputError that names a size, nothing else."""
    for height, width in ((1, 1), (2, 2), (3, 9), (12, 3), (7, 7), (9, 40)):
        images = np.full((1, height, width, 3), 90, np.uint8)
        for family, severity in itertools.product(PARAMETER_SETS, (1, 5)):
            message = ""
            try:
                assert corrupt(images, name, severity, family=family).shape == images.shape
            except InputError as error:
                message = str(error)
            assert not message or "pixels at this severity" in message


@pytest.mark.parametrize("name", ALL_CORRUPTIONS)
def test_threads_give_the_same_bytes(name):
    """Four threads on parts of a batch, at the same time, give what one call gives."""
    images = photographs(16)
    whole = corrupt(images, name, 3, family="cifar")
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(
            lambda i: corrupt(images[i : i + 4], name, 3, family="cifar", indices=range(i, i + 4)),
            range(0, 16, 4),
        )
    np.testing.assert_array_equal(np.concatenate(list(parts)), whole)


RANDOM = sorted(
    {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur"}
    | {"snow", "frost", "fog", "elastic_transform", "spatter"}
)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_differ_by_seed_severity_and_image(name):
    """Equal images get draws of their own, by their index and by the seed."""
    images = np.repeat(photographs(1), 8, axis=0)
    drawn = corrupt(images, name, 3, family="cifar")
    assert len(np.unique(drawn, axis=0)) > 4
    assert not np.array_equal(drawn, corrupt(images, name, 3, family="cifar", seed=1))
    far = corrupt(images, name, 3, family="cifar", indices=2**33 + np.arange(8))
    assert not np.array_equal(drawn, far)
    shifted = corrupt(images[:7], name, 3, family="cifar", indices=range(1, 8))
    np.testing.assert_array_equal(shifted, drawn[1:])


@pytest.mark.parametrize("name", sorted(set(ALL_CORRUPTIONS) - set(RANDOM)))
def test_the_others_draw_nothing(name):
    images = photographs(2)
    np.testing.assert_array_equal(
        corrupt(images, name, 3, family="cifar", seed=1, indices=[8, 9]),
        corrupt(images, name, 3, family="cifar"),
    )


def test_absent_textures_fail_frost_alone(monkeypatch, tmp_path):
    """The message says how to get them; the other corruptions go on."""
    monkeypatch.setenv("RECAL_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recal.corruptions.frost.DISTRIBUTIONS", ())
    with pytest.raises(InputError, match="recal data fetch frost"):
        corrupt(photographs(), "frost", 1, family="cifar")
    assert corrupt(photographs(), "fog", 1, family="cifar").any()


def test_textures_of_an_installed_distribution_are_read(monkeypatch, tmp_path):
    """Its files are found through its metadata; it is not imported."""
    site = tmp_path / "site"
    folder = write_textures(site / "package_with_frost")
    info = site / "texture_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: texture-package\nVersion: 1\n", encoding="utf-8"
    )
    names = [f"package_with_frost/frost/{path.name},," for path in folder.iterdir()]
    (info / "RECORD").write_text("\n".join(names), encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("RECAL_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recal.corruptions.frost.DISTRIBUTIONS", ("texture-package",))
    assert find_textures()[0] == folder / "frost1.png"
    assert "package_with_frost" not in sys.modules


def test_importing_is_light():
    """Neither torch nor timm, and numba and OpenCV only when first needed."""
    heavy = ("torch", "timm", "numba", "cv2", "scipy", "PIL")
    code = f"import sys, recal.corruptions; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_transform_takes_and_gives_images_and_arrays():
    """Its draws are those of `corrupt` for an index, and else keyed by the pixels."""
    first, second = photographs(2)
    transform = Corruption("gaussian_noise", 3, family="cifar", seed=2)
    expected = corrupt(first[None], "gaussian_noise", 3, family="cifar", seed=2, indices=[9])[0]
    np.testing.assert_array_equal(transform(first, index=9), expected)
    np.testing.assert_array_equal(transform(Image.fromarray(first), index=9), expected)
    assert isinstance(transform(Image.fromarray(first)), Image.Image)
    np.testing.assert_array_equal(transform(first), transform(first))
    noises = [transform(image).astype(int) - image for image in (first, second)]
    assert not np.array_equal(*noises)
    for mode in ("L", "RGBA"):
        with pytest.raises(InputError, match=rf"got {mode}\. Convert it"):
            transform(Image.fromarray(first).convert(mode))


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    """A read-only installation without a home costs the compilation in every process, no more."""
    real = numba.njit

    def njit(function, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(function, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("side", [32, 61, 224])
def test_jpeg_is_pillows_own_codec(side):
    """The pixels that saving and opening a file give."""
    image = photographs(1, side)[0]
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as decoded:
            expected = np.asarray(decoded)
        got = corrupt(image[None], "jpeg_compression", severity, family="cifar")[0]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("factor", [0.25, 0.3, 0.5, 0.65, 0.95])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (45, 67)])
def test_pixelate_is_pillows_box_filter(factor, height, width):
    image = np.ascontiguousarray(photographs(1, 224)[0][:height, :width])
    box = Image.Resampling.BOX
    small = Image.fromarray(image).resize((int(width * factor), int(height * factor)), box)
    expected = np.asarray(small.resize((width, height), box))
    np.testing.assert_array_equal(pixelate(image[None], 1.0, None, factor)[0], expected)
