"""Every format of the same images gives the same numbers in every command."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recal.checkpoint.checkpoint import load_checkpoint
from recal.data.folders import open_images
from recal.evaluation.evaluate import evaluate
from recal.inspection.scores import score_branches

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


class Images:
    """Labelled images of class folders, to be written in other formats."""

    def __init__(self, folder, split="test", most=None):
        source = open_images(folder, split)
        chosen = np.random.default_rng(0).permutation(len(source))[:most]
        self.contents = [source.paths[i].read_bytes() for i in chosen]
        self.suffix = source.paths[0].suffix
        self.labels = source.labels[chosen].tolist()
        self.classes = source.classes

    @property
    def pixels(self):
        return [np.asarray(Image.open(io.BytesIO(c)).convert("RGB")) for c in self.contents]


def pack(path, entries):
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def class_folders(images, folder):
    for i, (content, label) in enumerate(zip(images.contents, images.labels, strict=True)):
        path = folder / "val" / images.classes[label] / f"{i:04d}{images.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def deep_folders(images, folder):
    class_folders(images, folder / "Data" / "CLS-LOC")
    return folder


def flat_with_csv(images, folder):
    for i, content in enumerate(images.contents):
        (folder / f"{i:04d}{images.suffix}").write_bytes(content)
    rows = (f"{i:04d}{images.suffix},{label}" for i, label in enumerate(images.labels))
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    return folder


def flat_with_names(images, folder):
    (folder / "pictures").mkdir()
    for i, content in enumerate(images.contents):
        (folder / "pictures" / f"{i:04d}{images.suffix}").write_bytes(content)
    table = {f"{i:04d}": images.classes[label] for i, label in enumerate(images.labels)}
    (folder / "labels.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "names.txt").write_text("\n".join(images.classes), encoding="utf-8")
    text = 'images = "pictures"\nlabels = "labels.json"\nclasses = "names.txt"\n'
    (folder / "set.toml").write_text(text, encoding="utf-8")
    return folder / "set.toml"


def tar(images, folder):
    class_folders(images, folder / "in")
    with tarfile.open(folder / "all.tar", "w") as packed:
        packed.add(folder / "in", arcname="set")
    return folder / "all.tar"


def webdataset(images, folder):
    for start in range(0, len(images.labels), 16):
        rows = [
            (f"{i:06d}{end}", content)
            for i in range(start, min(start + 16, len(images.labels)))
            for end, content in (
                (images.suffix, images.contents[i]),
                (".cls", str(images.labels[i]).encode()),
            )
        ]
        pack(folder / f"set-val-{start // 16:04d}.tar", rows)
    return folder


def webdataset_in_braces(images, folder):
    webdataset(images, folder)
    last = (len(images.labels) - 1) // 16
    return folder / f"set-val-{{0000..{last:04d}}}.tar"


def parquet(images, folder):
    rows = [{"bytes": c, "path": f"{i}{images.suffix}"} for i, c in enumerate(images.contents)]
    features = {"label": {"names": list(images.classes), "_type": "ClassLabel"}}
    hub = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"img": rows, "label": images.labels}).replace_schema_metadata(hub)
    (folder / "data").mkdir()
    for part in range(2):
        some = table.slice(part * (len(rows) // 2), None if part else len(rows) // 2)
        pq.write_table(
            some, folder / "data" / f"test-{part:05d}-of-00002.parquet", row_group_size=7
        )
    return folder


def arrays(images, folder):
    labels = np.array(images.labels)[:, None]
    np.savez(folder / "test.npz", images=np.stack(images.pixels), labels=labels)
    return folder


FORMATS = [
    class_folders, deep_folders, flat_with_csv, flat_with_names, tar, webdataset,
    webdataset_in_braces, parquet, arrays,
]  # fmt: skip


def metrics(checkpoint, place, output, **request):
    run = evaluate([str(checkpoint), f"{checkpoint}:aux0"], data=place, output=output, **request)
    assert not run.failures
    return [(c.n, c.accuracy, pytest.approx(c.nll, abs=1e-6)) for c in run.summary.cells]


@pytest.fixture(scope="module")
def expected(split_checkpoint, class_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    cells = metrics(split_checkpoint, class_folders, out, suite="cifar10")
    scores = score_branches(load_checkpoint(split_checkpoint), class_folders)
    return cells, [(score.accuracy, score.data_distance) for score in scores]


@pytest.mark.parametrize("write", FORMATS)
def test_eval_and_inspect_give_the_same_from_every_format(
    write, class_folders, expected, split_checkpoint, tmp_path
):
    (tmp_path / "set").mkdir()
    place = write(Images(class_folders), tmp_path / "set")
    cells, scores = expected
    assert metrics(split_checkpoint, place, tmp_path / "run", suite="cifar10") == cells
    found = score_branches(load_checkpoint(split_checkpoint), place)
    assert [(s.accuracy, pytest.approx(s.data_distance, rel=1e-4)) for s in found] == scores


@pytest.mark.parametrize("write", [flat_with_names, webdataset_in_braces, parquet])
def test_commands_take_every_format(write, class_folders, split_checkpoint, tmp_path, recal):
    (tmp_path / "set").mkdir()
    place = write(Images(class_folders), tmp_path / "set")
    options = ["--data", place]
    if write is parquet:  # its name says that these are test images
        options[1] = str(place / "data" / "test-{00000..00001}-of-00002.parquet")
    variant = ["-o", "v.safetensors", "--mode", "clean"]
    assert recal("calibrate", split_checkpoint, *options, *variant)[0] == 0
    assert recal("export", split_checkpoint, "--variant", "v.safetensors", "-o", "m.onnx",
                 *options)[0] == 0  # fmt: skip
    status, out, _ = recal("inspect", split_checkpoint, *options, "--json")
    assert status == 0
    assert json.loads(out)["branches"][0]["score"]["images"] == 40
    assert recal("eval", split_checkpoint, "v.safetensors", *options, "--suite", "cifar10")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS)
def test_real_photographs_give_the_same_accuracy_from_every_format(write, tmp_path):
    archive = REAL_DATA / "cifar10-jpeg.tar.gz"
    checkpoint = REAL_DATA.parent / "checkpoints" / "wrn16_1_splitbn_cifar10.pth"
    if not archive.is_file() or not checkpoint.is_file():
        pytest.skip("needs real photographs and a trained network")
    with tarfile.open(archive) as packed:
        wanted = [m for m in packed if m.name.startswith("test/") and "/00" in m.name]
        packed.extractall(tmp_path / "all", wanted, filter="data")
    (tmp_path / "set").mkdir()
    place = write(Images(tmp_path / "all", most=300), tmp_path / "set")
    request = {"suite": "cifar10", "arch": "wrn16_1"}
    again = metrics(checkpoint, class_folders(Images(tmp_path / "all", most=300), tmp_path / "b"),
                    tmp_path / "1", **request)  # fmt: skip
    found = metrics(checkpoint, place, tmp_path / "2", **request)
    assert found == again
    assert found[0][0] == 300
    assert found[0][1] > 0.8
