"""Regenerating corrupted sets: layout, resuming, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from recal.corruptions import CORRUPTIONS, corrupt
from recal.data.images import ArraySource
from recal.datasets.catalogue import REGENERATED, label_of, read_provenance
from recal.datasets.generate import generate
from recal.datasets.regenerate import read_prepared
from recal.datasets.verify import verify, verify_folders
from recal.errors import InputError, RecalError, UsageError, VerificationError
from tests.corruption_images import photographs, write_textures

SOME = ("gaussian_noise", "contrast", "jpeg_compression")


def ignore(*args):
    pass


@pytest.fixture(autouse=True)
def textures(tmp_path, monkeypatch):
    write_textures(tmp_path / "textures")
    monkeypatch.setenv("RECAL_DATA", str(tmp_path / "textures"))
    return tmp_path / "textures" / "frost"


@pytest.fixture
def cifar(tmp_path):
    """Twelve images of 32 pixels as arrays."""
    folder = tmp_path / "cifar"
    folder.mkdir()
    np.savez(folder / "test.npz", images=photographs(12), labels=np.arange(12) % 10)
    return folder


@pytest.fixture
def imagenet(tmp_path):
    """Three photographs in two class folders, of other sizes than the network's."""
    for number, place in enumerate(("n01/a.JPEG", "n01/b.png", "n02/a.JPEG")):
        path = tmp_path / "imagenet" / "val" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photographs(1, 300, seed=number)[0][: 260 + 10 * number]
        Image.fromarray(image).save(path, "PNG")
    return tmp_path / "imagenet"


def contents(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_arrays_are_laid_out_as_published(cifar, tmp_path):
    """Rows (s - 1) N to s N are severity s, in the order of the test set; labels five times."""
    record = generate("cifar10c", cifar, tmp_path / "out", ignore, seed=3)
    images = photographs(12)
    for name in CORRUPTIONS:
        rows = np.load(tmp_path / "out" / f"{name}.npy")
        assert rows.shape == (60, 32, 32, 3)
        assert rows.dtype == np.uint8
        for severity in (1, 5):
            np.testing.assert_array_equal(
                rows[(severity - 1) * 12 : severity * 12],
                corrupt(images, name, severity, family="cifar", seed=3),
            )
    labels = np.load(tmp_path / "out" / "labels.npy")
    np.testing.assert_array_equal(labels, np.tile(np.arange(12) % 10, 5))
    assert record.complete
    assert verify(tmp_path / "out", ignore) == 16
    assert label_of(tmp_path / "out") == REGENERATED
    assert label_of(tmp_path) is None


@pytest.mark.slow
def test_result_does_not_depend_on_workers_or_interruptions(cifar, tmp_path):
    generate("cifar100c", cifar, tmp_path / "one", ignore, corruptions=SOME)
    generate("cifar100c", cifar, tmp_path / "two", ignore, corruptions=SOME[:1])
    generate("cifar100c", cifar, tmp_path / "two", ignore, corruptions=SOME, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_folders_are_laid_out_as_published(imagenet, tmp_path):
    """Corruption, severity, class, the image's own name with .JPEG; resized and cropped."""
    out = tmp_path / "out"
    record = generate("imagenetc", imagenet, out, ignore, corruptions=("contrast", "fog"))
    names = {path for path in contents(out) if path.endswith(".JPEG")}
    expected = {
        f"{name}/{severity}/{place}.JPEG"
        for name in ("contrast", "fog")
        for severity in range(1, 6)
        for place in ("n01/a", "n01/b", "n02/a")
    }
    assert names == expected
    with Image.open(out / "fog" / "2" / "n02" / "a.JPEG") as image:
        got = np.asarray(image).astype(float)
    source = ArraySource(out, photographs(1, 300, seed=2)[:, :280], None)
    clean = read_prepared(source, 0, "imagenet")
    assert clean.shape == (224, 224, 3)
    want = corrupt(clean[None], "fog", 2, family="imagenet", indices=[2])[0]
    assert np.abs(got - want).mean() < 6  # JPEG at quality 85
    assert verify_folders(out, record) == 30
    (out / "fog" / "2" / "n02" / "a.JPEG").unlink()
    with pytest.raises(VerificationError, match="expected 3 images, got 2"):
        verify_folders(out, record)


KILLED = """
import sys
from pathlib import Path
from recal.datasets.generate import generate
def told(done, total):
    print(done, flush=True)
if __name__ == "__main__":
    generate(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), told, workers=int(sys.argv[4]),
             corruptions=sys.argv[5].split(","))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workers"), [("cifar10c", 1), ("tinyimagenetc", 2)])
def test_a_killed_run_goes_on_without_a_wrong_byte(name, workers, tmp_path):
    """Killed with SIGKILL at some moment, then finished: the bytes of a run that was not."""
    side, count = (32, 600) if name == "cifar10c" else (64, 130)
    source = tmp_path / "source"
    source.mkdir()
    images = np.tile(photographs(2, side), (count // 2, 1, 1, 1))
    np.savez(source / "test.npz", images=images, labels=np.arange(count) % 7)
    script = tmp_path / "run.py"
    script.write_text(KILLED, encoding="utf-8")
    out = tmp_path / "out"
    corruptions = "gaussian_noise,fog,contrast,snow" if workers == 1 else "fog,contrast"
    command = [sys.executable, str(script), name, str(source), str(out), str(workers), corruptions]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(2):  # begun, and the first task done
        assert process.stdout.readline()
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not read_provenance(out).complete
    corruptions = tuple(corruptions.split(","))
    for _ in range(300):  # orphaned workers end by themselves
        try:
            generate(name, source, out, ignore, corruptions=corruptions)
            break
        except (RecalError, FileNotFoundError):
            time.sleep(0.2)
    else:
        pytest.fail("the workers of the process that was killed still run")
    generate(name, source, tmp_path / "whole", ignore, corruptions=corruptions)
    assert contents(out) == contents(tmp_path / "whole")


def test_another_request_into_the_same_folder_is_refused(cifar, tmp_path):
    out = tmp_path / "out"
    generate("cifar10c", cifar, out, ignore, corruptions=SOME)
    with pytest.raises(UsageError, match="begun with seed 0, now it is 1"):
        generate("cifar10c", cifar, out, ignore, corruptions=SOME, seed=1)
    with pytest.raises(UsageError, match="begun with set cifar10c"):
        generate("cifar100c", cifar, out, ignore, corruptions=SOME)
    np.savez(cifar / "test.npz", images=photographs(12, seed=1), labels=np.arange(12))
    with pytest.raises(UsageError, match="begun with source_sha256"):
        generate("cifar10c", cifar, out, ignore, corruptions=SOME)


def test_a_folder_with_other_files_is_refused(cifar, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fog.npy").write_bytes(b"published")
    with pytest.raises(InputError, match="not to be mixed"):
        generate("cifar10c", cifar, tmp_path / "out", ignore)


def test_absent_textures_leave_the_others_done(cifar, tmp_path, textures, monkeypatch):
    for path in textures.iterdir():
        path.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("recal.corruptions.frost.DISTRIBUTIONS", ())
    with pytest.raises(InputError, match="recal data fetch frost"):
        generate("cifar10c", cifar, tmp_path / "out", ignore, corruptions=("fog", "frost"))
    assert (tmp_path / "out" / "fog.npy").is_file()
    assert read_provenance(tmp_path / "out").corruptions == ("fog",)


def test_images_of_another_size_or_without_labels_are_refused(cifar, tmp_path, imagenet):
    with pytest.raises(InputError, match="image 0: expected 32x32 pixels, got 300x260"):
        generate("cifar10c", imagenet, tmp_path / "out", ignore, corruptions=SOME)
    np.savez(cifar / "test.npz", images=photographs(2))
    with pytest.raises(InputError, match="labels"):
        generate("cifar10c", cifar, tmp_path / "out2", ignore)
    with pytest.raises(UsageError, match="Did you mean 'cifar10c'"):
        generate("cifar10-c", cifar, tmp_path / "out3", ignore)
    with pytest.raises(UsageError, match="Did you mean 'fog'"):
        generate("cifar10c", cifar, tmp_path / "out3", ignore, corruptions=("foog",))


def test_a_disk_that_is_too_small_is_refused_before_work(cifar, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(RecalError, match="of free disk, got"):
        generate("cifar10c", cifar, tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_whole_files_alone(cifar, tmp_path, monkeypatch):
    """Two files are whole, the third is not there, and no partial one is left."""
    calls = []

    def full(path, *args, **kwargs):
        calls.append(path)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        return corrupt(path, *args, **kwargs)

    monkeypatch.setattr("recal.datasets.regenerate.corrupt", full)
    with pytest.raises(RecalError, match="No space left on device"):
        generate("cifar10c", cifar, tmp_path / "out", ignore, corruptions=SOME)
    files = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert files == {"gaussian_noise.npy", "contrast.npy", "PROVENANCE.json"}


def test_tiny_imagenets_own_validation_folder_is_read(tmp_path):
    """Its labels are in a file beside a folder of all images."""
    folder = tmp_path / "tiny" / "val"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, wnid in enumerate(("n02", "n01", "n02")):
        Image.fromarray(photographs(1, 64, number)[0]).save(folder / "images" / f"v{number}.JPEG")
        lines.append(f"v{number}.JPEG\t{wnid}\t0\t0\t9\t9")
    (folder / "val_annotations.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    generate("tinyimagenetc", tmp_path / "tiny", tmp_path / "out", ignore, corruptions=("fog",))
    made = {path for path in contents(tmp_path / "out") if path.startswith("fog/4/")}
    assert made == {"fog/4/n02/v0.JPEG", "fog/4/n01/v1.JPEG", "fog/4/n02/v2.JPEG"}


def test_provenance_says_what_the_bytes_depend_on(cifar, tmp_path):
    generate("cifar10c", cifar, tmp_path / "out", ignore, corruptions=SOME, seed=4)
    record = json.loads((tmp_path / "out" / "PROVENANCE.json").read_text(encoding="utf-8"))
    assert record["label"] == "regenerated: not comparable digit for digit with the published set"
    assert record["seed"] == 4
    assert len(record["source_sha256"]) == 64
    assert {"recal", "numpy", "numba", "pillow"} <= set(record["versions"])
    assert str(tmp_path) not in json.dumps(record)
    (tmp_path / "out" / "PROVENANCE.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="expected JSON"):
        label_of(tmp_path / "out")
