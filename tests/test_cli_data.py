"""`recal data`."""

import hashlib
import json
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from recal.cli.data import data_command as command
from recal.datasets.catalogue import PublishedSet, catalogue
from recal.errors import InputError, UsageError, VerificationError
from tests.corruption_images import photographs, write_textures


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    write_textures(tmp_path / "data")
    monkeypatch.setenv("RECAL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def small_cifar(place):
    (place / "cifar").mkdir()
    np.savez(place / "cifar" / "test.npz", images=photographs(6), labels=np.arange(6))
    return place / "cifar"


def test_list_names_every_set_and_where_it_is(place):
    text = run("list")
    assert all(name in text for name in catalogue())
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert rows["frost"]["folder"] == str(place / "data" / "frost")
    assert rows["cifar10c"]["folder"] is None
    assert rows["cifar10c"]["ways"] == ["fetch", "generate"]


def test_generate_then_list_and_verify_show_the_label(place):
    out = place / "data" / "CIFAR-10-C"
    text = run("generate", "cifar10c", "--from", small_cifar(place), "-o", out, "--workers", 1,
               "--corruptions", "fog, contrast")  # fmt: skip
    label = "regenerated: not comparable digit for digit with the published set"
    assert f"10 cells of 6 images, {label}" in text
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert rows["cifar10c"]["label"] == label
    assert f"3 files as recorded ({label})" in run("verify", "cifar10c")
    with (out / "fog.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    with pytest.raises(VerificationError, match=r"fog\.npy differs"):
        run("verify", out)


def test_fetch_puts_a_set_into_the_folder_of_data(place, monkeypatch):
    """Downloaded from a server on the loopback, unpacked, verified; then it is there."""
    served = place / "served"
    served.mkdir()
    (place / "labels.npy").write_bytes(b"labels")
    with tarfile.open(served / "Toy-C.tar", "w") as tar:
        tar.add(place / "labels.npy", "Toy-C/labels.npy")
    md5 = hashlib.md5((served / "Toy-C.tar").read_bytes()).hexdigest()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/Toy-C.tar"
        toy = PublishedSet(title="Toy", folder="Toy-C", downloads={url: md5}, gigabytes=0.0)
        monkeypatch.setitem(catalogue(), "toy", toy)
        threading.Thread(target=server.serve_forever).start()
        try:
            assert str(place / "data" / "Toy-C") in run("fetch", "toy")
        finally:
            server.shutdown()
    assert (place / "data" / "Toy-C" / "labels.npy").read_bytes() == b"labels"
    assert "1 files as recorded" in run("verify", "toy")
    assert str(place / "data" / "Toy-C") in run("fetch", "toy")


def test_verify_of_nothing_says_what_is_missing(place):
    with pytest.raises(InputError, match="See `recal data list`"):
        run("verify", "imagenetc")
    with pytest.raises(InputError, match="Did you mean 'imagenetc'"):
        run("verify", "imagenet-c")


def test_show_draws_the_severities_of_ones_own_image(place):
    """Clean and five severities side by side, for an image with an alpha channel too."""
    Image.fromarray(photographs(1, 64)[0]).convert("RGBA").save(place / "mine.png")
    text = run("show", "fog", "--image", place / "mine.png", "-o", place / "fog.png")
    assert "810x200 pixels" in text  # 6 cells of 64, twice as large, under their captions
    with Image.open(place / "fog.png") as sheet:
        assert sheet.size == (6 * 134 + 6, 48 + 18 + 128 + 6)
        cells = [
            np.asarray(sheet)[66 : 66 + 128 : 2, left : left + 128 : 2]
            for left in range(6, 6 * 134, 134)
        ]
    np.testing.assert_array_equal(cells[0], photographs(1, 64)[0])
    distances = [np.abs(cell.astype(int) - cells[0]).mean() for cell in cells]
    assert 0 < distances[1] < distances[5]


@pytest.mark.slow
def test_show_all_draws_every_corruption(place):
    Image.fromarray(photographs(1, 32)[0]).save(place / "mine.png")
    run("show", "all", "--image", place / "mine.png", "-o", place / "all.jpg")
    with Image.open(place / "all.jpg") as sheet:
        assert sheet.size == (6 * 102 + 6, 48 + 19 * 120)


def test_show_refuses_what_it_cannot_draw(place):
    with pytest.raises(UsageError, match="Did you mean 'fog'"):
        run("show", "fogg")
    with pytest.raises(InputError, match="expected an image"):
        run("show", "fog", "--image", place / "none.png")
    with pytest.raises(InputError, match=r"ends in \.png or \.jpg"):
        run("show", "fog", "-o", place / "fog.what")
    (place / "text.png").write_text("no image", encoding="utf-8")
    with pytest.raises(InputError, match="expected an image"):
        run("show", "fog", "--image", place / "text.png")


def test_every_command_has_help():
    for name, sub in command.commands.items():
        assert sub.help
        assert name in run("--help")


def test_importing_the_command_is_light():
    heavy = ("torch", "numpy", "numba", "cv2", "rich", "PIL")
    code = f"import sys, recal.cli.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
