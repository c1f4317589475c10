"""WebDataset shards and the hub's Parquet files are read with their labels, or refused."""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recal.data.folders import open_images
from recal.data.parquet import _contents
from recal.data.shards import expanded
from recal.errors import InputError

COUNT = 12
LABELS = [(5 * i) % 3 for i in range(COUNT)]


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def pack(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def cls(label):
    return "cls", str(label).encode()


def in_json(label):
    return "json", json.dumps({"caption": "a thing", "label": label}).encode()


def named(label):
    return "cls", b"cba"[label : label + 1]


def shards(folder, label_of=cls, stem="set-val", count=COUNT, without=()):
    """Write shards of five images."""
    for start in range(0, count, 5):
        entries = {}
        for i in range(start, min(start + 5, count)):
            entries[f"{i:04d}.png"] = png(i)
            end, content = label_of(LABELS[i])
            if i not in without:
                entries[f"{i:04d}.{end}"] = content
        pack(folder / f"{stem}-{start // 5:06d}.tar", entries)
    return folder


def found(source):
    return {int(source[i][0, 0, 0]): int(source.labels[i]) for i in range(len(source))}


EXPECTED = dict(enumerate(LABELS))


@pytest.mark.parametrize("label_of", [cls, in_json])
def test_shards_of_a_split_are_read_with_their_labels(tmp_path, label_of):
    shards(tmp_path, label_of)
    shards(tmp_path, label_of, stem="set-train", count=3)
    assert found(open_images(tmp_path, "test")) == EXPECTED
    assert len(open_images(tmp_path, "train")) == 3
    assert found(open_images(tmp_path / "set-val-{000000..000002}.tar", "test")) == EXPECTED
    some = open_images(tmp_path / "set-{val,train}-000000.tar", "train")
    assert len(some) == 8, "files that are named are read, whatever their split"
    one = open_images(tmp_path / "set-val-000001.tar", "test")
    assert found(one) == {i: LABELS[i] for i in range(5, 10)}


def test_names_in_shards_are_classes(tmp_path):
    source = open_images(shards(tmp_path, named), "test")
    assert source.classes == ("a", "b", "c")
    assert found(source) == {i: 2 - label for i, label in EXPECTED.items()}
    (tmp_path / "classes.txt").write_text("c\nb\na\n", encoding="utf-8")
    assert found(open_images(tmp_path, "test")) == EXPECTED


def test_json_without_labels_is_no_label(tmp_path):
    pack(tmp_path / "a-0.tar", {"1.png": png(1), "1.json": b'{"caption": "x"}'})
    assert open_images(tmp_path, "train").labels is None


def one_image(name, label):
    return lambda folder: pack(folder / "a-0.tar", {"1.png": png(1), name: label})


def two_images(folder):
    pack(folder / "a-0.tar", {"1.png": png(1), "1.seg.png": png(2), "1.cls": b"0"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shards(f, without=[3, 7]), r"each of 12 images, .* none for 2: .*0003"),
        (one_image("1.cls", b""), r"1\.cls: expected a number"),
        (one_image("1.json", b"{"), r"1\.json: expected a number"),
        (one_image("1.json", b'{"label": [0, 1]}'), r"1\.json: expected a number"),
        (two_images, "a label for two images"),
        (lambda f: (shards(f, named), pack(f / "set-val-9.tar", {"1.png": png(1), "1.cls": b"4"})),
         "numbers and names"),
    ],
)  # fmt: skip
def test_shards_that_do_not_fit_are_refused(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        open_images(tmp_path, "test")


def test_braces_name_files(tmp_path):
    names = {
        path.name for path in expanded(shards(tmp_path) / "set-{val,val}-{000000..000001}.tar")
    }
    assert names == {"set-val-000000.tar", "set-val-000001.tar"}
    with pytest.raises(InputError, match=r"4 files, got 1 that do not exist: .*000003\.tar"):
        open_images(tmp_path / "set-val-{000000..000003}.tar", "test")
    with pytest.raises(InputError, match="at most 100,000 files"):
        expanded(tmp_path / "set-{0..999999999}.tar")
    odd = tmp_path / "a{b,c}"
    odd.mkdir()
    assert expanded(odd) == [odd]


FEATURES = {"info": {"features": {
    "image": {"_type": "Image"}, "label": {"names": ["cat", "ape", "dog"], "_type": "ClassLabel"},
}}}  # fmt: skip


def rows(numbers, label="label", names=True):
    images = [{"bytes": png(i), "path": f"{i:04d}.png" if names else None} for i in numbers]
    table = pa.table({"image": images, label: [LABELS[i] for i in numbers]})
    return table.replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


def hub(folder, parts=2, split="validation", **options):
    """Write Parquet files as `datasets` does, in row groups of three."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(parts):
        numbers = range(COUNT)[part * COUNT // parts : (part + 1) * COUNT // parts]
        path = folder / f"{split}-{part:05d}-of-{parts:05d}-5b0a.parquet"
        pq.write_table(rows(numbers, **options), path, row_group_size=3)
    return folder


@pytest.mark.parametrize("place", ["", "data", "repo/plain_text"])
def test_files_of_the_hub_are_read_with_labels_and_classes(tmp_path, place):
    hub(tmp_path / place)
    hub(tmp_path / place, split="train", parts=1)
    source = open_images(tmp_path, "test")
    assert (source.classes, source.ordered) == (("cat", "ape", "dog"), True)
    assert found(source) == EXPECTED
    assert source.names == tuple(f"{i:04d}.png" for i in range(COUNT))
    for other in (pickle.loads(pickle.dumps(source)), open_images(tmp_path, "train")):
        assert found(other) == EXPECTED
        assert other.fingerprint([5, 1]) == source.fingerprint([5, 1])
    assert source.fingerprint([5, 1]) != source.fingerprint([5, 2])
    some = tmp_path / place / "validation-{00000..00001}-of-00002-5b0a.parquet"
    assert found(open_images(some, "train")) == EXPECTED


def test_pictures_beside_parquet_files_are_no_images_of_the_set(tmp_path):
    hub(tmp_path / "data")
    for name in ("preview.png", "assets/figure.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(99))
    assert found(open_images(tmp_path, "test")) == EXPECTED


def test_a_split_without_labels_is_passed_over(tmp_path):
    """ImageNet's test images have the label -1 on the hub."""
    table = rows(range(3)).set_column(1, "label", pa.array([-1] * 3))
    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    hub(tmp_path)
    assert found(open_images(tmp_path, "test")) == EXPECTED


def test_other_tables_of_images_are_read(tmp_path):
    """Binary images without names, names of classes as labels; a folder for each split."""
    for split in ("train", "test"):
        table = pa.table({"png": [png(i) for i in range(4)], "class": ["b", "a", "a", "b"]})
        (tmp_path / split).mkdir()
        pq.write_table(table, tmp_path / split / "0000.parquet")
    source = open_images(tmp_path, "test")
    assert (source.classes, source.ordered, source.names) == (("a", "b"), False, None)
    assert found(source) == {0: 1, 1: 0, 2: 0, 3: 1}
    assert source.name(2).endswith("test/0000.parquet: row 2")


def test_row_groups_are_read_one_by_one(tmp_path):
    """Images in order cost one reading of each row group, and few of these are kept."""
    source = open_images(hub(tmp_path), "test")
    _contents.cache_clear()
    for i in range(COUNT):
        source[i]
    info = _contents.cache_info()
    assert (info.misses, info.maxsize) == (4, 4)


def without(name):
    return lambda f: pq.write_table(rows(range(3)).drop_columns([name]), f / "a.parquet")


def large_groups(folder):
    table = pa.table({"image": [bytes(100_000_000)] * 3, "label": [0, 1, 2]})
    pq.write_table(table, folder / "a.parquet", use_dictionary=False, compression="zstd")


def one_shard_less(folder):
    (hub(folder) / "validation-00001-of-00002-5b0a.parquet").unlink()


def labels(values):
    def write(folder):
        table = pa.table({"image": [png(i) for i in range(3)], "label": values})
        pq.write_table(table, folder / "a.parquet")

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("image"), r"a\.parquet: expected one column of images .*got none among label"),
        (lambda f: (f / "a.parquet").write_bytes(b"PAR1 no"), "a whole Parquet file"),
        (large_groups, "row groups of at most 256 MB, got one of 300 MB"),
        (one_shard_less, r"expected 2 files such as validation-00000.*without number 1"),
        (labels([0, None, 1]), "a label for each image, got 1 without one"),
        (labels([[0, 1], [1, 0], [0, 1]]), "got list. One-hot labels must be numbers"),
        (labels([0.5, 1.0, 2.0]), "integers or names as labels, got float"),
        (lambda f: (hub(f / "a"), hub(f / "b")), "of one data set, got some in 'a', 'b'"),
        (lambda f: (hub(f), pq.write_table(pa.table({"image": [b"x"], "label": [0]}),
                                           f / "validation-1.parquet")), "columns and classes of"),
        (lambda f: hub(f, split="train"), "got only train. To use these, name .*with braces"),
        (lambda f: shards(f, stem="set-train"), "expected images for 'test', got only train"),
    ],
)  # fmt: skip
def test_parquet_files_that_do_not_fit_are_refused(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        open_images(tmp_path, "test")


def test_images_that_a_file_only_names_are_refused(tmp_path):
    table = pa.table(
        {"image": [{"bytes": None, "path": "a.png"}, {"bytes": png(1), "path": "b.png"}]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_images(tmp_path, "test")
    assert source.labels is None
    with pytest.raises(InputError, match=r"a\.png: expected the image's content, got none"):
        source[0]
