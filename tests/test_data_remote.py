"""Images at addresses of fsspec: in memory, and on a server that speaks S3."""

import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recal.data.folders import open_images
from recal.data.remote import local_data
from recal.errors import InputError, UsageError


@pytest.fixture(scope="module")
def made(class_folders, tmp_path_factory):
    """The same 40 images as a tar file, a Parquet file and arrays, and their pixels and labels."""
    folder = tmp_path_factory.mktemp("made")
    source = open_images(class_folders, "test")
    pixels = np.stack([source[i] for i in range(len(source))])
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", source.labels)
    with tarfile.open(folder / "set.tar", "w") as tar:
        for path in source.paths:
            tar.add(path, path.relative_to(source.where).as_posix())
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in source.paths],
        "label": source.labels,
    }
    pq.write_table(pa.table(rows), folder / "set.parquet", row_group_size=7)
    return folder, pixels, source.labels


@pytest.fixture
def memory(made, monkeypatch, tmp_path):
    """A store in memory with these files in the folder `bucket`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for path in made[0].iterdir():
        store.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield store
    store.store.clear()


def assert_images(made, data, split="test"):
    """Compare images and labels in the order of their pixels."""
    _, pixels, labels = made
    source = open_images(data, split)
    order = np.lexsort(
        (*np.stack([source[i] for i in range(len(source))]).reshape(len(source), -1).T,)
    )
    wanted = np.lexsort((*pixels.reshape(len(pixels), -1).T,))
    for i, j in zip(order, wanted, strict=True):
        np.testing.assert_array_equal(source[int(i)], pixels[j])
    np.testing.assert_array_equal(source.labels[order], labels[wanted])


@pytest.mark.parametrize("name", ["set.tar", "set.parquet", "images.npy"])
def test_each_format_is_read_from_an_address(made, memory, name):
    copied = local_data(f"memory://bucket/{name}")
    assert copied.name == name
    assert_images(made, copied)


def test_a_file_is_copied_once_and_again_when_it_has_changed(made, memory, monkeypatch):
    address, got = "memory://bucket/set.tar", []
    real = type(memory).get_file

    def counted(self, path, *args, **more):
        got.append(path)
        return real(self, path, *args, **more)

    monkeypatch.setattr(type(memory), "get_file", counted)
    first = local_data(address)
    assert local_data(address) == first
    assert len(got) == 1
    memory.pipe_file("/bucket/set.tar", b"other")
    assert local_data(address) != first
    assert len(got) == 2
    assert_images(made, first)


def test_files_named_with_braces_and_folders_are_copied_whole(made, memory):
    for number in range(3):
        memory.cp_file("/bucket/set.parquet", f"/shards/val-0{number}.parquet")
    memory.pipe_file("/shards/readme.md", b"no image")
    braces = local_data("memory://shards/val-{00..02}.parquet")
    assert len(open_images(braces, "test")) == 120
    folder = local_data("memory://shards")
    assert (folder.name, sorted(p.name for p in folder.iterdir())) == (
        "shards", [f"val-0{n}.parquet" for n in range(3)],
    )  # fmt: skip
    assert len(open_images(folder, "test")) == 120


def test_commands_take_addresses(recal, made, memory, split_checkpoint, class_folders, tmp_path):
    accuracy = []
    for data in (class_folders, *(f"memory://bucket/{n}" for n in ("set.tar", "images.npy"))):
        status, out, err = recal(
            "eval", split_checkpoint, "--suite", "cifar10", "--data", data, "--format", "csv"
        )
        assert status == 0, err
        accuracy.append(out.splitlines()[1].split(",")[3])
    assert len(set(accuracy)) == 1


@pytest.mark.parametrize(
    ("address", "error", "named"),
    [
        ("memory://nothing/here.tar", InputError, "expected files of"),
        ("memory://bucket/{set,gone}.tar", InputError, "cannot be read"),
        ("nonsense://bucket/x.tar", InputError, "nonsense"),
        ("memory://pictures", InputError, "pack them"),
    ],
)
def test_what_is_not_there_is_one_error(memory, address, error, named):
    memory.pipe_file("/pictures/a.png", b"x")
    with pytest.raises(error, match=named):
        local_data(address)


def test_a_missing_package_is_named():
    fsspec.register_implementation("s3x", "no_such.Store", clobber=True)
    with pytest.raises(UsageError, match=r"recal-bn\[remote\]"):
        local_data("s3x://bucket/set.tar")


def test_names_that_lead_out_of_a_folder_are_refused(memory, monkeypatch):
    monkeypatch.setattr(type(memory), "find", lambda *_args, **_more: ["/bucket/../../x.npy"])
    with pytest.raises(InputError, match="leads out of its folder"):
        local_data("memory://bucket")


@pytest.mark.slow
def test_a_server_that_speaks_s3(made, monkeypatch, tmp_path):
    pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        for path in made[0].iterdir():
            store.put_file(str(path), f"bucket/set/{path.name}")
        for name in ("set.tar", "set.parquet", "images.npy"):
            assert_images(made, local_data(f"s3://bucket/set/{name}"))
        assert len(list(local_data("s3://bucket/set").iterdir())) == 4
        with pytest.raises(InputError, match=r"s3://bucket/no\.tar: expected files"):
            local_data("s3://bucket/no.tar")
        with pytest.raises(InputError, match=r"s3://gone/no\.tar"):
            local_data("s3://gone/no.tar")
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
